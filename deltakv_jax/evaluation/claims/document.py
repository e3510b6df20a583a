"""RESULTS.md, its claims made of findings alone: the same files give the same document."""

import textwrap
from collections.abc import Sequence

from deltakv_jax.evaluation import markdown
from deltakv_jax.evaluation.claims import verdicts
from deltakv_jax.evaluation.claims.findings import Findings
from deltakv_jax.evaluation.claims.record import Case, Claim, Table

WIDTH = 100

_TITLE = "# Results: a verdict on every published claim"
_INTRODUCTION = (
    "Made by `python scripts/claims.py` from its JSON files, and not by hand: each verdict "
    "follows from numbers by a rule, and both stand with it. Everything is cache-true unless it "
    "says that it is not: attention reads what the packed cache holds. Numbers in brackets are "
    "95 % intervals, or the range over layers where it says so."
)
_OTHER_MODEL = (
    "`python scripts/claims.py --model FOLDER --text FILE` adds a section on any other Llama."
)


END = "<!-- end of the claims -->\n"
"""What stands behind this line of the report is no claim, and is kept."""


def kept(report: str) -> str:
    """What a report has behind the claims, the line itself included."""
    _, line, rest = report.partition(END)
    return f"\n{line}{rest}" if line else ""


def render(found: Sequence[Findings]) -> str:
    """The whole document."""
    parts = [_TITLE, _wrapped(_INTRODUCTION), _wrapped(_OTHER_MODEL), _summary(found)]
    return "\n\n".join([*parts, *map(_section, found)]) + "\n"


def _summary(found: Sequence[Findings]) -> str:
    rows = [
        (claim.title, one.model or "no model", f"**{claim.verdict}**", _numbers(claim))
        for one in found
        for claim in one.claims
    ]
    return markdown.table(("claim", "on", "verdict", "measured"), rows).rstrip()


def _numbers(claim: Claim) -> str:
    """The numbers of a claim; of a conditional one those under its condition stand for it."""
    shown = [case for case in claim.cases if case.conditional == (claim.condition is not None)]
    numbers = (f"{verdicts.measured(case, claim.form)} ({case.subject})" for case in shown)
    return "; ".join(numbers) or claim.why


def _section(findings: Findings) -> str:
    title = "Without a model" if findings.model is None else f"Model: {findings.model}"
    made = (
        f"Made on {findings.device} with jax {findings.jax}, Python {findings.python}, deltakv_jax "
        f"{findings.version}, {findings.date}."
    )
    about = f"{findings.description}. {made}" if findings.description else made
    parts = [f"## {title}", _wrapped(about)]
    if findings.runs:
        true = [run for run in findings.runs if run.reads == "cache"]
        parts += ["### Perplexity", _extents(findings), markdown.runs_table(true).rstrip()]
    return "\n\n".join([*parts, *map(_claim, findings.claims)])


def _extents(findings: Findings) -> str:
    """How much was scored, for each run of the table."""
    each = (
        f"{run.text}, {run.ctx}: {run.chunks} chunks, {run.tokens_scored} predictions"
        for run in findings.runs
        if run.reads == "cache"
    )
    return _wrapped(f"Scored: {'; '.join(each)}. ± is one standard error of the paired difference.")


def _claim(claim: Claim) -> str:
    commands = "\n".join(claim.commands)
    parts = [
        f"### {claim.title}",
        _wrapped(f"**Claimed.** {claim.published}"),
        _wrapped(f"**Experiment.** {claim.experiment}"),
        f"```bash\n{commands}\n```" if commands else "",
        _cases(claim) if claim.cases else "",
        _wrapped(f"**Rule.** {claim.rule}"),
        _wrapped(f"**Verdict: {claim.verdict}.** {claim.why}"),
        *map(_further, claim.tables),
    ]
    return "\n\n".join(filter(None, parts))


def _cases(claim: Claim) -> str:
    columns = ("measured on", claim.number, "claimed", "verdict")
    return markdown.table(columns, [_case(case, claim.form) for case in claim.cases]).rstrip()


def _case(case: Case, form: str) -> tuple[str, ...]:
    number, claimed = verdicts.measured(case, form), verdicts.claimed(case, form)
    return case.subject, number, claimed, case.verdict


def _further(table: Table) -> str:
    rows = markdown.table(table.columns, table.rows).rstrip()
    return f"{_wrapped(table.caption + ':')}\n\n{rows}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
