"""Models from a checkpoint in memory."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize

from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.linear import PackedMatrix
from deltakv_jax.weights import Tokenizer, filling, storage
from deltakv_jax.weights.assemble import assemble
from deltakv_jax.weights.roles import layer_shapes, model_shapes
from deltakv_jax.weights.source import Tensor

CONFIG = LlamaConfig(
    vocab_size=50,
    width=64,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=96,
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=False,
    qkv_bias=True,
)
DENSE = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f64": np.float64}
KEY = ("key", 1)


class MemorySource:
    """Random tensors; `kinds` gives those of some roles and layers, `values` replaces some."""

    def __init__(self, kind: str = "f32", kinds: Mapping = {}, values: Mapping = {}):
        self.name, self.config = "memory", CONFIG
        self._kind, self._kinds, self._values = kind, dict(kinds), dict(values)
        self.reads: list[str] = []

    def tensor(self, role: str, layer: int | None = None) -> Tensor:
        name = role if layer is None else f"{role}.{layer}"
        shape = (model_shapes if layer is None else layer_shapes)(CONFIG)[role]
        kind = self._kinds.get((role, layer), self._kind) if len(shape) == 2 else "f32"

        def read() -> np.ndarray:
            self.reads.append(name)
            values = self.values_of(role, layer)
            return values.astype(DENSE[kind]) if kind in DENSE else quantize(values, _type(kind))

        values = lambda: (
            read().astype(np.float32) if kind in DENSE else dequantize(read(), _type(kind))
        )
        return Tensor(name, kind, shape, read, values)

    def values_of(self, role: str, layer: int | None = None) -> np.ndarray:
        shape = (model_shapes if layer is None else layer_shapes)(CONFIG)[role]
        seed = [*role.encode(), layer or 0]
        drawn = np.random.default_rng(seed).standard_normal(shape, np.float32)
        return self._values.get((role, layer), drawn)

    def check_all_used(self) -> None:
        pass

    def tokenizer(self) -> Tokenizer:
        raise NotImplementedError

    def save_tokenizer(self, folder: Path) -> None:
        raise NotImplementedError


def _type(kind: str) -> Type:
    return Type[kind.upper()]


def values(kind, row: int | None = None) -> np.ndarray:
    """Those of a matrix, or of one row of a stack."""
    at = ... if row is None else row
    if isinstance(kind, PackedMatrix):
        return np.asarray(kind.format.dequantize({k: v[at] for k, v in kind.arrays().items()}))
    return np.asarray(kind[...][at], np.float32)


def name_of(kind) -> str:
    return kind.format.name if isinstance(kind, PackedMatrix) else kind.dtype.name


def refused(source: MemorySource, weights: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        assemble(source, weights)
    assert "\n" not in str(error.value)


def test_float32_goes_through_as_it_is():
    source = MemorySource()
    model = assemble(source, "f32")
    for role in layer_shapes(CONFIG):
        leaf = getattr(model, role)
        stack = leaf.kinds[0] if hasattr(leaf, "kinds") else leaf
        expected = np.stack([source.values_of(role, layer) for layer in range(CONFIG.layers)])
        np.testing.assert_array_equal(stack[...], expected)
    np.testing.assert_array_equal(values(model.embedding.kind), source.values_of("embedding"))
    assert model.head is not None
    np.testing.assert_array_equal(values(model.head.kind), source.values_of("head"))
    np.testing.assert_array_equal(model.final_norm[...], source.values_of("final_norm"))
    assert model.query_norm is None
    assert model.config == CONFIG


def test_every_tensor_is_read_once():
    source = MemorySource("q8_0")
    assemble(source, "native")
    assert len(source.reads) == len(set(source.reads)) == 3 + 12 * CONFIG.layers


@pytest.mark.parametrize("weights", ["bf16", "f16", "q8_0", "q4_0"])
def test_matrices_are_stored_as_asked_for_and_vectors_in_float32(weights: str):
    source = MemorySource()
    model = assemble(source, weights)
    form = MATRICES[weights]
    assert {name_of(kind) for kind in (model.embedding.kind, *model.down.kinds)} == {weights}
    leaves = form.quantize(source.values_of("down", 2))
    expected = form.dequantize({key: jnp.asarray(leaf) for key, leaf in leaves.items()})
    np.testing.assert_array_equal(values(model.down.kinds[0], 2), expected)
    vectors = jax.tree.leaves((model.attention_norm, model.key_bias, model.final_norm))
    assert {vector.dtype for vector in vectors} == {np.dtype(np.float32)}


@pytest.mark.parametrize("chunk", [1, 700, 3000])
def test_chunks_make_no_difference(chunk: int, monkeypatch):
    whole = assemble(MemorySource("q4_0"), "native")
    monkeypatch.setattr(filling, "_CHUNK", chunk)
    parts = assemble(MemorySource("q4_0"), "native")
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_native_keeps_each_layer_in_its_own_type():
    source = MemorySource("q4_0", {("down", 1): "q8_0", ("embedding", None): "f16"})
    model = assemble(source, "native")
    assert [name_of(kind) for kind in model.down.kinds] == ["q4_0", "q8_0"]
    assert model.down.layout == ((0, 0), (1, 0), (0, 1))
    assert [name_of(kind) for kind in model.up.kinds] == ["q4_0"]
    assert model.up.layout is None
    assert name_of(model.embedding.kind) == "f16"
    for layer, (kind, row) in enumerate(model.down.layout or ()):
        expected = source.tensor("down", layer).values()
        np.testing.assert_array_equal(values(model.down.kinds[kind], row), expected)


def test_blocks_that_cannot_stay_packed_become_float32_on_a_cpu():
    source = MemorySource("q5_0")
    model = assemble(source, "native")
    expected = source.tensor("gate", 0).values()
    assert name_of(model.gate.kinds[0]) == "float32"
    np.testing.assert_array_equal(values(model.gate.kinds[0], 0), expected)


def test_blocks_of_the_type_asked_for_are_not_expanded(monkeypatch):
    source, given = MemorySource("q4_0"), MemorySource.tensor

    def tensor(self, role: str, layer: int | None = None) -> Tensor:
        one = given(self, role, layer)
        return dataclasses.replace(one, values=None) if one.kind == "q4_0" else one

    monkeypatch.setattr(MemorySource, "tensor", tensor)
    asked, native = (assemble(source, weights) for weights in ("q4_0", "native"))
    jax.tree.map(np.testing.assert_array_equal, asked, native)


@pytest.mark.parametrize(
    ("backend", "kind", "expected"),
    [
        ("cpu", "f16", "float32"),
        ("cpu", "q4_0", "q4_0"),
        ("cpu", "q5_0", "float32"),
        ("gpu", "f16", "float16"),
        ("gpu", "bf16", "bfloat16"),
        ("gpu", "f32", "float32"),
        ("gpu", "f64", "float32"),
        ("gpu", "q4_0", "q4_0"),
        ("gpu", "q5_0", "bfloat16"),
    ],
)
def test_the_default(monkeypatch, backend: str, kind: str, expected: str):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert name_of(assemble(MemorySource(kind)).gate.kinds[0]) == expected


def test_mixed_float_types_become_float32(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    model = assemble(MemorySource("f16", {KEY: "bf16"}))
    assert name_of(model.key.kinds[0]) == "float32"


def test_unknown_weights():
    known = "f32, bf16, f16, q8_0, q4_0, native"
    refused(MemorySource(), "int8", f"unknown weights 'int8'; known are {known}")


@pytest.mark.parametrize("weights", ["f32", "bf16", "q4_0", "q8_0"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(weights: str, bad: float):
    spoilt = MemorySource().values_of(*KEY).copy()
    spoilt[3, 40] = bad
    source = MemorySource(values={KEY: spoilt})
    refused(source, weights, "the tensor key.1 holds NaN or infinity")


@pytest.mark.parametrize(("weights", "size"), [("f16", 1e6), ("q4_0", 1e6), ("q8_0", 1e8)])
def test_values_beyond_the_type(weights: str, size: float):
    large = size * MemorySource().values_of(*KEY)
    source = MemorySource(values={KEY: large})
    assemble(source, "bf16")
    refused(source, weights, f"the tensor key.1 does not fit {weights}")


def test_a_norm_that_is_not_finite():
    source = MemorySource(values={("final_norm", None): np.full(64, np.nan, np.float32)})
    refused(source, "f32", "the tensor final_norm holds NaN or infinity")


def test_a_block_that_is_not_finite(monkeypatch):
    whole = quantize

    def spoil(values: np.ndarray, type_: Type) -> np.ndarray:
        raw = whole(values, type_)
        raw[0, :2] = np.array([np.nan], np.float16).view(np.uint8)
        return raw

    monkeypatch.setitem(globals(), "quantize", spoil)
    refused(MemorySource("q4_0"), "native", "the tensor embedding holds NaN or infinity")


def test_rows_that_are_no_whole_blocks(monkeypatch):
    monkeypatch.setattr(storage, "MATRICES", MATRICES | {"q4_0": MATRICES["q6_k"]})
    message = "the tensor embedding has rows of 64 values, q6_k stores multiples of 256"
    refused(MemorySource(), "q4_0", message)
