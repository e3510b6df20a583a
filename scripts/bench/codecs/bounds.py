"""What is asked of formats: no more than so many bits and so much divergence."""

import dataclasses

from scripts.bench.codecs.measuring import Figures

ROTATED = "q4_0:rotate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """A limit, and a format that is to keep it.

    Attributes:
      candidate: the format.
      ctx: of the texts on which it counts.
      bits: the most of a value.
      against: what its mean divergence is compared with.
      share: the most of that.
      change: the most of perplexity, in percent, that its 95 % interval may reach; None for any.
    """

    candidate: str
    ctx: int
    bits: float
    share: float
    against: str = ROTATED
    change: float | None = None

    @property
    def asked(self) -> str:
        """In words."""
        within = "" if self.change is None else f", perplexity within {self.change:g} %"
        return f"≤ {self.bits:g} bits, KLD ≤ {self.share:g} of the other's{within}"

    def met(self, one: Figures, other: Figures, interval: tuple[float, float] | None) -> bool:
        """Whether the figures keep it; a change of which no interval is known does not."""
        inside = self.change is None or (
            interval is not None and max(map(abs, interval)) <= self.change
        )
        return one.bits <= self.bits and one.kld_mean <= self.share * other.kld_mean and inside


def _on_long(bits: float, share: float, *candidates: str, **rest) -> tuple[Bound, ...]:
    make = lambda name: Bound(candidate=name, ctx=2048, bits=bits, share=share, **rest)
    return tuple(map(make, candidates))


_THREE = ("layered:bits=3", "layered:bits=3:centre", "layered:bits=3:window=128")
_TWO = ("layered:bits=2:window=128", "layered:bits=2:window=128:centre")

BOUNDS = (
    *_on_long(4.5, 1 / 8, "layered", "layered:centre", "layered:window=128", change=0.3),
    *_on_long(3.6, 1 / 2, *_THREE),
    *_on_long(2.75, 2, *_TWO),
    *_on_long(2.75, 1, *_TWO, against="KIVI-like 2, window 32"),
    *_on_long(2.75, 1, *_TWO, against="KIVI-like 2, window 128"),
    Bound(candidate="layered:block=32:window=0:sinks=0:centre", ctx=256, bits=4.5, share=1 / 2),
)
"""In the order of the table."""
