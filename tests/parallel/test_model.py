"""A model over four devices against the same model on one."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from deltakv_jax.cache import KVCache, advance, write
from deltakv_jax.codec import parse_spec
from deltakv_jax.evaluation.protocol import Chunks
from deltakv_jax.evaluation.runner import Settings, evaluate
from deltakv_jax.evaluation.texts import Text
from deltakv_jax.generation.decode import Stop, decode
from deltakv_jax.generation.steps import decode_step, empty_cache, prefill
from deltakv_jax.parallel.collectives import spread
from deltakv_jax.parallel.mesh import make_mesh
from deltakv_jax.parallel.sharding import BATCH, TENSOR, cache_specs
from deltakv_jax.weights import LoadedModel
from tests.parallel.material import CONFIG, PROMPTS, model_on, tensor4

CAPACITY = 64
NEW = 24  # tokens decoded
TOKENS = 33  # written at once, before one more by itself


def begin(mesh):
    cache = empty_cache(CONFIG, parse_spec("f32"), capacity=CAPACITY, batch=2, mesh=mesh)
    return prefill(model_on(mesh), PROMPTS, cache, mesh=mesh)


def test_logits_and_tokens_are_those_of_one_device():
    mesh, (one_logits, one_cache) = tensor4(), begin(None)
    want_logits = np.asarray(one_logits)
    want = decode(model_on(None), one_logits, one_cache, max_new_tokens=NEW)
    logits, cache = begin(mesh)
    assert logits.sharding.is_equivalent_to(jax.NamedSharding(mesh, BATCH), 2)
    np.testing.assert_allclose(logits, want_logits, atol=1e-3)
    seen = []
    got = decode(model_on(mesh), logits, cache, max_new_tokens=NEW, on_step=seen.append, mesh=mesh)
    assert got.tokens == want.tokens
    assert got.stops == want.stops == [Stop.LIMIT] * 2
    assert seen == [list(step) for step in zip(*want.tokens, strict=True)]  # each step once
    np.testing.assert_array_equal(got.cache.lengths, want.cache.lengths)


def caches_of(kinds: tuple[str, ...], mesh) -> tuple[KVCache, ...]:
    """A cache of one layer for each kind: a write touches the stacks of all kinds of a cache."""
    config = dataclasses.replace(CONFIG, layers=1)
    make = functools.partial(empty_cache, config, capacity=CAPACITY, batch=2, mesh=mesh)
    return tuple(make(parse_spec(kind)) for kind in kinds)


def fill(caches: tuple[KVCache, ...], k: jax.Array, v: jax.Array) -> tuple[KVCache, ...]:
    """Writes the tokens to each cache, the last one by itself, as decoding does."""
    many, one = (jnp.full(k.shape[0], count) for count in (TOKENS, 1))
    for part, counts in ((slice(TOKENS), many), (slice(TOKENS, None), one)):
        written = (write(cache, 0, k[:, part], v[:, part], counts) for cache in caches)
        caches = tuple(advance(cache, counts) for cache in written)
    return caches


@pytest.mark.parametrize(
    "kinds",
    [
        ("q8_0/layered:window=9:sinks=2", "f16/delta:interval=16"),
        pytest.param(
            ("f32/bf16", "q4_0:rotate/delta:rotate:interval=6", "layered:bits=3"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_equal_keys_and_values_give_equal_bytes_in_every_format(kinds):
    mesh, rng = tensor4(), np.random.default_rng(0)
    shape = (2, TOKENS + 1, CONFIG.kv_heads, CONFIG.head_dim)
    k, v = (rng.standard_normal(shape, np.float32) for _ in "kv")
    want = jax.jit(fill)(caches_of(kinds, None), k, v)
    caches, tokens = caches_of(kinds, mesh), P(None, None, TENSOR)
    specs = tuple(map(cache_specs, caches))
    got = jax.jit(spread(mesh, fill, (specs, tokens, tokens), specs))(caches, k, v)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert np.any(a)


NO_TOKENIZER: Any = None
BOUNDS = {"f32": 1e-5, "f16": 1e-5, "q8_0": 1e-4, "q4_0": 1e-3, "delta": 3e-3, "layered": 1e-3}


def log_perplexities(specs: tuple[str, ...], mesh) -> np.ndarray:
    settings = Settings(specs=tuple(map(parse_spec, specs)), ctx=128)
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (3, 128), np.int32)
    loaded = LoadedModel("random", CONFIG, model_on(mesh), NO_TOKENIZER, mesh)
    run = evaluate(loaded, Text("random", "", ""), Chunks(tokens, 16, 3), settings)
    return np.log([row.ppl for row in run.rows])


@pytest.mark.parametrize(
    ("specs", "shape"),
    [
        (("f32",), {"tensor": 2, "data": 2}),
        pytest.param(tuple(BOUNDS), {"tensor": 4}, marks=pytest.mark.slow),
    ],
)
def test_perplexity_is_that_of_one_device(specs, shape):
    """Three chunks: where there are two rows of devices, one of them has nothing new to do."""
    mesh = make_mesh(shape)
    change = np.abs(log_perplexities(specs, mesh) - log_perplexities(specs, None))
    assert np.all(change < [BOUNDS[spec] for spec in specs]), change


def computations(program: str) -> dict[str, list[str]]:
    """The instructions of each computation of a compiled program."""
    found: dict[str, list[str]] = {}
    for line in program.splitlines():
        if begins := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", line):
            found[begins[1]] = []
        elif line.startswith("  ") and found:
            found[next(reversed(found))].append(line.strip())
    return found


def collectives(instructions: list[str]) -> list[tuple[str, str]]:
    """Kind and shape of each."""
    kinds = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-\w+"
    pattern = rf"= (\S+) ({kinds})(?:-start)?\("
    found = [re.search(pattern, instruction) for instruction in instructions]
    return [(one[2], one[1].partition("{")[0]) for one in found if one]


def test_a_step_meets_where_the_design_says_and_nowhere_else():
    """Two sums in the body of the loop over layers, one of the embedding, and the logits."""
    mesh = tensor4()
    cache = empty_cache(CONFIG, parse_spec("q4_0"), capacity=CAPACITY, batch=2, mesh=mesh)
    tokens = jnp.zeros(2, jnp.int32)
    lowered = decode_step.lower(model_on(mesh), tokens, cache, mesh=mesh)
    program = lowered.compile().as_text() or ""
    found = {
        name: collectives(instructions) for name, instructions in computations(program).items()
    }
    (entry,) = re.findall(r"^ENTRY %([\w.-]+)", program, re.MULTILINE)
    residual = ("all-reduce", f"f32[2,1,{CONFIG.width}]")
    logits = ("all-gather", f"f32[2,{CONFIG.vocab_size}]")
    assert sorted(found.pop(entry)) == [logits, residual]
    (body,) = [name for name, some in found.items() if some]
    assert found[body] == [residual, residual]
    assert len(re.findall(rf"body=%{re.escape(body)}\b", program)) == 1
