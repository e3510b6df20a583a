import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltakv_jax.weights.tokenizers.protobuf import field, fields

values = st.one_of(st.integers(0, 2**64 - 1), st.binary(), st.floats(width=32, allow_nan=False))


@example([(1, 2**64 - 1)])
@given(st.lists(st.tuples(st.integers(1, 1000), values)))
def test_fields_come_back(message):
    assert list(fields(b"".join(field(*one) for one in message))) == message


def test_the_bytes():
    """The examples of the format's own description."""
    assert field(1, 150) == b"\x08\x96\x01"
    assert field(2, b"testing") == b"\x12\x07testing"
    assert field(3, 1.0) == b"\x1d\x00\x00\x80\x3f"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x08", "cut short"),
        (b"\x08\x80", "cut short"),
        (b"\x12\x05ab", "a field of 5 bytes where 2 are left"),
        (b"\x1d\x00", "a field of 4 bytes where 1 are left"),
        (b"\x0b", "wire type 3"),
        (b"\x08" + b"\xff" * 10, "more than 64 bits"),
    ],
)
def test_what_is_no_message(data: bytes, says: str):
    with pytest.raises(ValueError, match=says):
        list(fields(data))
