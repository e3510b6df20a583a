"""Linear maps along head_dim that are fitted to a model: the Karhunen-Loève transform.

In the frame in which the Fisher information is the identity all errors cost the same; there the
principal axes of the values are taken, balanced (every axis times λ^(-1/4), λ its variance) and
mixed by a Hadamard transform. A query is read through the inverse.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from deltakv_jax.codec.hadamard import rotate
from deltakv_jax.typed import typed
from scripts.bench.codecs.calibration import Moments
from scripts.bench.codecs.sides import Known

_FLOOR = 1e-4  # of the largest eigenvalue: directions that no reader looks at stay invertible


@typed
def _root(m: Float[np.ndarray, "d d"], power: float) -> Float[np.ndarray, "d d"]:
    values, axes = np.linalg.eigh(m)
    return axes * np.maximum(values, _FLOOR * values.max()) ** power @ axes.T


@typed
def _one(
    cov: Float[np.ndarray, "d d"], fisher: Float[np.ndarray, "d d"]
) -> tuple[Float[np.ndarray, "d d"], Float[np.ndarray, "d d"]]:
    """The map and its inverse."""
    seen = _root(fisher, 0.5)
    variances, axes = np.linalg.eigh(seen @ cov @ seen)
    balance = np.maximum(variances, _FLOOR**2 * variances.max()) ** -0.25
    to = balance[:, None] * (axes.T @ seen)
    back = _root(fisher, -0.5) @ axes / balance
    mixing = np.asarray(rotate(jnp.eye(len(cov))))
    return mixing @ to, back @ mixing.T


def karhunen_loeve(moments: dict[str, Moments], name: str) -> Known:
    """The maps NAME_to and NAME_from of both sides, float32 [l k d d]."""
    found: Known = {}
    for side, of_side in moments.items():
        layers, heads = of_side.cov.shape[:2]
        pairs = [
            _one(of_side.cov[l, k].astype(float), of_side.fisher[l, k].astype(float))
            for l in range(layers)
            for k in range(heads)
        ]
        stack = lambda one, shape=of_side.cov.shape: np.stack(one).reshape(shape)
        to, back = (stack([pair[i] for pair in pairs]).astype(np.float32) for i in (0, 1))
        found[side] = {f"{name}_to": to, f"{name}_from": back}
    return found
