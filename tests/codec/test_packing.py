"""The order of nibbles in bytes. A round trip alone would pass any order."""

import jax.numpy as jnp
import numpy as np

from deltakv_jax.codec.packing import (
    centred_nibbles,
    join_planes,
    nibble_planes,
    pack_nibbles,
    split_planes,
)

CODES = np.array([*range(16), *range(15, -1, -1), *[7] * 16, *[12] * 16], np.uint8)
PACKED = np.array([*range(0xF0, 0, -0xF), *[0xC7] * 16], np.uint8)


def test_golden_bytes():
    assert PACKED[:3].tolist() == [0xF0, 0xE1, 0xD2], "code j low, code j + 16 high"
    words = pack_nibbles(jnp.array(CODES))
    np.testing.assert_array_equal(np.asarray(words).view(np.uint8), PACKED)
    np.testing.assert_array_equal(join_planes(*nibble_planes(words)), CODES)


def test_every_word_comes_back():
    words = jnp.arange(2**16, dtype=jnp.uint16).reshape(4, 2, -1)
    codes = join_planes(*nibble_planes(words))
    assert codes.shape == (4, 2, 2**15)
    assert int(codes.max()) == 15
    np.testing.assert_array_equal(pack_nibbles(codes.astype(jnp.uint8)), words)
    np.testing.assert_array_equal(join_planes(*centred_nibbles(words)), codes.astype(float) - 8)


def test_a_plane_is_one_nibble_of_every_word():
    at = split_planes(jnp.arange(64))
    assert [plane[:2].tolist() for plane in at] == [[0, 2], [16, 18], [1, 3], [17, 19]]
    np.testing.assert_array_equal(join_planes(*at), np.arange(64))
