"""Cells, groups and the table of a sweep, without a model's run."""

import dataclasses
import io
import types
from typing import Any

import pytest
from rich.console import Console

from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import sweep
from deltakv_jax.evaluation.runner import Settings
from deltakv_jax.evaluation.texts import Text
from tests.evaluation.samples import make_run

LETTERS: Any = types.SimpleNamespace(
    tokenizer=types.SimpleNamespace(
        bos_id=1, encode=lambda text, bos: [1] * bos + [ord(letter) for letter in text]
    )
)
"""A model of which only the tokenizer is there: a token for each letter, after BOS."""
TEXTS = [Text("long.txt", "a" * 99, "00"), Text("short.txt", "b" * 49, "01")]


def settings(*contexts, chunks=None):
    specs = (parse_spec("f16"),)
    return [Settings(specs=specs, ctx=ctx, chunks=chunks) for ctx in contexts]


def test_every_text_is_cut_at_every_context_that_it_fills():
    said = []
    found = sweep.cells(LETTERS, TEXTS, settings(20, 60), said.append)
    assert [(cell.text.name, *cell.chunks.tokens.shape) for cell in found] == [
        ("long.txt", 5, 20),
        ("long.txt", 1, 60),
        ("short.txt", 2, 20),
    ]
    assert len(said) == 1
    assert said[0].startswith("left out short.txt at --ctx 60: the text has 50 tokens, fewer than")


def test_chunks_are_limited():
    (cell,) = sweep.cells(LETTERS, TEXTS[:1], settings(20, chunks=3), print)
    assert cell.chunks.tokens.shape == (3, 20)


def test_nothing_left_to_measure_is_an_error():
    said = []
    with pytest.raises(UserError, match="nothing is left to measure"):
        sweep.cells(LETTERS, TEXTS, settings(200, 300), said.append)
    assert len(said) == 4


def test_runs_are_told_apart_by_model_and_by_what_is_in_the_text():
    runs = [
        make_run(ctx=128),
        make_run(ctx=64),
        make_run(model="other"),
        make_run(text_sha256="another text of the same name"),
    ]
    got = sweep.by_text(runs)
    assert got == [[runs[1], runs[0]], [runs[2]], [runs[3]]]


def test_the_table_has_a_row_for_each_format_and_a_column_for_each_context():
    runs = [make_run(ctx=64), make_run(ctx=128)]
    rows = tuple(dataclasses.replace(row, ppl=1.5, delta_ln_ppl=-0.01) for row in runs[1].rows)
    runs[1] = dataclasses.replace(runs[1], rows=rows)
    console = Console(width=80, file=io.StringIO())
    with console.capture() as shown:
        console.print(sweep.table(runs))
    got = [" ".join(line.split()) for line in shown.get().splitlines()]
    assert got[0] == "KV ctx 64 ctx 128"
    assert got[2:] == [
        "f16 perplexity 20.0000 1.5000",
        "q8_0 +0.02 ±0.30 -1.00 ±0.30",
        "q4_0 +1.23 ±0.30 -1.00 ±0.30",
        "delta +0.69 ±0.30 -1.00 ±0.30",
    ]


def test_the_title_says_what_was_measured():
    assert sweep.title(make_run()).startswith("tiny on a.txt (llama.cpp): change of perplexity")
