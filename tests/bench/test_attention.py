"""The parts of the benchmark of attention that can be wrong without a clock saying so."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention.reference import attend_reference
from deltakv_jax.attention.tiled import bytes_read
from deltakv_jax.cache import cache_bytes, make_cache, read
from deltakv_jax.codec import parse_spec
from scripts.bench import attention, attention_speed, inference, plain, timing
from scripts.bench.results import Row
from scripts.bench.shapes import ATTENTION, AttentionShape

SHAPE = AttentionShape(batch=2, tokens=2 * plain.TILE, heads=8, kv_heads=2, head_dim=32)
FORMS = [
    pytest.param(dtype, name, id=f"{dtype} {name}")
    for dtype in plain.DTYPES
    for name in plain.forms(dtype)
]


@pytest.fixture(scope="module")
def attended():
    """Queries, one layer, and what the reference makes of a bfloat16 cache of it."""
    layer = attention_speed.random_layer(SHAPE, seed=0)
    q = jax.random.normal(jax.random.key(1), (SHAPE.batch, SHAPE.heads, SHAPE.head_dim))
    cache = attention_speed.filled_cache(SHAPE, "bf16", [layer])
    positions = jnp.full((SHAPE.batch, 1), SHAPE.tokens - 1, jnp.int32)
    return q, layer, attend_reference(q[:, None], positions, cache, 0)[:, 0]


def row_error(got, want):
    """The largest relative error of any one output row."""
    return jnp.max(jnp.linalg.norm(got - want, axis=-1) / jnp.linalg.norm(want, axis=-1))


@pytest.mark.parametrize(("dtype", "name"), FORMS)
def test_every_form_of_the_baselines_attends_to_all_tokens(dtype, name, attended):
    q, (keys, values), want = attended
    form = plain.forms(dtype)[name]
    stored = form.store(keys), form.store(values)
    assert {x.dtype.itemsize for x in stored} == {plain.DTYPES[dtype].dtype.itemsize}
    attend = jax.jit(form.attend)
    assert row_error(attend(q, *stored), want) < 0.02  # operands in bfloat16
    assert row_error(attend(q, stored[0], stored[0]), want) > 0.5  # it sees K in place of V


def test_a_cache_is_filled_piece_by_piece(monkeypatch):
    """With the values of all tokens and layers, wherever a piece ends."""
    monkeypatch.setattr(attention_speed, "PIECE", SHAPE.tokens // 4)
    layers = [attention_speed.random_layer(SHAPE, seed) for seed in range(2)]
    cache = attention_speed.filled_cache(SHAPE, "f32", layers)
    for layer, (keys, values) in enumerate(layers):
        for got, want in zip(read(cache, layer), (keys, values), strict=True):
            np.testing.assert_array_equal(got.swapaxes(1, 2), want)


@pytest.mark.parametrize("kv", ["f16", "q8_0/f32", "delta:interval=16/q4_0"])
def test_bytes_are_those_of_the_leaves(kv):
    """All of them for as many tokens as there is room for, and whole groups for fewer."""
    sizes: dict[str, Any] = {"kv_heads": 3, "head_dim": 64, "batch": 2}
    of = lambda tokens: make_cache(parse_spec(kv), layers=1, capacity=tokens, **sizes)
    for tokens in (16, 33, 48):
        assert bytes_read(of(48), 0, tokens) <= cache_bytes(of(tokens))
    assert bytes_read(of(48), 0, 48) == cache_bytes(of(48))
    groups = {"f16": 0, "q8_0/f32": 0, "delta:interval=16/q4_0": 1}[kv]
    per_token = (cache_bytes(of(48)) - groups * 3 * 6 * 64 * 2) // 48
    got = bytes_read(of(48), 0, 17)
    assert got == 17 * per_token + groups * 2 * 6 * 64 * 2


def test_layers_take_turns_until_no_cache_holds_them():
    turns = {name: attention_speed.turns(shape) for name, shape in ATTENTION.items()}
    assert turns["llama3_8b_decode_2k"] == 16
    assert turns["llama3_8b_decode_8k"] == 4
    assert turns["llama3_8b_decode_32k_batch_8"] == 1


def test_the_device_of_four_has_a_quarter_of_the_heads():
    shape = ATTENTION["llama3_70b_of_4_decode_128k_batch_32"]
    assert (shape.heads, shape.kv_heads, shape.tokens, shape.batch) == (16, 2, 131072, 32)


TIMES = {
    "copy": 1.0,
    "plain: bf16, tiles": 0.004,
    "plain: bf16, dot_product_attention": 0.008,
    "plain: f16, dot_product_attention": 0.010,
    "plain: f32, dot_product_attention": 0.010,
    "q4_0": 0.005,
    "delta": 0.006,
}


@pytest.fixture
def timed(monkeypatch):
    """No clock: the times of a small shape that stands for the one at 8192 tokens."""
    kept = {"bf16": ["tiles", plain.LIBRARY], "f16": [plain.LIBRARY], "f32": [plain.LIBRARY]}
    timers = {
        dtype: {f"plain: {dtype}, {form}": lambda: 1.0 for form in forms}
        for dtype, forms in kept.items()
    }
    monkeypatch.setattr(attention_speed, "plain_timers", lambda layers, q: timers)
    monkeypatch.setattr(timing, "copy_timers", lambda: {"copy": lambda: 1.0})
    monkeypatch.setattr(timing, "interleaved", lambda timers, rounds: TIMES)
    monkeypatch.setattr(timing, "COPY_BYTES", 2e9)
    monkeypatch.setitem(ATTENTION, "llama3_8b_decode_8k", SHAPE)
    monkeypatch.setattr(attention_speed, "MOST_TURNS", 1)


def ratios(rows: list[Row], what: str) -> dict[str, Row]:
    """The rows of one format, by the base that they are against."""
    return {row.against.split(";")[0].rpartition(", ")[0]: row for row in rows if row.what == what}


@pytest.mark.usefixtures("timed")
def test_rows_compare_formats_with_copies_and_with_the_fastest_forms():
    rows = attention_speed.rows(kvs=("q4_0", "delta"))
    found = ratios(rows, "delta")
    bases = ["copy", "plain bf16 (tiles)", "plain f16 (dot_product_attention)"]
    library = "plain f32 (dot_product_attention)", "dot_product_attention, bf16"
    assert list(found) == [*bases, *library, "q4_0"]
    size = 2 * SHAPE.batch * SHAPE.kv_heads * SHAPE.tokens * SHAPE.head_dim * 5 // 8
    assert found["copy"].ratio == pytest.approx(size / 0.006 / 2e9)
    assert [found[base].ratio for base in (*bases[1:], *library, "q4_0")] == pytest.approx(
        [1.5, 0.6, 0.6, 0.75, 1.2]
    )


@pytest.mark.usefixtures("timed")
def test_goals_are_those_of_a_cpu():
    rows = attention_speed.rows(kvs=("q4_0", "delta"))
    goals = {base: row.most for base, row in ratios(rows, "delta").items() if row.most}
    assert goals == {
        "plain bf16 (tiles)": 1.0,
        "plain f32 (dot_product_attention)": 0.6,
        "q4_0": 1.1,
    }
    assert not any(row.goal for row in rows if row.what.startswith("plain"))


def row(**fields) -> Row:
    return Row(part="p", shape="s", what="w", figure=2.0, unit="ms", ratio=0.5, **fields)


def test_the_benchmark_of_inference_shows_plain_bf16_and_goals(monkeypatch):
    rows = [row(against="plain bf16 (tiles), 4 ms"), row(against="q4_0, 4 ms", most=1.1)]
    monkeypatch.setattr(attention_speed, "rows", lambda: [row(against="copy"), *rows])
    assert inference.PARTS["attention"]() == rows


def test_forms_that_are_far_slower_take_no_more_turns(monkeypatch):
    seconds = {"tiles": 1.0, "einsum [b s k d]": 1.4, plain.LIBRARY: 9.0}
    monkeypatch.setattr(
        timing, "interleaved", lambda timers, _: {n: seconds.get(n[13:], 2.0) for n in timers}
    )
    monkeypatch.setattr(attention_speed, "plain_timer", lambda form, layers, q: lambda: 1.0)
    kept = attention_speed.plain_timers([], jnp.zeros(0))["bf16"]
    assert [name[13:] for name in kept] == ["einsum [b s k d]", "tiles", plain.LIBRARY]


@pytest.fixture
def _no_settings(monkeypatch):
    """The setting of a run would stay for the tests that follow."""
    monkeypatch.setattr(inference.jax.config, "update", lambda *setting: None)


@pytest.mark.usefixtures("_no_settings")
def test_the_script_prints_and_writes_rows_of_every_shape(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(attention_speed, "rows", lambda *words: asked.append(words) or [row()])
    file = tmp_path / "attention.json"
    shapes = ["llama3_8b_decode_2k", "llama3_70b_of_4_decode_8k"]
    words = ["--shape", *shapes, "--kv", "delta", "--json", str(file)]
    assert attention.main(words) == 0
    assert asked == [(name, ["delta"], "xla") for name in shapes]
    assert "0.50" in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert [row["ratio"] for row in document["rows"]] == [0.5, 0.5]
    assert {"device", "jax", "commit", "date"} <= set(document)


def out_of_memory(*words):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand more")


@pytest.mark.usefixtures("_no_settings")
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--shape", "llama3_8b"], "llama3_8b_decode_8k"),
        (["--kv", "q4_9"], "q4_9"),
        (["--attention", "magic"], "xla"),
        ([], "llama3_8b_decode_8k: RESOURCE_EXHAUSTED: Out of memory"),
    ],
)
def test_an_error_is_one_line(words, named, monkeypatch, capsys):
    monkeypatch.setattr(attention_speed, "rows", out_of_memory)
    try:
        status = attention.main(words)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("attention.py: ")
    assert named in line
