"""What was claimed of bytes."""

from deltakv_jax.evaluation.claims.commands import Asked, perplexity_commands
from deltakv_jax.evaluation.claims.experiments import BASE, DELTA, PLAIN, Evidence, row_of
from deltakv_jax.evaluation.claims.record import Case, Claim, Statement, Table
from deltakv_jax.evaluation.claims.verdicts import case, decide
from deltakv_jax.evaluation.results import Run


def same_storage(evidence: Evidence, asked: Asked) -> Claim:
    """Bits per value of Delta-KV and of Q4_0."""
    runs = evidence.runs["short"][:1]  # the same on every text
    statement = Statement(
        key="same-storage",
        title="The same storage as Q4_0",
        published="Delta-KV takes the same storage as Q4_0.",
        experiment=(
            "Bytes of all arrays of a cache that holds one chunk, by the values in it, against "
            "those of `q4_0`. The keyframe's own slot of codes is counted, though unused."
        ),
        commands=perplexity_commands(runs, asked),
        number="bits per value",
        form="{:g}",
    )
    cases = [case for run in runs for case in _cases(run)]
    tables = [_table(run) for run in runs]
    return decide(statement, cases, tables=tables, remark=evidence.missing.get("short", ""))


def _cases(run: Run) -> list[Case]:
    plain = row_of(run, PLAIN).bits_per_value
    return [
        case(f"N = {interval}", row_of(run, kv).bits_per_value, claimed=(plain, plain))
        for interval, kv in DELTA.items()
    ]


def _table(run: Run) -> Table:
    counted = {name: row_of(run, kv) for name, kv in (("q4_0", PLAIN), ("f16", BASE))}
    counted |= {f"delta, N = {interval}": row_of(run, kv) for interval, kv in DELTA.items()}
    return Table(
        caption=f"A cache of {run.ctx} tokens; without the unused slot delta takes 4.5 + 11.5 / N",
        columns=("KV", "bits per value", "bytes"),
        rows=tuple(
            (name, f"{row.bits_per_value:g}", str(row.kv_bytes)) for name, row in counted.items()
        ),
    )
