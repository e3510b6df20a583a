"""The formats in which a matrix can stay packed, by their names."""

from deltakv_jax.codec.kquants import Q4_K, Q5_K, Q6_K
from deltakv_jax.codec.matrix import BF16, F16, Q4_0, Q8_0, MatrixFormat

MATRICES: dict[str, MatrixFormat] = {
    one.name: one for one in (BF16, F16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K)
}
