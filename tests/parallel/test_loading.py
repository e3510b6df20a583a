"""Models loaded straight into their shards: the same bits, and nothing whole anywhere."""

import collections
import dataclasses
import math
import weakref

import jax
import numpy as np
import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.model import Llama
from deltakv_jax.parallel.mesh import make_mesh
from deltakv_jax.parallel.sharding import MODEL_AXES, model_specs
from deltakv_jax.weights import filling
from deltakv_jax.weights.assemble import assemble
from deltakv_jax.weights.checkpoint import Checkpoint, save_checkpoint
from deltakv_jax.weights.source import Tensor
from tests.parallel.material import CONFIG, RandomSource, model_on, tensor4

# Rows of `output` and `down` that can be split in four parts of whole blocks of 256 values.
BLOCKS = dataclasses.replace(CONFIG, width=256, head_dim=64, ffn=1024, qkv_bias=True)
KINDS = {"head": "q4_0", "key": "bf16", "output": "q6_k", "up": "q5_k", "down": "q4_k"}


def assert_same(got: Llama, want: Llama) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    pairs = zip(*map(jax.tree_util.tree_leaves_with_path, (got, want)), strict=True)
    for (path, a), (_, b) in pairs:
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), path


def assert_placed(model: Llama, mesh) -> None:
    places = jax.tree.leaves(model_specs(model), is_leaf=lambda x: isinstance(x, jax.P))
    for leaf, spec in zip(jax.tree.leaves(model), places, strict=True):
        assert leaf.sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), leaf.ndim)


def test_blocks_of_every_type_come_out_as_on_one_device(monkeypatch):
    monkeypatch.setattr(filling, "_CHUNK", 2**16)  # several chunks of each matrix
    mesh = make_mesh({"tensor": 2, "data": 2})
    got, want = (assemble(RandomSource(BLOCKS, KINDS), "native", one) for one in (mesh, None))
    assert_same(got, want)
    assert_placed(got, mesh)


def test_a_converted_model_goes_into_its_shards(tmp_path):
    source = RandomSource()
    save_checkpoint(tmp_path / "model", source, model_on(None))
    got = Checkpoint(tmp_path / "model").model(None, tensor4())
    assert_same(got, model_on(None))
    assert_placed(got, tensor4())


def test_a_model_converted_on_a_mesh_is_the_same(tmp_path):
    save_checkpoint(tmp_path / "model", RandomSource(), model_on(tensor4()))
    assert_same(Checkpoint(tmp_path / "model").model(), model_on(None))


class WatchedSource(RandomSource):
    """Notes how much of what was read the host still has, and the devices, at each read."""

    def __init__(self):
        super().__init__(CONFIG, dict.fromkeys(MODEL_AXES, "q4_0"))
        self.on_host, self.host_peak, self.device_peak = 0, 0, 0
        self._before = {id(array) for array in jax.live_arrays()}

    def tensor(self, role: str, layer: int | None = None) -> Tensor:
        tensor = super().tensor(role, layer)
        return dataclasses.replace(tensor, read=lambda: self._read(tensor))

    def _read(self, tensor: Tensor) -> np.ndarray:
        values = tensor.read()
        self.on_host += values.nbytes
        weakref.finalize(values, self._forget, values.nbytes)
        self.host_peak = max(self.host_peak, self.on_host)
        self.device_peak = max(self.device_peak, self.held())
        return values

    def _forget(self, size: int) -> None:
        self.on_host -= size

    def held(self) -> int:
        """The most that any device has of what has been made since the beginning."""
        held = collections.Counter()
        for array in jax.live_arrays():
            if id(array) not in self._before:
                size = math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
                held.update(dict.fromkeys(array.sharding.device_set, size))
        return max(held.values(), default=0)


def test_no_host_has_more_than_a_matrix_and_no_device_more_than_its_share():
    source = WatchedSource()
    model = assemble(source, "native", tensor4())
    shares = source.held()
    assert shares < 0.26 * sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    blocks = CONFIG.heads * CONFIG.head_dim * CONFIG.width // 32
    assert source.host_peak == 18 * blocks
    assert source.device_peak <= shares


def test_a_model_that_cannot_be_split_is_refused_unread():
    source = WatchedSource()
    with pytest.raises(UserError, match=r"tensor=3 does not divide the 8 kv heads"):
        assemble(source, "q4_0", make_mesh({"tensor": 3}))
    assert source.host_peak == 0


def test_a_converted_model_that_cannot_be_split_is_refused(tmp_path):
    save_checkpoint(tmp_path / "model", RandomSource(), model_on(None))
    with pytest.raises(UserError, match=r"^tensor=3 does not divide the 8 kv heads"):
        Checkpoint(tmp_path / "model").model(None, make_mesh({"tensor": 3}))
