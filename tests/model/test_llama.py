import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from deltakv_jax.attention.plain import attend_plain
from deltakv_jax.config import LlamaConfig
from deltakv_jax.model import Collectives, Llama
from deltakv_jax.weights import load_model
from deltakv_jax.weights.assemble import assemble
from deltakv_jax.weights.huggingface import HuggingFaceSource
from tests import models
from tests.golden import recipe
from tests.models import random_model

GOLDEN = Path(__file__).parents[1] / "golden"

# 100 greedy tokens of tiny1m after "Once upon a time", by `greedy` below.
CONTINUATION = """
432 383 286 261 376 298 315 421 395 317 426 338 401 396 267 337 410 408 419 292 411 322 265 262
379 419 415 271 411 426 385 328 432 358 394 261 370 432 262 429 295 422 400 428 426 291 400 428
286 399 262 429 295 422 269 317 391 266 267 352 379 261 424 283 426 13 13 438 310 352 303 267
265 400 428 269 336 432 313 440 411 306 414 432 400 428 428 422 443 410 448 415 294 261 276 364
400 299 450 436
"""


CONFIG = LlamaConfig(
    vocab_size=11,
    width=8,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    ffn=12,
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=True,
)


TOKENS, POSITIONS = jnp.array([[1, 2, 3, 4]]), jnp.arange(4)[None]


def config(**changes) -> LlamaConfig:
    return dataclasses.replace(CONFIG, **changes)


def abstract(**changes) -> Llama:
    return models.abstract(config(**changes))


def random(seed: int = 0, **changes) -> Llama:
    return random_model(config(**changes), seed)


@jax.jit
def forward(model: Llama, tokens: jax.Array) -> jax.Array:
    """The logits [b t v] of tokens [b t], without a cache."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model.hidden(tokens, positions, None, attend=attend_plain)
    return model.logits(hidden)


def loaded(folder: Path) -> Llama:
    """The float32 model of a folder that has no tokenizer."""
    return assemble(HuggingFaceSource(folder), "f32")


def greedy(model: Llama, prompt: list[int], count: int) -> list[int]:
    """Each token by a forward pass over the whole sequence, padded to one fixed length."""
    tokens = np.zeros((1, len(prompt) + count), np.int32)
    tokens[0, : len(prompt)] = prompt
    for at in range(len(prompt), tokens.shape[1]):
        tokens[0, at] = jnp.argmax(forward(model, tokens)[0, at - 1])
    return tokens[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied"])
def test_logits_are_those_of_transformers(name):
    with np.load(GOLDEN / name / "logits.npz") as golden:
        got = forward(loaded(GOLDEN / name), jnp.asarray(golden["tokens"]))
        np.testing.assert_allclose(got, golden["logits"], atol=2e-4, rtol=0)


# One head each by default: it has no part in what tells the families apart.
ONE_HEAD = {"llama3": "untied", "mistral": "untied", "qwen2": "tied", "qwen3": "tied"}


@pytest.mark.parametrize(
    ("family", "head"),
    [
        pytest.param(family, head, marks=[] if head == usual else pytest.mark.slow)
        for family, usual in ONE_HEAD.items()
        for head in ("tied", "untied")
    ],
)
def test_logits_of_each_family_are_those_of_transformers(family, head, tmp_path):
    with np.load(GOLDEN / "families" / f"{family}_{head}.npz") as golden:
        (tmp_path / "config.json").write_text(str(golden["config"]))
        weights = recipe.weights(json.loads(str(golden["shapes"])))
        save_file(weights, tmp_path / "model.safetensors")
        got = forward(loaded(tmp_path), jnp.asarray(golden["tokens"]))
        np.testing.assert_allclose(got, golden["logits"], atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    "path",
    sorted([*GOLDEN.glob("llama_*/logits.npz"), *GOLDEN.glob("families/*.npz")]),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_the_golden_logits_are_worth_comparing_with(path):
    """They are large beside the tolerance, and no two rows are alike."""
    with np.load(path) as golden:
        assert golden["logits"].std() > 0.5
        assert np.ptp(golden["logits"], axis=1).min() > 0.1


def test_a_real_model_goes_on_as_before(shared):
    tiny = load_model(shared / "models" / "tiny1m", "f32")
    prompt = tiny.tokenizer.encode("Once upon a time")
    golden = [int(word) for word in CONTINUATION.split()]
    assert greedy(tiny.model, prompt, len(golden)) == golden
    text = tiny.tokenizer.decode(prompt + golden)
    assert text.startswith("Once upon a time, there was a little girl named Lily.")


def test_weights_are_drawn_in_the_dtype_asked_for():
    init = lambda: Llama(config(tied=False), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(jax.eval_shape(init))}
    norms = {x.dtype for x in jax.tree.leaves(jax.eval_shape(init)) if x.shape in ((8,), (2, 8))}
    assert dtypes == {"bfloat16", "float32"}
    assert norms == {jnp.dtype(jnp.float32)}


def test_a_model_is_an_argument_of_a_program():
    traces = 0

    @jax.jit
    def program(model: Llama) -> jax.Array:
        nonlocal traces
        traces += 1
        return model.logits(jnp.ones(model.config.width))

    assert not np.allclose(program(random(0)), program(random(1)))
    assert traces == 1


def test_leaves_are_arrays_and_the_config_is_not():
    leaves = jax.tree.leaves(random(tied=False))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert len(leaves) == 12


def test_later_tokens_do_not_change_earlier_logits():
    model, changed = random(), np.array([[1, 2, 3, 9]])
    got, other = (np.asarray(forward(model, tokens)) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(got[:, :3], other[:, :3])


def test_the_cache_passes_through_every_layer():
    def attend(layer, q, k, v, rope, cache):
        assert q.shape == (1, 4, 4, 4)
        assert k.shape == v.shape == (1, 4, 2, 4)
        return q, cache.at[layer].add(1 + layer)

    run = jax.jit(lambda model, *inputs: model.hidden(*inputs, attend=attend))
    _, cache = run(random(), TOKENS, POSITIONS, jnp.zeros(2, jnp.int32))
    np.testing.assert_array_equal(cache, [1, 2])


def test_reduce_sums_both_outputs_of_each_layer():
    """With both gone, the embedding reaches the final norm as it is."""
    model = random()
    nowhere = Collectives(reduce=jnp.zeros_like)
    run = lambda model: model.hidden(
        TOKENS, POSITIONS, None, attend=attend_plain, collectives=nowhere
    )
    nothing, _ = jax.jit(run)(model)
    x = np.asarray(model.embedding.rows(TOKENS))
    expected = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) * model.final_norm[...]
    np.testing.assert_allclose(nothing, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_weights_give_nearly_the_same(dtype):
    exact = random()
    narrow = jax.tree.map(lambda w: np.asarray(w, dtype) if w.ndim == 3 else w, exact)
    got = forward(narrow, TOKENS)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, forward(exact, TOKENS), atol=0.05)


def test_compile_time_does_not_grow_with_depth():
    """One body for all layers: the program's text is as long for 40 layers as for 2."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)

    def size(layers: int) -> int:
        return len(forward.lower(abstract(layers=layers), tokens).as_text())

    assert size(40) < 1.05 * size(2)
