"""The example in the package's docstring runs as it stands, and every public name is there."""

import re
import subprocess
import sys
import textwrap

import pytest

import deltakv_jax


def example() -> str:
    """The indented block of the package's docstring."""
    [block] = re.findall(r"(?m)(?:^    .*\n|^\n)+(?=^Every step)", deltakv_jax.__doc__ or "")
    return textwrap.dedent(block)


def test_the_example_runs_as_it_stands(capsys):
    exec(compile(example(), "example", "exec"), {})
    text, size = capsys.readouterr().out.rstrip().rsplit("\n", 1)
    assert len(text) > 40
    assert re.fullmatch(r"5\.\d+ bits per value, \d+ bytes", size)


def test_every_public_name_is_there():
    for name in deltakv_jax.__all__:
        assert getattr(deltakv_jax, name).__name__ == name
    assert set(deltakv_jax.__all__) <= set(dir(deltakv_jax))
    assert set(deltakv_jax._HOME_OF) == set(deltakv_jax.__all__)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = deltakv_jax.nothing


def test_the_package_alone_does_not_import_jax():
    program = "import sys, deltakv_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
