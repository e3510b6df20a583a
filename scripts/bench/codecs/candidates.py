"""All candidates by name: the package's formats, rivals, and the tools one at a time.

Names say what is done: K and V alike unless they say otherwise, "K:" and "V:" pack that side alone
and leave the other exact. A base of b bits is `base(b)`: mean of the channels off K before RoPE and
off V, RoPE, Hadamard, cubic levels, an 8-bit scale for each 64 values. A lean one needs no
calibration: K's mean is that of the sequence's own first tokens, turned in steps of 16, and V has
none. "ring N" keeps, beside the packed tokens, an enhancement of the last N and of the first 4:
codes of what the packed ones are off.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from scripts.bench.codecs.allotment import allotted, costs
from scripts.bench.codecs.calibration import Moments
from scripts.bench.codecs.feedback import Feedback, feedback_rows
from scripts.bench.codecs.groups import GroupMean, PerChannel, Predicted, Tiles
from scripts.bench.codecs.packaged import packaged
from scripts.bench.codecs.passes import Candidate, Simulated
from scripts.bench.codecs.quantizers import (
    Asymmetric,
    LlamaCpp,
    Normed,
    Scaled,
    levels_cubic,
    levels_normal,
    levels_uniform,
)
from scripts.bench.codecs.reading import Window
from scripts.bench.codecs.sides import Exact, Independent, Known, Side
from scripts.bench.codecs.transforms import karhunen_loeve
from scripts.bench.codecs.trellis import Trellis

EXACT = Exact()
SINKS = 4

BENDS = {2: 0.0, 3: 0.03, 4: 0.007, 5: 0.0015, 6: 0.0004}
"""Of the cubic levels of each width of codes, for blocks of 64 normal values."""

TRIED = {
    2: (1.0, 1.3, 1.6, 1.9, 2.2),
    3: (0.85, 1.05, 1.25, 1.45, 1.65),
    4: (0.85, 0.95, 1.05, 1.15, 1.25),
    5: (0.85, 0.95, 1.05, 1.15, 1.25),
    6: (0.85, 0.95, 1.05, 1.15),
}
"""Scales that the encoder tries, as `Scaled` has them."""

FITTED = "Karhunen-Loève"
"""The map that `known` has learned."""

STEP = 16
"""Tokens that share one rotated mean, and those that it is made of where there is no other."""

FORMATS = (
    "f16",
    "q8_0",
    "q4_0",
    "q4_0:rotate",
    "delta:interval=16",
    "delta",
    "delta:interval=64",
    "layered",
    "layered:window=128",
    "layered:bits=3",
    "layered:bits=3:window=128",
    "layered:bits=2:window=128",
    "layered:window=0:sinks=0",
    "layered:block=32:window=0:sinks=0",
    "layered:centre",
    "layered:bits=3:centre",
    "layered:bits=2:window=128:centre",
    "layered:block=32:window=0:sinks=0:centre",
)
"""The specs of `formats`."""

SEARCHED = tuple(0.9 + 0.05 * i for i in range(14))


def codes(bits: int, block: int = 64) -> Scaled:
    """The quantiser of the recommended formats."""
    return Scaled(levels=levels_cubic(2**bits, BENDS[bits]), block=block, tried=TRIED[bits])


def base(bits: int, block: int = 64) -> Independent:
    """One side, packed at once."""
    return Independent(quantizer=codes(bits, block), mean="mean")


def lean(name: str, bits: int, **rest) -> Candidate:
    """Both sides without calibration."""
    q = codes(bits)
    keys = Independent(quantizer=q, own_mean=STEP, mean_step=STEP)
    return Simulated(name=name, k=keys, v=Independent(quantizer=q), **rest)


def ring(recent: int, bits: int = 4, sinks: int = SINKS) -> dict:
    """The enhancement of the last tokens, as arguments of a candidate."""
    window = Window(recent=recent, sliding=True, sinks=sinks, bits=bits + 8 / 64)
    return {"window": window, "enhancement": Scaled(levels=levels_uniform(2**bits))}


def both(name: str, side: Side | tuple[Side, ...], **rest) -> Candidate:
    """K and V alike."""
    return Simulated(name=name, k=side, v=side, **rest)


def alone(name: str, side: Side, **rest) -> list[Candidate]:
    """K by itself, and V by itself."""
    return [
        Simulated(name=f"K: {name}", k=side, v=EXACT, **rest),
        Simulated(name=f"V: {name}", k=EXACT, v=side, **rest),
    ]


def formats() -> Iterable[Candidate]:
    """The package's own, by their specs."""
    yield from map(packaged, FORMATS)


