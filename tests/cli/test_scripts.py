"""Each script is the command of its name."""

import runpy
import sys
from pathlib import Path

import pytest

from deltakv_jax.cli import main

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize("name", main.COMMANDS)
def test_a_script_is_the_command_of_its_name(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    script = str(SCRIPTS / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    shown = []
    for run in (
        lambda: runpy.run_path(script, run_name="__main__"),
        lambda: main.main([name, "--help"]),
    ):
        with pytest.raises(SystemExit) as ended:
            run()
        assert ended.value.code == 0
        shown.append(capsys.readouterr().out)
    assert shown[0].startswith(f"usage: {name}.py ")
    assert shown[1].startswith(f"usage: deltakv {name} ")
    assert shown[0].split("options:")[1] == shown[1].split("options:")[1]
