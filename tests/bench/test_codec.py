"""The bench of codecs: what it measures is what the package would read, and its tables say so."""

import dataclasses
import functools
import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltakv_jax.attention import attend
from deltakv_jax.cache import Sides, bits_per_value, make_cache
from deltakv_jax.codec import parse_spec
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import markdown
from deltakv_jax.generation.steps import forward
from scripts.bench import codec
from scripts.bench.codecs import packaged, report, tables
from scripts.bench.codecs.bounds import Bound
from scripts.bench.codecs.measuring import Figures
from scripts.bench.codecs.passes import hidden_states
from scripts.bench.codecs.quantizers import LlamaCpp
from scripts.bench.codecs.reading import NOTHING, Stored, Window, attend_mixed
from scripts.bench.codecs.sides import Independent, unrotated
from scripts.bench.codecs.tools import Tool
from tests.models import random_model

ROOT = Path(__file__).parents[2]
CONFIG = LlamaConfig(
    vocab_size=64,
    width=64,
    layers=2,
    heads=2,
    kv_heads=2,
    head_dim=32,
    ffn=64,
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=True,
)
SPECS = (
    "delta:interval=16",
    "layered:bits=3:window=0:sinks=0:centre",
    "layered:bits=2:window=8:sinks=2:centre",
)


def values(*shape):
    return jax.random.normal(jax.random.key(3), shape)


def means():
    shape = (CONFIG.layers, CONFIG.kv_heads, CONFIG.head_dim)
    return {"k": values(*shape), "v": values(*shape)[::-1]}


@pytest.mark.parametrize(
    "spec", [SPECS[-1], *(pytest.param(spec, marks=pytest.mark.slow) for spec in SPECS[:-1])]
)
def test_a_format_is_read_as_the_package_reads_its_cache(spec):
    model, tokens = random_model(CONFIG), jnp.arange(50, dtype=jnp.int32)[None] % 64
    centre = Sides(*({"mean": mean} for mean in means().values()))
    shape = {name: getattr(CONFIG, name) for name in ("layers", "kv_heads", "head_dim")}
    cache = make_cache(parse_spec(spec), **shape, capacity=50, centre=centre)
    reference = functools.partial(attend, implementation="reference")
    want, _ = jax.jit(forward, static_argnums=4)(model, tokens, jnp.array([50]), cache, reference)
    known = {side: {"mean": mean} for side, mean in means().items()}
    candidate = packaged.packaged(spec)
    got = hidden_states(model, tokens, known, candidate=candidate)
    assert jnp.linalg.norm(got - want) < 1e-3 * jnp.linalg.norm(want)
    assert candidate.bits(CONFIG.head_dim, CONFIG.layers, 50) == bits_per_value(cache)


@pytest.mark.slow
def test_simulated_q4_0_rotate_is_the_package_s_round_trip():
    x = values(1, 20, 2, 64)
    real = packaged.read_back(parse_spec("q4_0:rotate").k, x, unrotated)
    simulated = Independent(quantizer=LlamaCpp(bits=4)).read_back(x, unrotated, {})
    chex.assert_trees_all_close(simulated, real.packed, atol=1e-6)
    assert jnp.max(jnp.abs(real.packed - x)) > 0.01


@pytest.mark.slow
def test_what_is_near_has_a_refinement_and_counts_from_the_reader():
    x, side = values(1, 20, 1, 64), parse_spec("layered:window=3:sinks=2").k
    stored = packaged.read_back(side, x, unrotated)
    error = lambda y: jnp.linalg.norm(y - x)
    assert error(stored.near) < 0.2 * error(stored.packed)
    near = stored.window.near(jnp.arange(20)[:, None], jnp.arange(20))
    assert np.flatnonzero(near[9, :10]).tolist() == [0, 1, 7, 8, 9]


def test_attention_mixes_near_and_packed_pair_by_pair():
    q, k, v = values(1, 8, 1, 16), jnp.zeros((1, 8, 1, 16)), jnp.zeros((1, 8, 1, 16))
    window = Window(recent=3, sliding=True, sinks=1)
    out = attend_mixed(q, Stored(k, k, NOTHING), Stored(v, v + 1, window))
    assert out[0, :, 0, 0].tolist() == pytest.approx([1, 1, 1, 1, 4 / 5, 4 / 6, 4 / 7, 4 / 8])


