"""How one side (K or V) of a cache is stored: one record per format, one table of all.

Nothing else in the project compares format names. A format describes its leaves (arrays with a
row per token or per group), turns float32 values into them and back, and gives the *terms* whose
running sum over a group are the values, so that attention can read the packed form.

Letters: t tokens (a multiple of the interval), d head_dim, g groups, n position in the group.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int

from deltakv_jax.codec import blocks, packing
from deltakv_jax.codec.hadamard import rotate
from deltakv_jax.codec.levels import EVEN, LEVELS, Levels, quantize_levels, scale_values
from deltakv_jax.codec.packing import BLOCK, PLANES, Planes
from deltakv_jax.errors import UserError
from deltakv_jax.typed import typed

Leaves = dict[str, Array]
Option = int | tuple[int, ...] | None
Per = Literal["token", "group"]
"""What a row of a leaf belongs to."""


class Unpack(NamedTuple):
    """How packed codes become numbers, which a kernel may do in a way of its own.

    Attributes:
      nibbles: words [*lead, w] -> the codes less 8, in planes [*lead, w].
      odd_nibbles: likewise twice the codes less 15.
      integers: int8 [*lead, d] -> the same numbers.
      part: [*lead, parts, n], and which part -> [*lead, n].
    """

    nibbles: Callable[[Array], Planes]
    odd_nibbles: Callable[[Array], Planes]
    integers: Callable[[Array], Array]
    part: Callable[[Array, int], Array]


EXACTLY = Unpack(
    packing.centred_nibbles,
    packing.odd_nibbles,
    lambda codes: codes.astype(jnp.float32),
    lambda parts, place: parts[..., place, :],
)
"""In float32, in which a code times its float16 scale is exact."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a stored side: rows of `width` numbers, one for each token or group.

    Attributes:
      per: what a row belongs to.
      width: numbers of a row.
      dtype: of the numbers.
      widened: whether rows of a larger head_dim would have more of them.
    """

    per: Per
    width: int
    dtype: Any
    widened: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A way to store one side. Hashable, so static under `jit`.

    Attributes:
      name: the word that names it in a spec.
      rotate: store the Hadamard transform along head_dim.
      interval: tokens that are coded together as a group.
      chained: whether a value is the running sum of the terms of its group up to it. If not, it
        is its own term, and the interval is 1.
      window: the last tokens, its own included, that a query reads with their refinement.
      sinks: the first tokens of a sequence, which every query does.
      centre: whether the mean of each channel is taken off, of keys before RoPE.
      options: the words that a spec may add: None for a flag, the smallest value of a number, or
        all that it may be.
    """

    name: str
    rotate: bool = False
    interval: int = 1
    window: int = 0
    sinks: int = 0
    centre: bool = False

    chained: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Option]] = {}

    def __str__(self) -> str:
        """The canonical spec of this side: options in order, defaults dropped."""
        words = [self.name]
        for option in self.options:
            if (value := getattr(self, option)) != getattr(FORMATS[self.name](), option):
                words.append(option if value is True else f"{option}={value}")
        return ":".join(words)

    @property
    def planes(self) -> int:
        """How many `split` makes."""
        return 1

    @property
    def operand(self) -> Any:
        """The dtype in which a kernel may multiply what is stored.

        Float16 where its rounding loses less than the format has, and its range holds the values.
        """
        return jnp.float16

    def leaves(self, head_dim: int) -> dict[str, Leaf]:
        """The arrays that hold one side. Raises UserError where head_dim does not fit."""
        raise NotImplementedError

    def encode(self, x: Array, new: Array, old: Leaves) -> Leaves:
        """The leaves of whole groups of which some tokens are new and some already stored.

        Args:
          x: float32 [*lead, t, d], read where `new`.
          new: bool [*lead, t]; in a group the new tokens follow the stored ones.
          old: the leaves of the same groups as they are.

        Returns:
          `old` with the new tokens written. Every other row keeps its bits.
        """
        raise NotImplementedError

    def append(self, x: Array, old: Leaves, n: Array) -> Leaves:
        """The rows of one token that follows the n stored ones of its group.

        Bit for bit what `encode` writes for it, without coding its whole group again.

        Args:
          x: float32 [*lead, 1, d].
          old: the leaves of its group.
          n: int [*lead], its position in the group.

        Returns:
          One row per leaf: the token's, and for leaves per group the group's.
        """
        raise NotImplementedError

    def near_leaves(self, head_dim: int) -> dict[str, Leaf]:
        """The arrays of refinements, a row for each token that has one."""
        del head_dim
        return {}

    def refine(self, x: Array, rows: Leaves) -> Leaves:
        """The rows of `near_leaves` for tokens x [*lead, t, d], whose packed rows these are."""
        raise NotImplementedError

    def refinement(self, near: Leaves) -> Planes:
        """What such rows add to what is packed: float32 planes [*lead, t, …], as the terms are."""
        raise NotImplementedError

    def split(self, x: Array) -> Planes:
        """[*lead, d] in the planes in which the terms are read."""
        return (x,)

    def join(self, planes: Planes) -> Array:
        """The inverse of `split`."""
        return planes[0]

    def terms(self, leaves: Leaves, unpack: Unpack = EXACTLY) -> Planes:
        """Planes [*lead, t, …] in the stored frame, that is rotated if `rotate`.

        A value is its own term, or, if `chained`, the sum of the terms of its group up to its
        own, behind the group's `base`. Where codes are unpacked, the terms are in the dtype of
        what `unpack` gives, and in float32 elsewhere.
        """
        raise NotImplementedError

    def base(self, leaves: Leaves) -> Array:
        """Float32 [*lead, g, d] in the stored frame: what a chain begins with."""
        raise NotImplementedError

    def stored(self, leaves: Leaves) -> Planes:
        """The reconstruction in the stored frame: float32 planes [*lead, t, …]."""
        terms = self.terms(leaves)
        if not self.chained:
            return terms
        return tuple(
            self._running_sum(term, base)
            for term, base in zip(terms, self.split(self.base(leaves)), strict=True)
        )

    def decode(self, leaves: Leaves) -> Array:
        """The reconstruction, float32 [*lead, t, d], in the frame of the values."""
        return self._stored_frame(self.join(self.stored(leaves)))

    def _running_sum(self, terms: Array, base: Array) -> Array:
        groups = terms.reshape(*base.shape[:-1], self.interval, base.shape[-1])
        return (base[..., None, :] + jnp.cumsum(groups, axis=-2)).reshape(terms.shape)

    def _stored_frame(self, x: Array) -> Array:
        """From the frame of the values to the stored one, or back."""
        return rotate(x) if self.rotate else x


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Independent(Format):
    """A format that stores every token by itself."""

    def quantize(self, x: Array) -> Leaves:
        """The leaves of float32 [*lead, t, d] in the stored frame."""
        raise NotImplementedError

    def encode(self, x: Array, new: Array, old: Leaves) -> Leaves:
        written = self.quantize(self._stored_frame(x))
        return {key: jnp.where(new[..., None], written[key], old[key]) for key in old}

    def append(self, x: Array, old: Leaves, n: Array) -> Leaves:
        del old, n
        return self.quantize(self._stored_frame(x))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dense(_Independent):
    """Values as they are: x ≈ values."""

    dtype: Any

    @property
    def operand(self) -> Any:
        """The dtype of the values."""
        return self.dtype

    def leaves(self, head_dim: int) -> dict[str, Leaf]:
        return {"values": Leaf("token", head_dim, self.dtype)}

    def quantize(self, x: Array) -> Leaves:
        return {"values": x.astype(self.dtype)}

    def terms(self, leaves: Leaves, unpack: Unpack = EXACTLY) -> Planes:
        del unpack
        return (leaves["values"].astype(jnp.float32),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BF16(_Independent):
    """The upper half of each float32, rounded to nearest even, as the bits that it is.

    Not as bfloat16 numbers: XLA:CPU widens a whole bfloat16 leaf to float32 wherever a loop
    slices or updates it, 51 ms instead of 0.1 for 12 tokens in a leaf of 50 MB.
    """

    name: str = "bf16"

    @property
    def operand(self) -> Any:
        """Float32, as float16 has not the range."""
        return jnp.float32

    def leaves(self, head_dim: int) -> dict[str, Leaf]:
        return {"bits": Leaf("token", head_dim, jnp.uint16)}

    def quantize(self, x: Array) -> Leaves:
        return {"bits": jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)}

    def terms(self, leaves: Leaves, unpack: Unpack = EXACTLY) -> Planes:
        del unpack
        return (jax.lax.bitcast_convert_type(leaves["bits"].astype(jnp.uint32) << 16, jnp.float32),)


