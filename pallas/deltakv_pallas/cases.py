"""Named calls of the kernels, as shapes: what is compiled for GPUs that are not at hand."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deltakv_jax.cache import make_cache
from deltakv_jax.codec import parse_spec
from deltakv_jax.codec.matrices import MATRICES
from deltakv_jax.codec.matrix import Blocks
from deltakv_pallas.decode import attend_pallas
from deltakv_pallas.lowering import Target, TritonKernel, lower, triton_kernels
from deltakv_pallas.matvec import matvec
from deltakv_pallas.matvec_tuning import Tuning as MatvecTuning
from deltakv_pallas.tuning import Tuning

_TOKENS = 32768
_PACKED = (
    *("q8_0", "q4_0", "q4_0:rotate"),
    *("delta", "delta:interval=8", "delta:interval=128"),
    *("layered", "layered:bits=3", "layered:bits=2"),
)
_PLAIN = ("f32", "bf16", "f16")
_MIXED = ("delta/q4_0", "q8_0/q4_0")


class Case(NamedTuple):
    """One call of a kernel.

    Attributes:
      kernel: its name.
      format: what it reads.
      shape: in words.
      function: what is lowered.
      arguments: as shapes.
    """

    kernel: str
    format: str
    shape: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def lower(self, target: Target) -> TritonKernel:
        """The kernel as it is handed to the compiler of a GPU."""
        [kernel] = triton_kernels(lower(self.function, self.arguments, target))
        return kernel


def decode_case(spec: str, head_dim: int, heads: int, tuning: Tuning | None = None) -> Case:
    """One query token, with `heads` query heads for each of 8 kv heads."""
    shape = jax.ShapeDtypeStruct
    sizes = {"layers": 8, "kv_heads": 8, "head_dim": head_dim, "capacity": _TOKENS}
    cache = jax.eval_shape(functools.partial(make_cache, parse_spec(spec), **sizes))
    q = shape((1, 1, 8 * heads, head_dim), jnp.float32)
    arguments = (q, shape((1, 1), jnp.int32), cache, shape((), jnp.int32))
    words = f"head_dim {head_dim}, {heads} query heads"
    attend = functools.partial(attend_pallas, tuning=tuning)
    return Case("decode", spec, words, attend, arguments)


def decode_shapes() -> Iterable[tuple[str, int, int]]:
    """Every format, with the head_dims and the query heads of a kv head that models have."""
    for specs, head_dims in ((_PLAIN, (64, 80, 128)), (_PACKED, (64, 96, 128)), (_MIXED, (128,))):
        yield from itertools.product(specs, head_dims, (4, 8))


def decode_cases() -> Iterable[Case]:
    """A case for each of `decode_shapes`."""
    return itertools.starmap(decode_case, decode_shapes())


def matvec_case(
    format_: str, rows: int, values: int, batch: int = 1, tuning: MatvecTuning | None = None
) -> Case:
    """A few vectors by one matrix of a stack."""
    shape, form = jax.ShapeDtypeStruct, MATRICES[format_]
    if not isinstance(form, Blocks):
        raise TypeError(f"{format_} has no blocks")
    leaves = {
        name: shape((2, rows, *leaf.shape), leaf.dtype)
        for name, leaf in form.leaves(values).items()
    }
    product = lambda leaves, x, row: matvec([(form, leaves)], x, 0, row, tuning=tuning)
    words = f"{rows} x {values}, batch {batch}"
    arguments = (leaves, shape((batch, values), jnp.float32), shape((), jnp.int32))
    return Case("matvec", format_, words, product, arguments)


def matvec_shapes() -> Iterable[tuple[str, int, int, int]]:
    """Every format of blocks, with the matrices of Llama 3 70B and 8B, and batches."""
    formats = [name for name, form in MATRICES.items() if isinstance(form, Blocks)]
    matrices = ((8192, 8192), (1024, 8192), (28672, 8192), (8192, 28672), (14336, 4096))
    for name in formats:
        for rows, values in matrices:
            yield name, rows, values, 1
        yield name, 8192, 8192, 8


def matvec_cases() -> Iterable[Case]:
    """A case for each of `matvec_shapes`."""
    return itertools.starmap(matvec_case, matvec_shapes())


CASES: dict[str, Callable[[], Iterable[Case]]] = {"decode": decode_cases, "matvec": matvec_cases}
"""The cases of each kernel."""
