"""From logits to tokens: greedy, or drawn after top-k, top-p, min-p and temperature.

The filters apply in llama.cpp's order: top-k, then top-p over what is left (renormalised), then
min-p, then temperature. So top-p and min-p see the model's own probabilities, whatever the
temperature. Each filter keeps at least the likeliest token; among equals the lower id wins.

Every sequence draws with a key of its own, so its text does not depend on its neighbours.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, Key

from deltakv_jax.errors import UserError
from deltakv_jax.typed import typed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn. A pytree whose numbers are traced: other values, the same program.

    Only which filters are on, and `top_k`, are static: a filter that is off costs nothing.

    Attributes:
      temperature: divides the logits; None is greedy.
      top_k: keep the k likeliest; None keeps all.
      top_p: keep the shortest run of likeliest tokens whose probabilities reach p.
      min_p: keep what is at least p times as likely as the likeliest.
    """

    temperature: float | Array | None = None
    top_k: int | None = dataclasses.field(default=None, metadata={"static": True})
    top_p: float | Array | None = None
    min_p: float | Array | None = None


GREEDY = Sampling()


def make_sampling(
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Sampling:
    """Checked settings. Temperature 0 is greedy, and then no filter has a meaning.

    Raises:
      UserError: for a number out of its range, or a filter without a temperature.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature must be 0 (greedy) or more, got {temperature:g}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top-k must be 1 or more, got {top_k}")
    for name, share in (("top-p", top_p), ("min-p", min_p)):
        if share is not None and not 0 < share <= 1:
            raise UserError(f"{name} must be above 0 and at most 1, got {share:g}")
    if top_p == 1:
        top_p = None  # in float32 the sum may reach 1 before its last term
    if temperature == 0:
        _refuse_without_temperature({"top-k": top_k, "top-p": top_p, "min-p": min_p})
        return GREEDY
    return Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)


def _refuse_without_temperature(filters: dict[str, float | None]) -> None:
    if given := [name for name, value in filters.items() if value is not None]:
        raise UserError(f"{' and '.join(given)} without a temperature above 0 would change nothing")


@typed
def sequence_keys(seed: int, batch: int) -> Key[Array, " b"]:
    """Sequence i of a batch draws as the first one would with seed + i."""
    return jax.vmap(jax.random.key)(jnp.uint32(seed % 2**32) + jnp.arange(batch, dtype=jnp.uint32))


@typed
def sample(
    logits: Float32[Array, "b v"], keys: Key[Array, " b"], step: Int32[Array, ""], how: Sampling
) -> Int32[Array, " b"]:
    """One token of each sequence; `step` says the how-manieth one it draws."""
    if how.temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    kept, ids = candidates(logits, how)
    kept -= jnp.max(kept, axis=-1, keepdims=True)  # the likeliest is 0 at any temperature
    draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row)
    drawn = jax.vmap(draw)(keys, kept / how.temperature)
    return jnp.take_along_axis(ids, drawn[:, None], axis=-1)[:, 0]


@typed
def candidates(
    logits: Float32[Array, "b v"], how: Sampling
) -> tuple[Float32[Array, "b c"], Int32[Array, "b c"]]:
    """The logits that the filters leave, -inf where they do not, and the token of each.

    They are sorted, likeliest first, where a filter needs it.
    """
    if how.top_k is None and how.top_p is None:
        ids = jnp.broadcast_to(jnp.arange(logits.shape[-1], dtype=jnp.int32), logits.shape)
    else:
        logits, ids = jax.lax.top_k(logits, min(how.top_k or logits.shape[-1], logits.shape[-1]))
    if how.top_p is not None:
        logits = _top_p(logits, how.top_p)
    if how.min_p is not None:
        floor = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(how.min_p)
        logits = jnp.where(logits >= floor, logits, -jnp.inf)
    return logits, ids


def _top_p(logits: Array, top_p: float | Array) -> Array:
    """Sorted `logits` with -inf from the first token on before which the sum reaches `top_p`."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1)[:, :-1]
    reached = jnp.pad(before >= top_p, ((0, 0), (1, 0)))
    return jnp.where(reached, -jnp.inf, logits)
