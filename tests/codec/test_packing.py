"""The order of nibbles in bytes. A round trip alone would pass any order."""

import jax.numpy as jnp
import numpy as np

from deltakv_jax.codec.packing import join_planes, nibble_planes, pack_nibbles

CODES = np.array([*range(16), *range(15, -1, -1), *[7] * 16, *[12] * 16], np.uint8)
PACKED = np.array([*range(0xF0, 0, -0xF), *[0xC7] * 16], np.uint8)


def test_golden_bytes():
    assert PACKED[:3].tolist() == [0xF0, 0xE1, 0xD2], "code j low, code j + 16 high"
    np.testing.assert_array_equal(pack_nibbles(jnp.array(CODES)), PACKED)
    np.testing.assert_array_equal(join_planes(*nibble_planes(jnp.array(PACKED))), CODES)


def test_every_byte_comes_back():
    packed = jnp.arange(256, dtype=jnp.uint8).reshape(2, 2, 64)
    codes = join_planes(*nibble_planes(packed))
    assert codes.shape == (2, 2, 128)
    assert int(codes.max()) == 15
    np.testing.assert_array_equal(pack_nibbles(codes), packed)
