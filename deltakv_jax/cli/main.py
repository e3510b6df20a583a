"""`deltakv COMMAND …`: the scripts' work, where a wheel has no `scripts/`."""

import importlib
import sys
from collections.abc import Sequence

import deltakv_jax

COMMANDS = {
    "perplexity": "what a KV cache format costs in quality and saves in bytes",
    "sweep": "the same over several contexts and texts",
    "coherence": "how much neighbouring keys and values of a model differ",
    "claims": "a verdict on each published claim, measured",
    "decode": "a prompt in, text out as it is made",
    "compile_gpu": "machine code of the kernels for a GPU that is not at hand",
    "plan": "what a run takes on each device, before anything is loaded",
    "calibrate": "what the caches of a model may know of it: means, costs of errors, bits",
    "convert": "a model as a checkpoint of ready weights, quantised if you like",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first word names; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    match words[:1]:
        case ["-h" | "--help"]:
            print(usage())
        case ["--version"]:
            print(f"deltakv {deltakv_jax.__version__}")
        case [name] if name in COMMANDS:
            # imported only now: `--help` need not wait for JAX
            command = importlib.import_module(f"deltakv_jax.cli.{name}")
            return command.main(words[1:], prog=f"deltakv {name}")
        case _:
            found = f"unknown command {words[0]!r}" if words else "no command"
            print(f"deltakv: {found}; known: {', '.join(COMMANDS)}", file=sys.stderr)
            return 2
    return 0


def usage() -> str:
    """The commands, one a line."""
    lines = [f"  {name:<12} {does}" for name, does in COMMANDS.items()]
    return "\n".join(["usage: deltakv COMMAND [--help | OPTION ...] | --version", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
