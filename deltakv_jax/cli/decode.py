"""`deltakv decode`, the same as `python scripts/decode.py`.

The new text goes to stdout as it is made, and everything else to stderr.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from deltakv_jax.cache import bits_per_value, cache_bytes
from deltakv_jax.cache.checkpoint import check_folder
from deltakv_jax.calibration import Calibration
from deltakv_jax.cli import arguments, mesh
from deltakv_jax.codec import CacheSpec, LayerSpecs, parse_spec
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import files, report
from deltakv_jax.generation import session
from deltakv_jax.generation.decode import Stop
from deltakv_jax.generation.sampling import Sampling, make_sampling
from deltakv_jax.parallel import processes
from deltakv_jax.weights import LoadedModel

DEMO_PROMPT = "The for statement is used to"

Say = Callable[[str], None]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Goes on from what the arguments name; returns the exit status."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    say = lambda line: print(arguments.one_line(parser.prog, line), end="", file=sys.stderr)
    return arguments.run(lambda: decode(options, say), prog=parser.prog)


def make_parser(prog: str | None) -> arguments.OneLineParser:
    """The options of this command."""
    parser = arguments.OneLineParser(
        prog, description="Goes on from a prompt, with the KV cache in the format of your choice."
    )
    arguments.add_model_arguments(parser)
    mesh.add_mesh_arguments(parser)
    arguments.add_attention_argument(parser)
    _add_prompt_arguments(parser)
    _add_chat_arguments(parser)
    _add_cache_arguments(parser)
    _add_sampling_arguments(parser)
    parser.add_argument("--json", metavar="FILE|-", help="write text and figures; - is stdout")
    return parser


def _add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group().add_argument
    source("--prompt", action="append", metavar="TEXT", help="several of these make a batch")
    source(
        "--prompt-file",
        metavar="FILE|-",
        help="a UTF-8 file with one prompt, less the newline at its end; - is stdin",
    )


def _add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--chat", action="store_true", help="put the model's chat template around each prompt")
    add("--system", metavar="TEXT", help="of --chat: what the conversation begins with")
    add("--special", action="store_true", help="special tokens in a prompt are no plain text")


def _add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    formats = parser.add_mutually_exclusive_group().add_argument
    formats("--kv", metavar="SPEC", help=f"format of the cache ({session.DEFAULT_SPEC})")
    formats("--delta-kv", action="store_true", help="short for --kv delta")
    arguments.add_calibration_argument(parser)
    add = parser.add_argument
    add("--delta-kv-interval", metavar="N", help="of --delta-kv: a keyframe every N tokens (32)")
    add("--save-cache", type=Path, metavar="DIR", help="save the cache after the prompt")
    add("--load-cache", type=Path, metavar="DIR", help="go on from a saved cache")
    add("--beyond-context", action="store_true", help="let the text exceed the model's context")


def _add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--max-new-tokens", type=_not_negative, default=128, metavar="N", help="(%(default)s)")
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (%(default)s)")
    add("--top-k", type=arguments.positive, metavar="K", help="keep the K likeliest tokens")
    add("--top-p", type=float, metavar="P", help="then the likeliest that together reach P")
    add("--min-p", type=float, metavar="P", help="then those P times as likely as the likeliest")
    add("--seed", type=_not_negative, metavar="S", help="of prompt 1; prompt 2 has S + 1 … (0)")


def _not_negative(text: str) -> int:
    return arguments.whole_number(text, at_least=0)


def decode(options: argparse.Namespace, say: Say) -> None:
    """Writes the text, the figures and the files that were asked for."""
    wanted = request(options)
    _check_targets(options)
    with mesh.opened(options) as devices:
        wanted = dataclasses.replace(wanted, implementation=arguments.implementation(options))
        loaded = arguments.load(options, devices)
        # stdout is for the JSON alone where it is asked for there
        pages = _Pages(sys.stderr if options.json == "-" else sys.stdout, wanted.prompts)
        outcome = session.run(loaded, wanted, pages.add, say)
        for line in _stop_lines(outcome):
            say(line)
        figures = _report(loaded, wanted, outcome)
        print(_figures(figures) + arguments.attention_note(options), file=sys.stderr)
        if processes.is_first():
            _write_json(options.json, figures)


def request(options: argparse.Namespace) -> session.Request:
    """What the arguments ask for; raises UserError where they contradict each other."""
    _check_chat(options)
    spec, calibration = _spec(options)
    return session.Request(
        prompts=_prompts(options),
        spec=spec,
        calibration=calibration,
        max_new_tokens=options.max_new_tokens,
        sampling=_sampling(options),
        seed=options.seed or 0,
        beyond_context=options.beyond_context,
        load_cache=options.load_cache,
        save_cache=options.save_cache,
        special=options.special,
        chat=options.chat,
        system=options.system,
    )


def _check_chat(options: argparse.Namespace) -> None:
    if options.system is not None and not options.chat:
        raise UserError("--system without --chat would change nothing")
    if options.chat and options.load_cache is not None:
        raise UserError("--chat with --load-cache: a template begins a conversation, at token 0")


def _prompts(options: argparse.Namespace) -> tuple[str, ...]:
    if options.prompt_file is not None:
        return (_read_prompt(options.prompt_file),)
    if options.prompt is not None:
        return tuple(options.prompt)
    if options.load_cache is not None:
        return ()
    if options.model != "demo":
        raise UserError("no prompt; give --prompt TEXT, --prompt-file FILE or --load-cache DIR")
    return (DEMO_PROMPT,)


def _read_prompt(name: str) -> str:
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return content.decode().removesuffix("\n")
    except OSError as error:
        raise UserError(f"--prompt-file {name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--prompt-file {name} is not UTF-8 text: byte {error.start}") from None


def _spec(options: argparse.Namespace) -> tuple[CacheSpec | None, Calibration | None]:
    """The format, if one is named, and the calibration that it takes."""
    name = _format(options)
    if options.load_cache is not None:
        if options.kv_calibration is not None:
            raise UserError("--kv-calibration with --load-cache: a saved cache has its own means")
        return (None if name is None else parse_spec(name)), None
    specs, calibration = arguments.cache_specs(options, [] if name is None else [name])
    return (specs[0] if specs else None), calibration


def _format(options: argparse.Namespace) -> str | None:
    interval = options.delta_kv_interval
    if interval is not None and not options.delta_kv:
        raise UserError("--delta-kv-interval without --delta-kv; or say --kv delta:interval=N")
    if options.delta_kv:
        return "delta" if interval is None else f"delta:interval={interval}"
    return options.kv


def _sampling(options: argparse.Namespace) -> Sampling:
    sampling = make_sampling(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
    )
    if options.seed is not None and options.temperature == 0:
        raise UserError("--seed without a --temperature above 0 would change nothing")
    return sampling


def _check_targets(options: argparse.Namespace) -> None:
    """Raises UserError now for what could not be written at the end."""
    if options.save_cache is not None:
        check_folder(options.save_cache)
    if options.json not in (None, "-"):
        files.check_writable(Path(options.json), "--json")


class _Pages:
    """Writes the sequences one after the other, each with a title on stderr.

    The first one that has not ended is written as it is made; those behind it wait for their turn.
    """

    def __init__(self, out: TextIO, prompts: Sequence[str]):
        self._out = out
        self._titles = {
            number: f"prompt {number + 1}: {text!r}" for number, text in enumerate(prompts)
        }
        self._turn = 0
        self._waiting: dict[int, str] = {}
        self._ended: set[int] = set()

    def add(self, number: int, text: str, ended: bool) -> None:
        """Takes more text of a sequence."""
        self._waiting[number] = self._waiting.get(number, "") + text
        if ended:
            self._ended.add(number)
        while self._turn in self._waiting:
            self._write(self._waiting.pop(self._turn))
            if self._turn not in self._ended:
                break
            self._write("\n")
            self._turn += 1

    def _write(self, text: str) -> None:
        if title := self._titles.pop(self._turn, None):
            print(title, file=sys.stderr, flush=True)
        self._out.write(text)
        self._out.flush()


def _stop_lines(outcome: session.Outcome) -> list[str]:
    """What the reader of a text that just ends should know."""
    capacity = outcome.cache.capacity
    return [
        f"prompt {number}: the cache is full at {capacity} tokens, the model's context; "
        "--beyond-context makes room for more"
        for number, stop in enumerate(outcome.stops, 1)
        if stop == Stop.CACHE_FULL
    ]


def _report(
    loaded: LoadedModel, wanted: session.Request, outcome: session.Outcome
) -> dict[str, Any]:
    """The text and all figures, as plain values for JSON."""
    stops = [stop.name.lower() for stop in outcome.stops]
    keys = ("prompt", "text", "tokens", "stop")
    prompts = wanted.prompts or [""] * len(stops)
    rows = zip(prompts, outcome.texts, outcome.tokens, stops, strict=True)
    return {
        "model": loaded.name,
        "kv": _kv(wanted, outcome),
        "attention": wanted.implementation,
        "sequences": [dict(zip(keys, row, strict=True)) for row in rows],
        "prefill": _timed(outcome.prefill),
        "decode": _timed(outcome.decode),
        "capacity": outcome.cache.capacity,
        "bits_per_value": bits_per_value(outcome.cache),
        "kv_bytes": cache_bytes(outcome.cache),
        "kv_bytes_f16": session.f16_bytes(outcome.cache),
        **report.surroundings(loaded.mesh, wanted.calibration),
    }


def _kv(wanted: session.Request, outcome: session.Outcome) -> str:
    named = isinstance(wanted.spec, LayerSpecs)
    return str(wanted.spec) if named else session.kv(outcome.cache)


def _timed(timed: session.Timed) -> dict[str, float]:
    return dataclasses.asdict(timed) | {"tokens_per_second": timed.tokens_per_second}


def _figures(figures: dict[str, Any]) -> str:
    """The figures, for people."""
    speed = "{tokens} tokens in {seconds:.3f} s, {tokens_per_second:.1f} tokens/s"
    return (
        f"prefill  {speed.format(**figures['prefill'])}\n"
        f"decode   {speed.format(**figures['decode'])} (both without compilation)\n"
        f"cache    {figures['kv']}, {figures['capacity']} tokens: "
        f"{figures['bits_per_value']:.4g} bits per value, {figures['kv_bytes']} bytes "
        f"(f16: {figures['kv_bytes_f16']})"
    )


def _write_json(target: str | None, figures: dict[str, Any]) -> None:
    content = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
    if target == "-":
        sys.stdout.write(content)
    elif target is not None:
        files.write_atomically(Path(target), content.encode(), "--json")
