"""All claims about models, each decided by what was measured on one model."""

from deltakv_jax.evaluation.claims import neighbours, perplexities, raw_reads, storage
from deltakv_jax.evaluation.claims.commands import Asked
from deltakv_jax.evaluation.claims.experiments import DELTA, Evidence
from deltakv_jax.evaluation.claims.record import Claim


def claims(evidence: Evidence, asked: Asked) -> list[Claim]:
    """Perplexity first, then bytes, the published protocol, and neighbouring tokens."""
    return [
        *(perplexities.within_limit(evidence, asked, interval) for interval in DELTA),
        perplexities.announced(evidence, asked),
        perplexities.plain_loss(evidence, asked),
        perplexities.loss_ratio(evidence, asked),
        perplexities.plain_loss_long(evidence, asked),
        perplexities.delta_loss_long(evidence, asked),
        storage.same_storage(evidence, asked),
        raw_reads.published_protocol(evidence, asked),
        neighbours.one_percent(evidence, asked),
        neighbours.value_by_difference(evidence, asked),
        neighbours.gain(evidence, asked),
    ]
