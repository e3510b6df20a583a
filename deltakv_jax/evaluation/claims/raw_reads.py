"""The way in which the published perplexities were made, beside the cache-true one."""

from deltakv_jax.evaluation.claims.commands import Asked, extent, perplexity_commands
from deltakv_jax.evaluation.claims.experiments import (
    BASE,
    DELTA,
    INTERVAL,
    PARTS,
    Evidence,
    row_of,
)
from deltakv_jax.evaluation.claims.record import Case, Claim, Statement, Table
from deltakv_jax.evaluation.claims.verdicts import case, decide
from deltakv_jax.evaluation.results import Run


def published_protocol(evidence: Evidence, asked: Asked) -> Claim:
    """Delta-KV costs nothing."""
    raw, true = evidence.runs["raw"], evidence.runs["short"]
    statement = Statement(
        key="published-protocol",
        title="Delta-KV costs nothing (the published protocol)",
        published=(
            "The published code changes its cache after a micro-batch is computed; with a chunk in "
            "one micro-batch its perplexity is F16's to the last digit."
        ),
        experiment=(
            "The same on purpose: attention inside a chunk reads K and V as they come, raw, NOT "
            f"cache-true ({extent(raw)}). Beside it the cache-true number ({extent(true)}). The "
            f"number is the largest KL divergence, of any token, from `{BASE}` read the same way."
        ),
        commands=(*perplexity_commands(raw, asked), *perplexity_commands(true, asked)),
        number="largest KL divergence, nats",
        form="{:.4g}",
        condition="attention reads K and V that are not packed yet, which is not cache-true",
    )
    cases = [
        *(_divergence(run, "raw, NOT cache-true", conditional=True) for run in raw),
        *(_divergence(run, "cache-true", conditional=False) for run in true),
    ]
    remark = evidence.missing.get("raw", "Attention that reads raw K and V never reads a delta.")
    return decide(statement, cases, tables=_tables(evidence), remark=remark)


def _divergence(run: Run, reads: str, *, conditional: bool) -> Case:
    largest = row_of(run, DELTA[INTERVAL]).kld_max
    return case(f"{run.text}, {reads}", largest, claimed=(0.0, 0.0), conditional=conditional)


def _tables(evidence: Evidence) -> list[Table]:
    rows = [
        (run.text, name, row.kv, f"{row.ppl:.4f}", f"{row.kld_mean:.4g}", f"{row.kld_max:.4g}")
        for part, name in (("raw", "raw, NOT cache-true"), ("short", "cache-true"))
        for run in evidence.runs[part]
        for row in (row_of(run, kv) for kv in PARTS["raw"].formats)
    ]
    if not rows:
        return []
    columns = ("text", "attention reads", "KV", "perplexity", "mean KLD", "largest KLD")
    return [
        Table(
            caption="Both ways to read, each on its own chunks",
            columns=columns,
            rows=tuple(rows),
        )
    ]
