"""Real models against llama.cpp's own figures, and the two routes against each other."""

import json
import math

import pytest

from deltakv_jax.codec import parse_spec
from deltakv_jax.evaluation import results, runner, texts


def run(loaded, shared, *kv: str, ctx: int, chunks: int, sequential: bool = False):
    settings = runner.Settings(
        specs=tuple(map(parse_spec, kv)), ctx=ctx, chunks=chunks, sequential=sequential
    )
    text = texts.load_text(str(shared / "texts" / "tinystories.txt"))
    cut = runner.cut(loaded, text, settings)
    return {row.kv: row for row in runner.evaluate(loaded, text, cut, settings).rows}


def golden(shared, model: str, kv: str) -> dict:
    """llama.cpp's figures of one model and cache."""
    table = json.loads((shared / "golden" / "llama_cpp.json").read_text())["perplexity"]
    (row,) = [row for row in table if row["model"] == f"models/{model}" and row["kv"] == kv]
    return row


def agree(row: results.Row, want: dict, within: float) -> None:
    assert row.ppl == pytest.approx(want["ppl"], abs=within)
    assert row.ppl_stderr == pytest.approx(want["stderr"], abs=within / 20)


def test_tiny1m_f16(tiny1m, shared):
    rows = run(tiny1m, shared, "f16", ctx=256, chunks=40)
    agree(rows["f16"], golden(shared, "tiny1m", "f16"), within=0.002)


def test_stories260k_f16(stories260k, shared):
    rows = run(stories260k, shared, "f16", ctx=128, chunks=60)
    agree(rows["f16"], golden(shared, "stories260K", "f16"), within=0.002)


def golden_divergence(shared, kv: str) -> dict:
    """llama.cpp's KL divergence of tiny1m from its f32 cache."""
    table = json.loads((shared / "golden" / "llama_cpp.json").read_text())
    (row,) = [row for row in table["kl_divergence_to_f32_kv"] if row["kv"] == kv]
    return row


def test_tiny1m_f32_and_q4_0(tiny1m, shared):
    """llama.cpp also rounds q to 8 bits under q4_0, which makes it a little worse."""
    rows = run(tiny1m, shared, "f32", "q4_0", "q4_0:rotate", ctx=256, chunks=100)
    agree(rows["f32"], golden(shared, "tiny1m", "f32"), within=0.002)
    agree(rows["q4_0"], golden(shared, "tiny1m", "q4_0 (not rotated)"), within=0.03)
    for kv, name, within in (
        ("q4_0", "q4_0 (not rotated)", 0.2),
        ("q4_0:rotate", "q4_0 (rotated)", 0.1),
    ):
        want = golden_divergence(shared, name)
        assert rows[kv].kld_mean == pytest.approx(want["mean"], rel=within)
        assert rows[kv].same_top == pytest.approx(want["same_top"], abs=0.01)


BOUNDS = {"f32": 1e-5, "f16": 1e-5, "q8_0": 1e-4, "q4_0": 1e-3, "delta": 3e-3, "layered": 1e-3}
"""Differences in ln(perplexity) over 40 chunks. One float32 sum in another order flips a code now
and then, and each flip draws the noise of quantisation anew."""


def largest_difference(loaded, shared, *kv: str, chunks: int) -> float:
    """Of the two routes, as a multiple of the bound."""
    parallel = run(loaded, shared, *kv, ctx=256, chunks=chunks)
    sequential = run(loaded, shared, *kv, ctx=256, chunks=chunks, sequential=True)
    difference = lambda name: abs(math.log(sequential[name].ppl / parallel[name].ppl))
    return max(difference(name) / BOUNDS[name] for name in kv)


@pytest.mark.slow
def test_both_routes_give_the_same_perplexity(tiny1m, shared):
    assert largest_difference(tiny1m, shared, *BOUNDS, chunks=40) < 1


def test_both_routes_give_the_same_perplexity_on_a_few_chunks(tiny1m, shared):
    """The noise of 2 chunks is sqrt(20) times that of 40."""
    got = largest_difference(tiny1m, shared, "f32", "delta", chunks=2)
    assert got < math.sqrt(20)


@pytest.mark.slow
def test_what_is_read_refined_is_nearly_exact(tiny1m, shared):
    """At fewer bits than `q4_0:rotate` in a long context: a share of what that diverges."""
    kinds = {"layered": 1 / 8, "layered:bits=3": 1 / 2, "layered:bits=2:window=128": 2}
    rows = run(tiny1m, shared, "f32", "q4_0:rotate", *kinds, ctx=256, chunks=40)
    for kind, share in kinds.items():
        assert rows[kind].kld_mean < share * rows["q4_0:rotate"].kld_mean, kind
