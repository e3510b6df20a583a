"""One line on stderr and status 2, whoever finds the fault."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltakv_jax.cli import arguments, main
from deltakv_jax.errors import UserError


def parser() -> arguments.OneLineParser:
    made = arguments.OneLineParser("tool")
    made.add_argument("--chunks", type=arguments.positive)
    made.add_argument("--kv", nargs="+")
    arguments.add_model_arguments(made)
    return made


def error_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(words)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    return err


def test_an_unknown_option_is_named_with_its_neighbour(capsys):
    assert "'--chunk'; did you mean --chunks?" in error_of(capsys, "--chunk", "3")


def test_an_option_like_no_other_gets_the_list(capsys):
    assert "'--xyzzy'; known: --help --chunks --kv --model --weights" in error_of(capsys, "--xyzzy")


def test_options_cannot_be_abbreviated(capsys):
    assert "'--mod'; did you mean --model?" in error_of(capsys, "--mod", "demo")


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", ""])
def test_a_number_out_of_range_is_named(capsys, text):
    error = error_of(capsys, f"--chunks={text}")
    assert "--chunks" in error
    assert f"at least 1, got {text!r}" in error


def test_wrong_weights_get_the_known_ones(capsys):
    error = error_of(capsys, "--weights", "f64")
    assert all(name in error for name in ("f32", "bf16", "f16"))


def test_line_breaks_in_an_argument_stay_in_one_line(capsys):
    error_of(capsys, "--chunks", "a\nb")


def raising(error: BaseException):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no\nsuch thing"), 2, "tool: no such thing\n"),
        (KeyboardInterrupt(), 130, "tool: interrupted\n"),
    ],
)
def test_run_turns_errors_into_one_line_and_a_status(capsys, error, status, line):
    assert arguments.run(raising(error), prog="tool") == status
    assert capsys.readouterr().err == line


def test_run_lets_a_fault_of_the_program_through():
    with pytest.raises(ZeroDivisionError):
        arguments.run(raising(ZeroDivisionError()), prog="tool")


def test_a_missing_model_is_named():
    with pytest.raises(UserError, match="there is no 'nowhere'; give demo, a Hugging Face folder"):
        arguments.model_path("nowhere")


def test_a_path_and_a_name_of_the_hub_are_taken_as_they_are(tmp_path):
    for text in (str(tmp_path), "hf:me/tiny", "hf:me/tiny@v1"):
        assert arguments.model_path(text) == text


def test_demo_is_the_model_in_the_package():
    assert (Path(arguments.model_path("demo")) / "config.json").is_file()


def test_model_and_weights_are_handed_on(monkeypatch):
    asked = []
    monkeypatch.setattr(arguments, "load_model", lambda *words: asked.append(words))
    arguments.load(parser().parse_args(["--model", "hf:me/tiny", "--weights", "bf16"]))
    arguments.load(parser().parse_args([]))
    assert asked[0] == ("hf:me/tiny", "bf16", None)
    assert asked[1][1] is None


def test_a_pipe_that_closes_early_ends_the_command_quietly():
    script = (
        "import sys; from deltakv_jax.cli.arguments import run;"
        "sys.exit(run(lambda: [print('x' * 99) for _ in range(9999)], prog='tool'))"
    )
    command = [sys.executable, "-c", script]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([".", "pallas"])}
    with subprocess.Popen(command, env=env, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_the_commands_are_listed(capsys):
    assert main.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in main.COMMANDS)


def test_the_version_is_printed(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("deltakv 0.")


@pytest.mark.parametrize("words", [[], ["perplexed"]])
def test_a_wrong_command_is_one_line(capsys, words):
    assert main.main(words) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert f"known: {', '.join(main.COMMANDS)}" in err


def test_help_does_not_wait_for_jax():
    script = (
        "import sys; from deltakv_jax.cli import main;"
        "main.main(['-h']); print('jax' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "False"


def test_a_command_gets_its_words_and_its_name(monkeypatch):
    got = []
    module = argparse.Namespace(main=lambda argv, prog: got.append((argv, prog)) or 0)
    monkeypatch.setitem(sys.modules, "deltakv_jax.cli.decode", module)
    monkeypatch.setattr(main.importlib, "import_module", sys.modules.__getitem__)
    assert main.main(["decode", "--seed", "1"]) == 0
    assert got == [(["--seed", "1"], "deltakv decode")]
