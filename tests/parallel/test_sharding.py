"""Where leaves lie: each sharded one in quarters, every role in the table, errors that help."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from deltakv_jax.cache import make_cache
from deltakv_jax.codec import parse_spec
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.generation.steps import empty_cache
from deltakv_jax.model import Llama
from deltakv_jax.parallel.mesh import make_mesh, named
from deltakv_jax.parallel.sharding import (
    MODEL_AXES,
    cache_specs,
    check_batch,
    check_mesh,
    check_split,
    model_specs,
)
from tests.parallel.material import CONFIG, model_on, tensor4

WHOLE = {"attention_norm", "ffn_norm", "final_norm", "query_norm", "key_norm"}
LLAMA_70B = dataclasses.replace(
    CONFIG, vocab_size=128256, width=8192, heads=64, kv_heads=8, head_dim=128, ffn=28672
)


def abstract(config: LlamaConfig) -> Llama:
    return jax.eval_shape(lambda: Llama(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def role_of(path) -> str:
    return path[0].name


def leaves_of(specs) -> list[P]:
    return jax.tree.leaves(specs, is_leaf=lambda leaf: isinstance(leaf, P))


def test_every_role_of_a_llama_has_its_axes():
    model = abstract(dataclasses.replace(CONFIG, qkv_bias=True, qk_norm=True))
    leaves = jax.tree_util.tree_leaves_with_path(model)
    assert {role_of(path) for path, _ in leaves} == set(MODEL_AXES)
    for path, leaf in leaves:
        assert len(MODEL_AXES[role_of(path)]) == leaf.ndim


def test_the_specs_of_a_model_are_its_own_tree():
    model = abstract(dataclasses.replace(CONFIG, qkv_bias=True))
    specs = model_specs(model)
    assert jax.tree.structure(specs) == jax.tree.structure(model)
    for_rows, for_blocks = P(None, "tensor", None), P(None, None, "tensor")
    assert leaves_of(specs.embedding) == leaves_of(specs.head) == [P("tensor", None)]
    assert leaves_of(specs.query) == leaves_of(specs.up) == [for_rows]
    assert leaves_of(specs.down) == leaves_of(specs.output) == [for_blocks]
    assert leaves_of(specs.key_bias) == [P(None, "tensor")]
    assert leaves_of(specs.ffn_norm) == [P(None, None)]


def test_packed_leaves_are_split_alike():
    """Codes [l, rows, 16, blocks] and scales [l, rows, blocks]."""
    specs = model_specs(model_on(None))
    assert leaves_of(specs.gate) == [P(None, "tensor", None, None), P(None, "tensor", None)]
    assert leaves_of(specs.down) == [P(None, None, None, "tensor"), P(None, None, "tensor")]


def test_each_device_holds_a_quarter_of_every_matrix():
    leaves = jax.tree_util.tree_leaves_with_path(model_on(tensor4()))
    for path, leaf in leaves:
        parts = [part.data.nbytes for part in leaf.addressable_shards]
        share = leaf.nbytes if role_of(path) in WHOLE else leaf.nbytes // 4
        assert parts == [share] * 4, path
    assert {role_of(path) for path, _ in leaves} - WHOLE >= {"embedding", "head", "query", "down"}


@pytest.mark.parametrize("shape", [{"tensor": 4}, {"tensor": 2, "data": 2}])
def test_each_device_holds_a_quarter_of_the_cache(shape):
    mesh = make_mesh(shape)
    for spec in ("f32/bf16", "f16/q8_0", "q4_0:rotate/delta"):
        cache = empty_cache(CONFIG, parse_spec(spec), capacity=40, batch=2, mesh=mesh)
        for leaf in jax.tree.leaves(cache.stacks):
            assert [part.data.nbytes for part in leaf.addressable_shards] == [leaf.nbytes // 4] * 4


def test_the_specs_of_a_cache_are_its_own_tree():
    shapes: dict[str, Any] = {"layers": 1, "kv_heads": 2, "head_dim": 32, "capacity": 32}
    cache = jax.eval_shape(lambda: make_cache(parse_spec("delta"), **shapes))
    specs = cache_specs(cache)
    assert specs.stacks[0].k["keyframes"] == P(None, "data", "tensor", None, None)
    assert specs.lengths == P("data")


@pytest.mark.parametrize(
    ("changes", "multiple", "tensor", "message"),
    [
        ({}, 1, 3, "tensor=3 does not divide the 8 kv heads; tensor=1, 2, 4 or 8 would"),
        ({}, 1, 16, "tensor=16 does not divide the 8 kv heads; tensor=1, 2, 4 or 8 would"),
        (
            {"kv_heads": 6, "heads": 6, "vocab_size": 32000},
            1,
            3,
            "tensor=3 does not divide the 32000 tokens of the vocabulary; tensor=1 or 2 would",
        ),
        ({"ffn": 11006}, 1, 4, "the 11006 hidden values of SwiGLU; tensor=1 or 2 would"),
        ({"ffn": 11008}, 256, 4, "the 43 blocks of 256 values in a row of `down`; tensor=1 would"),
        (
            {"head_dim": 16, "heads": 8},
            32,
            8,
            "the 4 blocks of 32 values in a row of `output`; tensor=1, 2 or 4 would",
        ),
    ],
)
def test_a_model_that_cannot_be_split_says_what_would_fit(changes, multiple, tensor, message):
    config = dataclasses.replace(LLAMA_70B, **changes)
    with pytest.raises(UserError, match=message) as refused:
        check_split(config, multiple, {"tensor": tensor})
    assert "\n" not in str(refused.value)


def test_llama_70b_fits_four_devices_in_blocks_of_256():
    check_split(LLAMA_70B, 256, {"tensor": 4, "data": 1})


def test_the_blocks_of_a_model_are_seen():
    check_mesh(model_on(None), {"tensor": 8})
    with pytest.raises(UserError, match="the 8 kv heads; tensor=1, 2, 4 or 8 would"):
        check_mesh(model_on(None), {"tensor": 16})
    narrow = abstract(dataclasses.replace(CONFIG, ffn=4))
    with pytest.raises(UserError, match="the 4 hidden values of SwiGLU; tensor=1, 2 or 4 would"):
        check_mesh(narrow, {"tensor": 8})


def test_a_batch_that_cannot_be_split_says_what_would_fit():
    check_batch(None, 3)
    check_batch(make_mesh({"data": 4}), 8)
    with pytest.raises(UserError, match=r"data=4 does not divide a batch of 6; data=1, 2, 3 or 6"):
        check_batch(make_mesh({"data": 4}), 6)


def test_a_mesh_of_more_devices_than_there_are_says_how_to_have_more():
    with pytest.raises(UserError, match=r"tensor=8 takes 8 devices, there are 4; XLA_FL"):
        make_mesh({"tensor": 8})


def test_a_mesh_takes_the_first_devices_and_names_itself():
    mesh = make_mesh({"tensor": 2})
    assert [device.id for device in mesh.devices.flat] == [0, 1]
    assert named(mesh.shape) == "tensor=2"
    assert named(make_mesh({"data": 2, "tensor": 2}).shape) == "data=2,tensor=2"
    assert np.shape(mesh.devices) == (1, 2)
