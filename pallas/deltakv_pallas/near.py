"""The tokens that are read refined, as one more split of the context: too few for a kernel."""

import jax.numpy as jnp
from jaxtyping import Array

from deltakv_jax.cache import Near
from deltakv_jax.codec import KVSpec
from deltakv_pallas.program import LIFT, NEVER, Cut, Outputs


def near_split(cut: Cut, spec: KVSpec, near: Near, rows: Array, seen: Array) -> Outputs:
    """The softmax of what is near.

    Args:
      cut: of the work.
      spec: of the layer.
      near: reconstructions.
      rows: float32 [b, k, c, r, d], the queries, scaled for scores in powers of 2.
      seen: bool [b, c, r, n], what each row reads here.
    """
    planes = zip(spec.k.split(rows), near.k, strict=True)
    products = (jnp.einsum("bkcrw,bknw->bkcrn", q, k, precision="highest") for q, k in planes)
    scores = jnp.where(seen[:, None], sum(products), -jnp.inf)
    m = jnp.maximum(jnp.max(scores, axis=-1), NEVER)
    p = jnp.exp2(scores - (m - LIFT)[..., None])
    mixed = (jnp.einsum("bkcrn,bknw->bkcwr", p, cut.v.pad(v), precision="highest") for v in near.v)
    acc = jnp.stack(tuple(mixed), axis=3)
    return Outputs(acc[:, :, :, None], m[:, :, :, None], jnp.sum(p, axis=-1)[:, :, :, None])
