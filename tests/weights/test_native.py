import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.weights.native import one_line, reading


class PanicError(BaseException):
    """As pyo3 derives a Rust panic."""


@pytest.mark.parametrize("kind", [PanicError, ValueError, RecursionError, KeyError])
def test_whatever_a_reader_raises_becomes_one_line(kind):
    says = r"^a\.bin is damaged: '?index out of range"
    with pytest.raises(UserError, match=says) as caught, reading("a.bin"):
        raise kind("index out of range\n  at line 3\x1b[2J")
    assert str(caught.value).isprintable()


def test_a_missing_file_is_not_called_damaged(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(UserError, match=r"a\.bin: No such file or directory$"), reading(path):
        path.read_bytes()


def test_running_out_of_memory_is_not_called_damage():
    with pytest.raises(UserError, match=r"^a: reading it takes more memory"), reading("a"):
        raise MemoryError


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_goes_through(kind):
    with pytest.raises(kind), reading("a"):
        raise kind


def test_an_error_for_the_user_goes_through():
    with pytest.raises(UserError, match=r"^as it is$"), reading("a"):
        raise UserError("as it is")


def test_a_message_is_cut_and_an_empty_one_named():
    assert len(one_line("x" * 10_000)) == 201
    assert one_line(ValueError()) == "ValueError"
    assert one_line("a\ud800b\tc") == "a\ufffdb c"