def figures(name, klds, *, bits=4.0, family="formats"):
    return Figures(
        family=family,
        candidate=name,
        note="",
        bits=bits,
        bits_at=(bits,) * 3,
        kld_mean=float(np.mean(klds)),
        kld_stderr=0.001,
        kld_p999=0.5,
        kld_of_chunks=klds,
        same_top=0.9,
        delta_ln_ppl=0.001,
        delta_ln_ppl_stderr=0.001,
        delta_ln_ppl_low=-0.001,
        delta_ln_ppl_high=0.004,
        k_choices=((0.25, 0.75), (0.5, 0.5)),
    )


RUN = report.Run(
    model="tiny",
    weights=1,
    text="a.txt",
    text_sha256="0",
    ctx=256,
    chunks=3,
    calibration="b.txt, 2 chunks",
    figures=(
        figures("q4_0:rotate", (0.02, 0.04, 0.06), bits=4.5),
        figures("K: finer", (0.01, 0.02, 0.03), bits=18.5, family="windows"),
        figures("K: coarser", (0.02, 0.04, 0.06), bits=18.25, family="windows"),
        figures("layered", (0.004, 0.004, 0.004), bits=4.25),
    ),
)


def cells(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_ratios_are_of_the_same_chunks():
    one, other = RUN.figures[:2]
    assert tables.ratio(other, one).value == pytest.approx(0.5)
    assert tables.ratio(other, one).stderr == pytest.approx(0, abs=1e-12)
    last = tables.ratio(RUN.figures[-1], one)
    left = np.array([0.002, 0.0, -0.002])
    assert last.stderr == pytest.approx(np.std(left, ddof=1) / 3**0.5 / 0.04)


def test_a_tool_must_give_more_than_its_bits_do_as_finer_codes():
    """Half the divergence for half a bit of one side is what finer codes give: no more."""
    tool = Tool("it", "K: finer", "K: coarser", "no")
    assert tables.more_bits(tool, RUN) == 0.5
    assert tables.verdict(tool, [RUN]) == "even"
    cheaper = dataclasses.replace(RUN.figures[1], bits=18.4)
    run = dataclasses.replace(RUN, figures=(cheaper, *RUN.figures[2:]))
    assert tables.verdict(tool, [run]) == "pays"
    assert tables.verdict(Tool("it", "K: coarser", "K: finer", "no"), [run]) == "costs"


def test_a_bound_looks_at_bits_divergence_and_the_interval():
    rotated, layered = RUN.figures[0], RUN.figures[-1]
    bound = Bound(candidate="layered", ctx=256, bits=4.25, share=0.1, change=0.4)
    met = lambda at, interval=(-0.1, 0.4): at.met(layered, rotated, interval)
    assert met(bound)
    assert not met(dataclasses.replace(bound, bits=4.2))
    assert not met(dataclasses.replace(bound, share=0.09))
    assert not met(bound, (-0.5, 0.1))
    assert not met(bound, None)


def test_tables_are_made_of_the_json(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_bytes(report.to_json([RUN], {}))
    assert tables.read([path]) == [RUN]
    assert codec.main(["--from", str(path), "--plot", str(tmp_path / "a.png")]) == 0
    assert "q4_0:rotate 4.500 0.04000" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "a.png").stat().st_size > 1000
    document = tmp_path / "A.md"
    document.write_text("<!-- table: codec-formats a.json -->\n<!-- end -->\n")
    assert markdown.stale(document, tables.MAKERS)
    head, _, first, second = cells(markdown.filled(document, tables.MAKERS).split("\n\n")[1])
    assert head[:3] == ["", "bits at 256", "KLD, tiny, a.txt"]
    assert first[:2] == ["`layered`", "4.250"]
    assert second[2:] == ["0.04000 ± 0.00100", "+0.10 (-0.10 … +0.40) %"]


def test_tables_in_the_project_are_those_of_its_files():
    """`python scripts/tables.py` makes them."""
    assert not markdown.stale(ROOT / "RESULTS.md", tables.MAKERS)


def test_what_was_not_measured_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(report.to_json([RUN], {}))
    with pytest.raises(UserError, match="'K: mean' was not measured"):
        tables.MAKERS["codec-tools"]({path: json.loads(path.read_text())})
