"""The claims that need no model: arithmetic, random numbers, and what nobody here can run."""

from deltakv_jax.evaluation.claims import synthetic
from deltakv_jax.evaluation.claims.record import Case, Claim, Statement, Table
from deltakv_jax.evaluation.claims.verdicts import case, decide

COMMAND = "python scripts/claims.py"
GAIN = 166.0  # of the worked value
SCALES = (170, 100, 10, 2, 1)
WALKS = {0.01: 10778.0, 0.05: 991.0, 0.10: 609.0, 0.20: 495.0}  # by drift


def claims() -> list[Claim]:
    """Each with its experiment done, in some ten seconds."""
    return [worked_value(), random_walk(), large_model()]


def near(published: float) -> tuple[float, float]:
    """What counts as the published number: within 10 % of it."""
    return 0.9 * published, 1.1 * published


def worked_value() -> Claim:
    """0.5432 and 0.0032."""
    value, difference = synthetic.worked(0.5432, 0.5100), synthetic.worked(0.0032, 0.0030)
    smaller = value.largest / difference.largest
    statement = Statement(
        key="worked-value",
        title="166 times less error in one worked value",
        published=(
            "0.5432 quantised to 0.5100 (error 0.0332), a delta 0.0032 quantised to 0.0030 (error "
            "0.0002): 166 times less."
        ),
        experiment=(
            "The arithmetic; then both through q4_0, a step of which is an eighth of the largest "
            "magnitude in a block of 32, so that its error is as large as its block. 0.5432 comes "
            f"back as {value.decoded:.4f} where the largest magnitude is {value.largest:.3f} (or "
            f"more, as fewer steps), and 0.0032 as {difference.decoded:.4f} where it is "
            f"{difference.largest:.5f}, {smaller:.0f} times less. Last, whole blocks of uniform "
            "values and of differences as large as they."
        ),
        commands=(COMMAND,),
        number="error of the value by error of the difference",
        form="{:.1f}",
        condition="the differences of a block are about 170 times smaller than its values",
    )
    ours = f"q4_0, block maxima {smaller:.0f} times apart"
    arithmetic = (0.5432 - 0.5100) / (0.0032 - 0.0030)
    claimed = near(GAIN)
    cases = [
        case("the published numbers", arithmetic, claimed=claimed, conditional=True),
        case(ours, value.error / difference.error, claimed=claimed, conditional=True),
        case("q4_0, block maxima alike", synthetic.scale_gain(1), claimed=claimed),
    ]
    return decide(statement, cases, tables=[_scales()])


def _scales() -> Table:
    return Table(
        caption="RMS error of q4_0 on uniform values, by that on uniform differences",
        columns=("differences smaller", "error smaller"),
        rows=tuple((f"{times}", f"{synthetic.scale_gain(times):.1f}") for times in SCALES),
    )


def random_walk() -> Claim:
    """The synthetic table."""
    statement = Statement(
        key="random-walk",
        title="10,778 to 495 times less error on a random walk",
        published=(
            "A synthetic random walk gives 10,778 times less mean squared error at 1 % drift, 991 "
            "at 5 %, 609 at 10 % and 495 at 20 %."
        ),
        experiment=(
            f"{synthetic.TOKENS} tokens of {synthetic.CHANNELS} channels; the first token uniform "
            "in [-1, 1], each step the drift times a uniform number in [-1, 1]; `q4_0` and `delta` "
            f"(closed loop, a float16 keyframe every {synthetic.DELTA.interval} tokens). The mean "
            f"of {synthetic.SEEDS} walks with its 95 % interval; then the same with normal steps."
        ),
        commands=(COMMAND,),
        number="mean squared error of q4_0 by that of delta",
        form="{:,.0f}",
        condition="tokens are a random walk of uniform steps",
    )
    cases = [_walk_case(drift, normal=normal) for normal in (False, True) for drift in WALKS]
    remark = "K and V of a model are no such walk: their own ratio stands with each model."
    return decide(statement, cases, tables=[_walks()], remark=remark)


def _walk_case(drift: float, *, normal: bool) -> Case:
    gain = synthetic.walk_gain(drift, normal=normal).mean
    reach = 1.96 * gain.stderr
    return case(
        f"{100 * drift:g} % drift, {'normal' if normal else 'uniform'} steps",
        gain.value,
        (gain.value - reach, gain.value + reach),
        claimed=near(WALKS[drift]),
        conditional=not normal,
    )


def _walks() -> Table:
    return Table(
        caption="Mean of all walks (least to most of one walk)",
        columns=("drift", "published", "uniform steps", "normal steps"),
        rows=tuple(
            (f"{100 * drift:g} %", f"{published:,.0f}", _spread(drift, False), _spread(drift, True))
            for drift, published in WALKS.items()
        ),
    )


def _spread(drift: float, normal: bool) -> str:
    gain = synthetic.walk_gain(drift, normal=normal)
    return f"{gain.mean.value:,.0f} ({gain.least:,.0f} to {gain.most:,.0f})"


def large_model() -> Claim:
    """The model of which the headline was claimed."""
    perplexity = "python scripts/perplexity.py --model FOLDER --text wikitext-2 --chunks 20"
    formats = "f16 q4_0 delta:interval=16 delta delta:interval=64"
    statement = Statement(
        key="llama-3.1-70b",
        title="All of it, on Llama 3.1 70B and WikiText-2",
        published=(
            "Perplexity over 20 chunks of 512 tokens: F16 3.2840; Q4_0 3.4683 (+5.61 %); Delta-KV "
            "with a keyframe every 16, 32, 64 tokens 3.3002, 3.2926, 3.3027 (+0.49, +0.26, "
            "+0.57 %). At 2048 tokens Q4_0 +6.9 %, Delta-KV +0.4 %."
        ),
        experiment=(
            "On a machine that holds the model, FOLDER being its Hugging Face folder. The last "
            "command adds that model to this report."
        ),
        commands=(
            f"{perplexity} --ctx 512 --kv {formats}",
            f"{perplexity} --ctx 2048 --kv {formats}",
            f"{COMMAND} --model FOLDER --text wikitext-2 --chunks 20",
        ),
        number="change of perplexity against f16",
        form="{:+.2f} %",
    )
    return decide(statement, [], remark="The model was not at hand.")