def rivals() -> Iterable[Candidate]:
    """What others store; `formats` has the codes of llama.cpp and the published scheme."""
    yield both("q5_0", Independent(quantizer=LlamaCpp(bits=5), map=None))
    for bits, recent in ((4, 32), (4, 128), (2, 32), (2, 128)):
        yield _kivi(bits, recent)
    for bits in (4, 3):
        yield both(f"TurboQuant-like {bits}", Independent(quantizer=Normed(bits=bits)))
    for k, v in ((4, 4), (4, 2)):
        tiles = Tiles(bits_of_code=k), Tiles(bits_of_code=v)
        window = Window(recent=tiles[0].tile)
        yield Simulated(name=f"KVarN-like {k}/{v}", k=tiles[0], v=tiles[1], window=window)


def _kivi(bits: int, recent: int) -> Candidate:
    values = Independent(quantizer=Asymmetric(bits=bits), map=None)
    return Simulated(
        name=f"KIVI-like {bits}, window {recent}",
        k=PerChannel(bits_of_code=bits),
        v=values,
        window=Window(recent=recent),
        v_window=Window(recent=recent, sliding=True),
    )


def origins() -> Iterable[Candidate]:
    """Which side the divergence comes from."""
    yield from alone("q4_0:rotate", Independent(quantizer=LlamaCpp(bits=4)))


def means() -> Iterable[Candidate]:
    """What is taken off the channels before RoPE."""
    q = codes(4)
    yield from alone("no mean", Independent(quantizer=q))
    yield from alone("mean", Independent(quantizer=q, mean="mean"))
    yield from alone("own mean of 16", Independent(quantizer=q, own_mean=16))
    for step in (4, 16):
        side = Independent(quantizer=q, mean="mean", mean_step=step)
        yield Simulated(name=f"K: mean in steps of {step}", k=side, v=EXACT)
    side = GroupMean(inner=Independent(quantizer=q), mean_quantizer=codes(4), group=32)
    for one in alone("mean of each group of 32", side):
        yield dataclasses.replace(one, note="look-ahead without a window: not cache-true")


def predictions() -> Iterable[Candidate]:
    """Inter prediction, about the mean and without it, K and V by themselves."""
    q = Scaled(levels=levels_uniform(16), block=32, tried=(0.9, 1.0, 1.1, 1.2, 1.3))
    make = functools.partial(Predicted, quantizer=q)
    before = Independent(quantizer=q, mean="mean", before_rope=True)
    three = (0.0, 0.5, 1.0)
    yield from alone("intra", Independent(quantizer=q, mean="mean"))
    yield from alone("intra, no mean", Independent(quantizer=q))
    yield Simulated(name="K: intra, before RoPE", k=before, v=EXACT)
    for name, coefficients in {"1": (1.0,), "0, 1/2 or 1": three}.items():
        yield from alone(name, make(coefficients=coefficients))
        yield from alone(f"{name}, no mean", make(coefficients=coefficients, mean=None))
    yield from alone("0 or 1", make(coefficients=(0.0, 1.0)))
    yield from alone("-1/2, 0 or 1/2", make(coefficients=(-0.5, 0.0, 0.5)))
    yield from alone("0, 1/2 or 1 by energy", make(coefficients=three, by_energy=True))
    yield from alone("0, 1/2 or 1 of the anchor", make(coefficients=three, anchor=True))
    turned = make(coefficients=three, before_rope=True)
    yield Simulated(name="K: 0, 1/2 or 1 before RoPE", k=turned, v=EXACT)


def quantizers() -> Iterable[Candidate]:
    """Levels, scales, blocks and frames; everything packed at once."""
    make = functools.partial(Independent, mean="mean")
    some = {
        "q4_0": LlamaCpp(bits=4),
        "uniform, largest, f16 per 32": Scaled(levels=levels_uniform(16), block=32, scale="f16"),
        "uniform, searched, f16 per 32": _uniform(32, "f16"),
        "uniform, searched, e5m3 per 32": _uniform(32),
        "uniform, searched, e5m3 per 64": _uniform(64),
        "cubic, largest, e5m3 per 64": Scaled(levels=levels_cubic(16, BENDS[4]), tried=(1.05,)),
        "cubic, searched, e5m3 per 64": codes(4),
        "cubic, searched, e5m3 per 32": codes(4, 32),
        "cubic, searched, e5m3 per 16": codes(4, 16),
        "Lloyd-Max, searched, e5m3 per 64": Scaled(levels=levels_normal(16), tried=SEARCHED),
        "trellis, e5m3 per 64": trellis(4),
    }
    for name, quantizer in some.items():
        yield both(name, make(quantizer=quantizer))
    for block in (64, 32):
        side = make(quantizer=codes(4, block), map=None)
        yield both(f"cubic, searched, e5m3 per {block}, no Hadamard", side)


