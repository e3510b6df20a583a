"""Where in a context, and where in a group, a format does its damage.

If error built up along a chain of differences, the last positions of a group would be worse than
the first: a mean over all tokens cannot show that.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64

from deltakv_jax.evaluation import statistics
from deltakv_jax.typed import typed

_BINS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Figures by position; each error is one standard error of the mean.

    Attributes:
      at: the mean position of each bin, in tokens from 0.
      kld: mean KL divergence from the first format, in nats.
      delta_ln_ppl: mean difference of nll from the first format, paired.
    """

    at: tuple[float, ...]
    kld: tuple[float, ...]
    kld_stderr: tuple[float, ...]
    delta_ln_ppl: tuple[float, ...]
    delta_ln_ppl_stderr: tuple[float, ...]


@typed
def by_position(
    kld: Float64[np.ndarray, "c n"], change: Float64[np.ndarray, "c n"], first: int
) -> Profile:
    """Against the position in the context, in at most 32 bins of consecutive positions.

    Args:
      kld: of each scored prediction.
      change: of its nll.
      first: position of the first scored prediction.
    """
    bins = np.array_split(np.arange(kld.shape[1]), min(_BINS, kld.shape[1]))
    return _profile(kld, change, bins, [first + float(part.mean()) for part in bins])


@typed
def by_group_position(
    kld: Float64[np.ndarray, "c n"], change: Float64[np.ndarray, "c n"], first: int, interval: int
) -> Profile:
    """Against the position n = 0 … interval - 1 in the group, as far as those were scored.

    Args:
      kld: of each scored prediction.
      change: of its nll.
      first: position of the first scored prediction.
      interval: tokens in a group.
    """
    n = (first + np.arange(kld.shape[1])) % interval
    present = np.unique(n)
    return _profile(kld, change, [np.flatnonzero(n == one) for one in present], present)


def _profile(kld: np.ndarray, change: np.ndarray, bins, at) -> Profile:
    klds = [statistics.mean(kld[:, part].ravel()) for part in bins]
    changes = [statistics.mean(change[:, part].ravel()) for part in bins]
    return Profile(
        at=tuple(map(float, at)),
        kld=tuple(one.value for one in klds),
        kld_stderr=tuple(one.stderr for one in klds),
        delta_ln_ppl=tuple(one.value for one in changes),
        delta_ln_ppl_stderr=tuple(one.stderr for one in changes),
    )
