"""A claim with the numbers that decide it, as it stands in the JSON.

A verdict is worked out from the numbers of the same record (`verdicts`) and never written by hand.
"""

import dataclasses

Interval = tuple[float | None, float | None]
"""Low and high: of a measurement, both None where it is unknown; of a claim, None is no bound."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
    """What was claimed, and how it was put to the test.

    Attributes:
      key: names it, the same in every file.
      title: a few words.
      published: what was claimed.
      experiment: what was done to decide it.
      commands: what to run for the same numbers.
      number: what the number of each case is.
      form: how a number is written, for `str.format`.
      condition: what a conditional claim needs; None where it is said of everything.
    """

    key: str
    title: str
    published: str
    experiment: str
    commands: tuple[str, ...]
    number: str
    form: str
    condition: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One measured number against what is claimed of it.

    Attributes:
      subject: what it was measured on.
      value: the number.
      low, high: its interval, equal to `value` where it is exact; None where it is unknown.
      claimed_low, claimed_high: the range that is claimed; None is no bound.
      kind: how the interval and the range decide, a name of `verdicts.RULES`.
      conditional: whether it was made under the claim's condition, where that has one.
      verdict: of `verdicts.judge`.
    """

    subject: str
    value: float
    low: float | None
    high: float | None
    claimed_low: float | None
    claimed_high: float | None
    kind: str
    conditional: bool
    verdict: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Further numbers, formatted."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim(Statement):
    """A statement and what became of it.

    Attributes:
      cases: the numbers that decide; none where nothing could be measured.
      tables: the numbers around them.
      rule: how the verdict follows from the cases.
      verdict: of `verdicts.conclude`.
      why: the verdict in a sentence.
    """

    cases: tuple[Case, ...]
    tables: tuple[Table, ...]
    rule: str
    verdict: str
    why: str
