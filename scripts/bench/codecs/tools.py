"""Which candidate shows what a tool gives, and against which other; what came of it.

Names are those of `candidates`; "K: " and "V: " in front of a name pack that side alone.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tool:
    """A comparison of two candidates that differ in one thing.

    Attributes:
      what: the tool.
      candidate: with it.
      against: without it.
      used: whether it is in the format `layered`, and why, or why not; empty where two formats are
        compared and neither is a tool.
    """

    what: str
    candidate: str
    against: str
    used: str


def _alone(side: str, what: str, candidate: str, against: str, used: str) -> Tool:
    return Tool(f"{what}, {side}", f"{side}: {candidate}", f"{side}: {against}", used)


def _means() -> list[Tool]:
    ahead = "no: look-ahead, for little"
    return [
        _alone("K", "mean of the channels", "mean", "no mean", "`centre`"),
        _alone("V", "mean of the channels", "mean", "no mean", "`centre`, free to read"),
        _alone("K", "mean of the sequence's first 16", "own mean of 16", "no mean", _OWN),
        _alone("K", "the same against the calibrated one", "own mean of 16", "mean", _OWN),
        _alone("V", "mean of the sequence's first 16", "own mean of 16", "no mean", "no"),
        _alone("K", "mean turned in steps of 4", "mean in steps of 4", "mean", _STEPS),
        _alone("K", "mean turned in steps of 16", "mean in steps of 16", "mean", _STEPS),
        _alone("K", "mean of each group of 32", "mean of each group of 32", "mean", ahead),
        _alone("V", "mean of each group of 32", "mean of each group of 32", "mean", ahead),
    ]


_OWN = "no: the first tokens would have none"
_STEPS = "no: it costs"


def _predictions() -> list[Tool]:
    chain = "no: see the control, and reading is a chain"
    some = []
    for side in "KV":
        of = lambda *words, side=side: _alone(side, *words)
        some += [
            of("last token, no mean anywhere", "1, no mean", "intra, no mean", "`delta` only"),
            of("0, 1/2 or 1 of it, no mean", "0, 1/2 or 1, no mean", "intra, no mean", chain),
            of("last token, about the mean", "1", "intra", "no"),
            of("0 or 1 of it, about the mean", "0 or 1", "intra", chain),
            of("0, 1/2 or 1 of it, about the mean", "0, 1/2 or 1", "intra", chain),
            of("control: -1/2, 0 or 1/2", "-1/2, 0 or 1/2", "intra", "no"),
            of("prediction by that control", "0, 1/2 or 1", "-1/2, 0 or 1/2", chain),
            of(
                "chosen by the residual",
                "0, 1/2 or 1 by energy",
                "intra",
                "no: a chain",
            ),
            of("of the group's first token", "0, 1/2 or 1 of the anchor", "0, 1/2 or 1", "no"),
        ]
    return [
        *some,
        _alone("K", "before RoPE", "0, 1/2 or 1 before RoPE", "0, 1/2 or 1", "no"),
        _alone("K", "intra, before RoPE", "intra, before RoPE", "intra", "no"),
    ]


def _quantizers() -> list[Tool]:
    cubic, uniform = "cubic, searched, e5m3 per", "uniform, searched, e5m3 per"
    q = f"{cubic} 64"
    f16, fitted = "uniform, searched, f16 per 32", "no: learned, and no better on the demo"
    feedback = "no: a loop over channels in the encoder"
    return [
        Tool("Hadamard, scale per 64", q, f"{q}, no Hadamard", "yes"),
        Tool("Hadamard, scale per 32", f"{cubic} 32", f"{cubic} 32, no Hadamard", "yes"),
        _alone("K", "fitted transform in its place", "Karhunen-Loève", "Hadamard", fitted),
        _alone("V", "fitted transform in its place", "Karhunen-Loève", "Hadamard", fitted),
        Tool("levels without a 0", "uniform, largest, f16 per 32", "q4_0", "with the next"),
        Tool("scale of least error, uniform", f16, "uniform, largest, f16 per 32", "yes"),
        Tool("both together", f16, "q4_0", "yes"),
        Tool("scale of least error, cubic", q, "cubic, largest, e5m3 per 64", "yes"),
        Tool("scale in e5m3", f"{uniform} 32", f16, "yes"),
        Tool(
            "scale per 64, not 32, uniform", f"{uniform} 64", f"{uniform} 32", "yes, or `block=32`"
        ),
        Tool("scale per 64, not 32, cubic", q, f"{cubic} 32", "yes, or `block=32`"),
        Tool("scale per 16, not 32, cubic", f"{cubic} 16", f"{cubic} 32", "no"),
        Tool("cubic levels", q, f"{uniform} 64", "yes"),
        Tool("Lloyd-Max levels", "Lloyd-Max, searched, e5m3 per 64", q, "no: a table to look up"),
        Tool("trellis", "trellis, e5m3 per 64", q, _TRELLIS),
        Tool("trellis, 4 bits, ring", "trellis 4, ring 64", "base 4, ring 64", _TRELLIS),
        Tool("trellis, 3 bits, ring", "trellis 3, ring 64", "base 3, ring 64", _TRELLIS),
        Tool("trellis, 2 bits, ring", "trellis 2, ring 64", "base 2, ring 64", _TRELLIS),
        _alone("K", "error feedback", "error feedback", "mean", feedback),
        _alone("V", "error feedback", "error feedback", "mean", feedback),
    ]


_TRELLIS = "no: dear to decode, dearer to encode"


def _windows() -> list[Tool]:
    groups = [
        Tool(f"open group of {n} in 16 bits", f"base 4, open group {n}", "base 4", "no: a ring")
        for n in (64, 128)
    ]
    rings = [
        Tool(f"last {n} in place of it", f"base 4, last {n}", f"base 4, open group {n}", "yes")
        for n in (64, 128)
    ]
    refined = [
        Tool(f"4-bit refinement, last {n}", f"base 4, ring {n}", f"base 4, last {n}", "yes")
        for n in (64, 128)
    ]
    bits = "no: a word for each width"
    return [
        *groups,
        *rings,
        *refined,
        Tool("refinement of 3 bits", "base 4, ring 64 of 3 bits", "base 4, ring 64", bits),
        Tool("refinement of 6 bits", "base 4, ring 64 of 6 bits", "base 4, ring 64", bits),
        Tool("ring of 128, not 64", "base 4, ring 128", "base 4, ring 64", "`window=128`"),
        Tool("4 sinks, no window", "base 4, sinks 4", "base 4", "no"),
        Tool("4 sinks beside a ring", "base 4, ring 64", "base 4, ring 64, no sinks", "yes"),
        Tool(
            "KVarN-like tiles, mean on",
            "tiles, open group 128",
            "base 4, open group 128",
            _TILES,
        ),
    ]


_TILES = "no"


def _widths() -> list[Tool]:
    k = "no: equal widths are better"
    allot = "no: little, and not everywhere"
    return [
        Tool("5 bits, no window", "base 5", "base 4", "no"),
        Tool("3 bits, no window", "base 3", "base 4", "`bits=3`"),
        Tool("2 bits, no window", "base 2", "base 3", "`bits=2`"),
        Tool("3 bits, ring 64", "base 3, ring 64", "base 4, ring 64", "`bits=3`"),
        Tool("2 bits, ring 64", "base 2, ring 64", "base 3, ring 64", "`bits=2`"),
        Tool("V packed, not K: q4_0:rotate", "V: q4_0:rotate", "K: q4_0:rotate", ""),
        Tool("V packed, not K: mean off", "V: mean", "K: mean", ""),
        Tool("K 4, V 2", "base 4/2, ring 64", "base 3, ring 64", k),
        Tool("K 2, V 4", "base 2/4, ring 64", "base 3, ring 64", k),
        Tool("K 3, V 2, not K 2, V 3", "base 3/2, ring 64", "base 2/3, ring 64", ""),
        Tool("allotted to layers, 4.375 bits", "allotted 4.375", "base 4", allot),
        Tool("allotted, 4 bits, ring", "allotted 4, ring 64", "base 4, ring 64", allot),
        Tool("allotted, 3 bits, ring", "allotted 3, ring 64", "base 3, ring 64", allot),
        Tool("no calibration, 4 bits, ring", "lean 4, ring 64", "base 4, ring 64", _OWN),
    ]


TOOLS = (*_means(), *_predictions(), *_quantizers(), *_windows(), *_widths())
"""In the order of the table."""
