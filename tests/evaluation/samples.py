"""Runs with figures that a test can recognise, made without a model."""

from deltakv_jax.evaluation.profiles import Profile
from deltakv_jax.evaluation.results import LayerErrors, Row, Run

GROUP = 4  # tokens
ERRORS = (3e-4, 5e-3, 0.08, 0.07)
"""Of K in the first layer, for each format; V's are double, the output's three times as large."""


def profile(at: tuple[float, ...], kld: float) -> Profile:
    """Divergences that rise by a tenth from bin to bin."""
    zeros = (0.0,) * len(at)
    return Profile(
        at=at,
        kld=tuple(kld * (1 + i / 10) for i in range(len(at))),
        kld_stderr=tuple(kld / 20 for _ in at),
        delta_ln_ppl=zeros,
        delta_ln_ppl_stderr=zeros,
    )


def make_row(
    kv: str, bits: float, change: float, kld: float, *, error: float | None = None, ctx: int = 64
) -> Row:
    """A row whose perplexity is e^change times 20, its interval ±0.01 in ln(perplexity)."""
    positions = tuple(float(at) for at in range(ctx // 2, ctx - 1, 8))
    k, v, output = ((n * (error or 0), 2 * n * (error or 0)) for n in (1, 2, 3))
    errors = None if error is None else LayerErrors(k=k, v=v, output=output)
    return Row(
        kv=kv,
        ppl=20.0 + 20 * change,
        ppl_stderr=0.5,
        delta_ln_ppl=change,
        delta_ln_ppl_stderr=0.0 if change == 0 else 0.003,
        delta_ln_ppl_low=change - (0 if change == 0 else 0.01),
        delta_ln_ppl_high=change + (0 if change == 0 else 0.01),
        kld_mean=kld,
        kld_stderr=kld / 30,
        kld_median=kld / 2,
        kld_p99=5 * kld,
        kld_p999=10 * kld,
        kld_max=20 * kld,
        same_top=1 - 3 * kld,
        probability_rms=kld,
        bits_per_value=bits,
        kv_bytes=int(1000 * bits),
        by_position=profile(positions, kld),
        by_group_position=profile(tuple(map(float, range(GROUP))), kld),
        by_layer=errors,
        tokens_per_second=1000.0,
    )


def make_run(*, text: str = "a.txt", ctx: int = 64, by_layer: bool = False, **fields) -> Run:
    """f16, q8_0, q4_0 and delta on one text."""
    errors = ERRORS if by_layer else (None,) * 4
    rows = (
        make_row("f16", 16.0, 0.0, 0.0, error=errors[0], ctx=ctx),
        make_row("q8_0", 8.5, 0.0002, 1.6e-4, error=errors[1], ctx=ctx),
        make_row("q4_0", 4.5, 0.0122, 0.0398, error=errors[2], ctx=ctx),
        make_row("delta", 5.0, 0.0069, 0.035, error=errors[3], ctx=ctx),
    )
    plain = {
        "model": "tiny",
        "text": text,
        "text_sha256": "00",
        "protocol": "llama.cpp",
        "reads": "cache",
        "sequential": False,
        "ctx": ctx,
        "chunks": 4,
        "tokens_scored": 124,
        "rows": rows,
    }
    return Run(**plain | fields)