def _check_multiple(head_dim: int, least: int, name: str) -> None:
    if head_dim % least:
        raise UserError(
            f"{name} needs a head_dim that is a multiple of {least}, this model's is {head_dim}; "
            "f32, bf16 and f16 hold any"
        )


def _block_leaves(head_dim: int, name: str, codes: Leaf) -> dict[str, Leaf]:
    _check_multiple(head_dim, BLOCK, name)
    return {"codes": codes, "scales": Leaf("token", head_dim // BLOCK, jnp.float16)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Q8_0(_Independent):  # noqa: N801
    """x ≈ codes * scale, int8 codes, a float16 scale per 32 values along head_dim."""

    name: str = "q8_0"
    options: ClassVar = {"rotate": None}

    def leaves(self, head_dim: int) -> dict[str, Leaf]:
        return _block_leaves(head_dim, self.name, Leaf("token", head_dim, jnp.int8))

    def quantize(self, x: Array) -> Leaves:
        return dict(zip(("codes", "scales"), blocks.quantize_q8_0(x), strict=True))

    def terms(self, leaves: Leaves, unpack: Unpack = EXACTLY) -> Planes:
        numbers = unpack.integers(leaves["codes"])
        return (blocks.scaled(numbers, leaves["scales"]),)


class _NibblePlanes:
    """Terms of 4-bit codes, read in the four planes in which they lie."""

    @property
    def planes(self) -> int:
        return PLANES

    def split(self, x: Array) -> Planes:
        return packing.split_planes(x)

    def join(self, planes: Planes) -> Array:
        return packing.join_planes(*planes)

    def terms(self, leaves: Leaves, unpack: Unpack = EXACTLY) -> Planes:
        return blocks.dequantize_q4_0_planes(leaves["codes"], leaves["scales"], unpack.nibbles)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Q4_0(_NibblePlanes, _Independent):  # noqa: N801
    """x ≈ (codes - 8) * scale, 4-bit codes, a float16 scale per 32 values along head_dim."""

    name: str = "q4_0"
    options: ClassVar = {"rotate": None}

    def leaves(self, head_dim: int) -> dict[str, Leaf]:
        return _block_leaves(head_dim, self.name, Leaf("token", head_dim // PLANES, jnp.uint16))

    def quantize(self, x: Array) -> Leaves:
        return dict(zip(("codes", "scales"), blocks.quantize_q4_0(x), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Delta(_NibblePlanes, Format):
    """A float16 keyframe every `interval` tokens, and 4-bit differences in between.

    r_0 = keyframe; r_n = r_{n-1} + q4_0(x_n - r_{n-1}): the encoder predicts from the decoder's
    reconstruction (closed loop), so its error does not grow along the group. The base is the
    keyframe, the terms are the dequantised differences, whose scales have 8 significant bits. The
    keyframe's own slot of codes stays zero: a row per token keeps groups aligned for kernels, for
    4.5 / interval bits a value.
    """

    name: str = "delta"
    interval: int = 32
    chained: ClassVar = True
    options: ClassVar = {"rotate": None, "interval": 2}

    def leaves(self, head_dim: int) -> dict[str, Leaf]:
        return {
            **_block_leaves(head_dim, self.name, Leaf("token", head_dim // PLANES, jnp.uint16)),
            "keyframes": Leaf("group", head_dim, jnp.float16),
        }

    @typed
    def encode(
        self, x: Float32[Array, "*lead t d"], new: Bool[Array, "*lead t"], old: Leaves
    ) -> Leaves:
        grouped = lambda a, axis: jnp.moveaxis(
            a.reshape(*a.shape[:axis], -1, self.interval, *a.shape[axis:][1:]), axis, 0
        )
        x, new = grouped(self._stored_frame(x), -2), grouped(new, -1)[..., None]
        codes, scales = grouped(old["codes"], -2), grouped(old["scales"], -2)
        keyframes = jnp.where(new[0], x[0].astype(jnp.float16), old["keyframes"])

        def step(r: Array, at: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
            x, new, *stored = at
            written = blocks.quantize_short_q4_0(x - r)
            codes, scales = (jnp.where(new, *pair) for pair in zip(written, stored, strict=True))
            return r + blocks.dequantize_q4_0(codes, scales), (codes, scales)

        rest = (x[1:], new[1:], codes[1:], scales[1:])
        _, later = jax.lax.scan(step, keyframes.astype(jnp.float32), rest)
        ungrouped = lambda first, later, like: jnp.moveaxis(
            jnp.concatenate([first[:1], later]), 0, -2
        ).reshape(like.shape)
        return {
            "codes": ungrouped(codes, later[0], old["codes"]),
            "scales": ungrouped(scales, later[1], old["scales"]),
            "keyframes": keyframes,
        }

    @typed
    def append(self, x: Float32[Array, "*lead 1 d"], old: Leaves, n: Int[Array, "*lead"]) -> Leaves:
        x, n = self._stored_frame(x), n[..., None, None]
        codes, scales = blocks.quantize_short_q4_0(x - self._predictor(old, n))
        return {
            "codes": jnp.where(n == 0, 0, codes).astype(codes.dtype),
            "scales": jnp.where(n == 0, 0, scales).astype(jnp.float16),
            "keyframes": jnp.where(n == 0, x.astype(jnp.float16), old["keyframes"]),
        }

    def _predictor(self, leaves: Leaves, n: Array) -> Array:
        """r_{n-1}, float32 [*lead, 1, d], summed in the order in which `encode` sums."""
        differences = blocks.dequantize_q4_0(leaves["codes"], leaves["scales"])
        terms = jnp.moveaxis(differences, -2, 0)[..., None, :]
        add = lambda at, r: jnp.where(at < n, r + terms[at], r)
        return jax.lax.fori_loop(1, jnp.max(n), add, self.base(leaves))

    def base(self, leaves: Leaves) -> Array:
        return leaves["keyframes"].astype(jnp.float32)


_LAYERED_MULTIPLE = 16
"""What divides head_dim: as many values, at least, are mixed by the transform."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layered(_Independent):
    """A base layer of few bits, and an enhancement layer for the tokens that matter most.

    Scalable coding, in which a video's frames come in a coarse layer and a refinement: every token
    is packed at once, in the Hadamard frame, as scale * level (`codec/levels.py`). The last
    `window` tokens and the first `sinks` also have 4-bit codes of what they are off. As a token
    leaves the window its refinement is overwritten; what is packed never changes.

    Attributes:
      bits: of a code of the base layer.
      block: the most values that share a scale: a row is halved until its parts have no more.
    """

    name: str = "layered"
    rotate: bool = True
    bits: int = 4
    block: int = 64
    window: int = 64
    sinks: int = 4
    options: ClassVar = {
        "bits": (2, 3, 4), "block": (16, 32, 64), "window": 0, "sinks": 0, "centre": None
    }  # fmt: skip

    @property
    def planes(self) -> int:
        return 8 if self.bits == 3 else PLANES

    def leaves(self, head_dim: int) -> dict[str, Leaf]:
        _check_multiple(head_dim, _LAYERED_MULTIPLE, self.name)
        width, word = head_dim // self.planes, jnp.uint8 if self.bits == 2 else jnp.uint16
        high = {"high": Leaf("token", width, jnp.uint8)} if self.bits == 3 else {}
        return {"codes": Leaf("token", width, word), **high, "scales": self._scales(head_dim)}

    def near_leaves(self, head_dim: int) -> dict[str, Leaf]:
        if not self.window and not self.sinks:
            return {}
        codes = Leaf("token", head_dim // PLANES, jnp.uint16)
        return {"codes": codes, "scales": self._scales(head_dim)}

    def _scales(self, head_dim: int) -> Leaf:
        return Leaf("token", head_dim // self._block(head_dim), jnp.uint8, widened=False)

    def quantize(self, x: Array) -> Leaves:
        codes, scales = quantize_levels(x, self._levels, self._block(x.shape[-1]))
        if self.bits != 3:
            return {"codes": packing.pack_parts(codes, PLANES, self.bits), "scales": scales}
        low, high = (packing.pack_parts(*part) for part in ((codes & 3, 8, 2), (codes >> 2, 8, 1)))
        return {"codes": low, "high": high, "scales": scales}

    def refine(self, x: Array, rows: Leaves) -> Leaves:
        left = self._stored_frame(x) - self.join(self.terms(rows))
        codes, scales = quantize_levels(left, EVEN, self._block(x.shape[-1]))
        return {"codes": packing.pack_parts(codes, PLANES, 4), "scales": scales}

    def refinement(self, near: Leaves) -> Planes:
        written = near["scales"] > 0  # a row that holds no token adds nothing
        scales = jnp.where(written, scale_values(near["scales"]), 0.0)
        planes = self._scaled(packing.odd_nibbles(near["codes"]), scales, EXACTLY)
        return planes if self.planes == PLANES else self.split(self.join(planes))

    def split(self, x: Array) -> Planes:
        return tuple(jnp.split(x, self.planes, axis=-1))

    def join(self, planes: Planes) -> Array:
        return jnp.concatenate(planes, axis=-1)

    def terms(self, leaves: Leaves, unpack: Unpack = EXACTLY) -> Planes:
        levels = tuple(map(self._levels.of, self._odd(leaves, unpack)))
        return self._scaled(levels, scale_values(leaves["scales"]), unpack)

    def _scaled(self, planes: Planes, scales: Array, unpack: Unpack) -> Planes:
        """Each plane times its scales [*lead, blocks]: it is of one block or of several."""
        count = len(planes)
        parts = scales.reshape(*scales.shape[:-1], min(scales.shape[-1], count), -1)
        of = lambda place: unpack.part(parts, place * parts.shape[-2] // count)
        return tuple(blocks.scaled(plane, of(place)) for place, plane in enumerate(planes))

    def _odd(self, leaves: Leaves, unpack: Unpack) -> Planes:
        """The odd numbers of all planes."""
        if self.bits == 4:
            return unpack.odd_nibbles(leaves["codes"])
        codes = packing.parts(leaves["codes"], self.planes, 2)
        if self.bits == 3:
            high = packing.parts(leaves["high"], self.planes, 1)
            codes = tuple(low | bit << 2 for low, bit in zip(codes, high, strict=True))
        odd = (code.astype(jnp.int8) * 2 + 1 - self._levels.count for code in codes)
        return tuple(map(unpack.integers, odd))

    @property
    def _levels(self) -> Levels:
        return LEVELS[self.bits]

    def _block(self, head_dim: int) -> int:
        """Values of a block."""
        size = head_dim
        while size > self.block and size % 2 == 0:
            size //= 2
        return size


FORMATS: dict[str, Callable[..., Format]] = {
    "f32": lambda: _Dense(name="f32", dtype=jnp.float32),
    "bf16": _BF16,
    "f16": lambda: _Dense(name="f16", dtype=jnp.float16),
    "q8_0": _Q8_0,
    "q4_0": _Q4_0,
    "delta": _Delta,
    "layered": _Layered,
}
