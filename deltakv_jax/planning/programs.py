"""The programs of a run, compiled from shapes: nothing is allocated but the compiler's own memory.

They are compiled for the machine's own CPU, as many virtual devices of it as the mesh has. What
they take in is the same on any device; what they need besides is that compiler's figure.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, Mesh, NamedSharding, use_abstract_mesh

from deltakv_jax.attention import Implementation
from deltakv_jax.cache import KVCache
from deltakv_jax.codec import KVSpec
from deltakv_jax.codec.matrix import Blocks
from deltakv_jax.generation import steps
from deltakv_jax.linear import PackedMatrix, multiplied_by
from deltakv_jax.model import Llama
from deltakv_jax.parallel.processes import virtual_devices
from deltakv_jax.parallel.sharding import BATCH, AnyMesh, cache_specs, model_specs, shardings
from deltakv_jax.planning import hlo


class Shapes(NamedTuple):
    """What a step takes in, as `ShapeDtypeStruct` that say where each part lies.

    Attributes:
      model: the model.
      cache: the cache, with room for all tokens.
      mesh: the devices, or None for a single one.
    """

    model: Llama
    cache: KVCache
    mesh: AnyMesh | None

    def given(self, dtype: Any, *axes: int) -> jax.ShapeDtypeStruct:
        """An array whose first axis is that of the sequences."""
        where = None if self.mesh is None else NamedSharding(self.mesh, BATCH)
        return jax.ShapeDtypeStruct((len(self.cache.lengths), *axes), dtype, sharding=where)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program, in bytes on each device.

    Attributes:
      argument_bytes: what it takes in.
      bytes: that, what it gives beyond what it was donated, and what it needs meanwhile.
      collectives: what it holds.
    """

    argument_bytes: int
    bytes: int
    collectives: list[hlo.Collective]


def use_cpu(devices: int) -> None:
    """Makes JAX, unless it has begun, see nothing but a CPU that counts as so many devices."""
    jax.config.update("jax_platforms", "cpu")
    virtual_devices(devices)


def named_mesh(mesh: Mesh | None, kind: str) -> AbstractMesh:
    """A mesh of the same shape of GPUs that JAX knows as `kind`, none of which need be there.

    To JAX 0.11 and later it says what Pallas is to lower for; 0.10 goes by the platform alone.
    """
    device = AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    if mesh is None:
        return AbstractMesh((), (), abstract_device=device)
    return AbstractMesh(mesh.axis_sizes, mesh.axis_names, mesh.axis_types, abstract_device=device)


def make_shapes(
    model: Llama, spec: KVSpec, mesh: AnyMesh | None, *, ctx: int, batch: int
) -> Shapes:
    """A model of shapes, and the cache of `batch` sequences of `ctx` tokens, all in place."""
    make = lambda: steps.empty_cache(model.config, spec, capacity=ctx, batch=batch)
    cache = jax.eval_shape(make)
    if mesh is None:
        return Shapes(model, cache, None)
    model = _placed(model, shardings(mesh, model_specs(model)))
    return Shapes(model, _placed(cache, shardings(mesh, cache_specs(cache))), mesh)


def device_bytes(shapes: Any) -> int:
    """Bytes that each device holds of a tree of shapes."""
    return sum(_leaf_bytes(leaf) for leaf in jax.tree.leaves(shapes))


def compile_decode(shapes: Shapes) -> Program:
    """The step that feeds one token to each sequence."""
    return _compiled(_traced_decode(shapes))


def compile_prefill(shapes: Shapes) -> Program:
    """The step that feeds a piece of a prompt to each sequence, the longest that fits."""
    tokens = shapes.given(jnp.int32, steps.piece_length(shapes.cache.capacity))
    counts = shapes.given(jnp.int32)
    logits = shapes.given(jnp.float32, shapes.model.config.vocab_size)
    traced = steps.prefill_piece.trace(
        shapes.model, tokens, counts, logits, shapes.cache, mesh=shapes.mesh
    )
    return _compiled(traced)


def lower_decode(shapes: Shapes, mesh: AbstractMesh, platform: str) -> str:
    """The decode step as a platform's compiler gets it, in StableHLO, with the kernels in it.

    Args:
      shapes: on `mesh`, or on a single device.
      mesh: a `named_mesh`.
      platform: "rocm" or "cuda".
    """
    with use_abstract_mesh(mesh):
        traced = _traced_decode(shapes._replace(model=_by_kernel(shapes.model)), "pallas")
        return traced.lower(lowering_platforms=(platform,)).as_text()


def _by_kernel(model: Llama) -> Llama:
    """The model with the kernel for packed matrices, unless some are not in blocks."""
    parts = (part for _, part in nnx.iter_modules(model) if isinstance(part, PackedMatrix))
    in_blocks = all(isinstance(part.format, Blocks) for part in parts)
    return multiplied_by(model, "pallas") if in_blocks else model


def _placed(shapes: Any, places: Any) -> Any:
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    return jax.tree.map(place, shapes, places)


def _leaf_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize


def _traced_decode(
    shapes: Shapes, implementation: Implementation | None = None
) -> jax.stages.Traced:
    tokens = shapes.given(jnp.int32)
    return steps.decode_step.trace(
        shapes.model, tokens, shapes.cache, mesh=shapes.mesh, implementation=implementation
    )


def _compiled(traced: jax.stages.Traced) -> Program:
    compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("this compiler does not say what memory its programs need")
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Program(
        memory.argument_size_in_bytes,
        memory.argument_size_in_bytes + new + memory.temp_size_in_bytes,
        hlo.collectives(compiled.as_text() or ""),
    )