def _uniform(block: int, scale: str = "e5m3") -> Scaled:
    return Scaled(levels=levels_uniform(16), block=block, scale=scale, tried=SEARCHED)


def trellis(bits: int, block: int = 64) -> Trellis:
    """Trellis-coded quantisation with levels for normal values."""
    levels = levels_normal(2 ** (bits + 1))
    tried = {2: (0.9, 1.15, 1.4, 1.65), 3: (0.85, 1.0, 1.15, 1.3), 4: (0.8, 0.9, 1.0, 1.1)}
    return Trellis(levels=levels, block=block, tried=tried[bits])


def transforms() -> Iterable[Candidate]:
    """A fitted transform in place of a Hadamard transform."""
    yield from alone("Hadamard", base(4, 32))
    yield from alone(FITTED, Independent(quantizer=codes(4, 32), mean="mean", map=FITTED))


def windows() -> Iterable[Candidate]:
    """Open groups and rings, in 16 bits and as an enhancement, over 4-bit codes."""
    four = base(4)
    yield both("base 4", four)
    yield both(f"base 4, sinks {SINKS}", four, window=Window(sinks=SINKS))
    for recent in (64, 128):
        window = Window(recent=recent, sinks=SINKS)
        yield both(f"base 4, open group {recent}", four, window=window)
        window = dataclasses.replace(window, sliding=True)
        yield both(f"base 4, last {recent}", four, window=window)
        yield both(f"base 4, ring {recent}", four, **ring(recent))
    for bits in (3, 6):
        yield both(f"base 4, ring 64 of {bits} bits", four, **ring(64, bits))
    yield both("base 4, ring 64, no sinks", four, **ring(64, sinks=0))
    yield lean("lean 4, ring 64", 4, **ring(64))
    tile = Tiles(bits_of_code=4)
    yield both("tiles, open group 128", tile, window=Window(recent=tile.tile, sinks=SINKS))


def widths() -> Iterable[Candidate]:
    """Bits of codes, with and without a ring."""
    for bits in (2, 3, 5):
        yield both(f"base {bits}", base(bits))
    for bits in (2, 3):
        yield both(f"base {bits}, ring 64", base(bits), **ring(64))
    for k, v in ((3, 2), (2, 3), (4, 2), (2, 4)):
        yield Simulated(name=f"base {k}/{v}, ring 64", k=base(k), v=base(v), **ring(64))
    for bits in (2, 3, 4):
        side = Independent(quantizer=trellis(bits), mean="mean")
        yield both(f"trellis {bits}, ring 64", side, **ring(64))


def budgets(moments: dict[str, Moments]) -> Iterable[Candidate]:
    """Bits allotted to sides and layers by what their errors cost, against equal bits."""
    for average, rest, name in (
        (4.375, {}, ""),
        (4.0, ring(64), ", ring 64"),
        (3.0, ring(64), ", ring 64"),
    ):
        bits = allotted(costs(moments, far=bool(rest)), average)
        k, v = (tuple(base(int(b)) for b in side) for side in bits)
        words = "".join(str(b) for b in bits.ravel())
        note = f"bits of K by layer, then of V: {words}"
        yield Simulated(name=f"allotted {average:g}{name}", k=k, v=v, note=note, **rest)
    yield from alone("error feedback", Feedback(quantizer=codes(4)))


Learned = dict[str, Moments]

FAMILIES: dict[str, Callable[[Learned], Iterable[Candidate]]] = {
    "formats": lambda learned: formats(),
    "rivals": lambda learned: rivals(),
    "origins": lambda learned: origins(),
    "means": lambda learned: means(),
    "predictions": lambda learned: predictions(),
    "quantizers": lambda learned: quantizers(),
    "transforms": lambda learned: transforms(),
    "windows": lambda learned: windows(),
    "widths": lambda learned: widths(),
    "budgets": lambda learned: budgets(learned),
}
"""What makes the candidates of each family for a model and what was learned of it."""


def candidates(families: Iterable[str], learned: Learned) -> list[Candidate]:
    """Those of the families, in order."""
    return [
        dataclasses.replace(one, family=family)
        for family in families
        for one in FAMILIES[family](learned)
    ]


def known(moments: dict[str, Moments]) -> Known:
    """What the sides look up: means, the fitted transform and error feedback."""
    maps = karhunen_loeve(moments, FITTED)
    found = {
        side: {"mean": one.mean, "feedback": feedback_rows(one.fisher), **maps[side]}
        for side, one in moments.items()
    }
    return jax.tree.map(jnp.asarray, found)
