"""Stacks that a kernel could not count in are cut; the rest is as it was."""

import jax
import numpy as np
import pytest

from deltakv_jax.codec import parse_spec
from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.generation.steps import empty_cache, prefill
from deltakv_jax.linear import Stack
from deltakv_jax.parallel.mesh import make_mesh
from deltakv_jax.planning.models import plan_model
from deltakv_jax.planning.presets import PRESETS
from deltakv_jax.weights import stacking
from deltakv_jax.weights.assemble import assemble
from deltakv_jax.weights.checkpoint import Checkpoint, save_checkpoint
from deltakv_jax.weights.roles import layer_shapes
from deltakv_jax.weights.stacking import stack_layers
from deltakv_jax.weights.storage import Packed
from deltakv_pallas.lowering import addressable
from tests.parallel.material import CONFIG, RandomSource, model_on

Q4_0, Q6_K = (Packed(MATRICES[name]) for name in ("q4_0", "q6_k"))


def of_70b(role: str, tensor: int, stores=(Q4_0,) * 80) -> list[int]:
    """Layers of each stack of Llama 3.1 70B."""
    rows, values = layer_shapes(PRESETS["llama3.1-70b"])[role]
    found = stack_layers(role, stores, (rows, values), {"tensor": tensor})
    return [len(layers) for layers in found.layers]


@pytest.mark.parametrize(
    ("role", "tensor", "layers"),
    [
        ("query", 1, [40, 40]),  # 2.68e9 bytes of codes
        ("output", 1, [40, 40]),
        ("query", 4, [80]),
        ("key", 1, [80]),
        ("down", 1, [80]),  # 9.4e9, which are counted in 64 bits
        ("down", 4, [40, 40]),  # 2.35e9 on each device
        ("gate", 4, [40, 40]),
    ],
)
def test_stacks_of_70b(role, tensor, layers):
    assert of_70b(role, tensor) == layers


def test_an_odd_number_of_layers_and_kinds_that_alternate():
    stores = [Q6_K if layer % 9 == 0 else Q4_0 for layer in range(80)]
    rows, values = layer_shapes(PRESETS["llama3.1-70b"])["query"]
    found = stack_layers("query", stores, (rows, values), {})
    assert found.stores == [Q6_K, Q4_0, Q4_0]
    assert [len(layers) for layers in found.layers] == [9, 36, 35]
    assert found.layout is not None
    for layer, (kind, row) in enumerate(found.layout):
        assert (found.layers[kind][row], found.stores[kind]) == (layer, stores[layer])


@pytest.mark.parametrize("bits", [31, 32])
def test_what_a_kernel_can_count_in(bits):
    assert addressable(2**31, 1)
    assert addressable(2**bits + 1, 1) == (bits == 32)
    assert addressable(2**31 + 1, 2)


def bound(monkeypatch, most: int) -> None:
    """As if kernels could not count in more than so many bytes."""
    monkeypatch.setattr(stacking, "addressable", lambda size, itemsize: size * itemsize <= most)


def logits(model) -> np.ndarray:
    cache = empty_cache(model.config, parse_spec("f32"), capacity=32)
    return np.asarray(prefill(model, [[1, 5, 9]], cache)[0])


def stacks(model) -> dict[str, int]:
    parts = {role: getattr(model, role) for role in layer_shapes(CONFIG)}
    return {role: len(part.kinds) for role, part in parts.items() if isinstance(part, Stack)}


def test_a_model_in_two_stacks_is_the_same_model(tmp_path, monkeypatch):
    whole = model_on(None)
    bound(monkeypatch, 2**15)  # one layer of `query` and `output`, and both of all others
    cut = assemble(RandomSource(), "q4_0")
    assert set(stacks(whole).values()) == {1}
    assert {role for role, count in stacks(cut).items() if count == 2} == {"query", "output"}
    np.testing.assert_allclose(logits(cut), logits(whole), rtol=1e-5, atol=1e-5)
    save_checkpoint(tmp_path / "model", RandomSource(), cut)
    loaded = Checkpoint(tmp_path / "model").model()
    jax.tree.map(np.testing.assert_array_equal, loaded, cut)
    planned = plan_model(str(tmp_path / "model"), None, on_cpu=True).model
    assert jax.tree.structure(planned) == jax.tree.structure(cut)


def test_bytes_count_on_each_device(monkeypatch):
    mesh = make_mesh({"tensor": 4})
    bound(monkeypatch, 2**15)
    assert stacks(assemble(RandomSource(), "q4_0", mesh))["query"] == 1
    bound(monkeypatch, 2**13)
    assert stacks(assemble(RandomSource(), "q4_0", mesh))["query"] == 2
