"""`deltakv plan`, the same as `python scripts/plan.py`."""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from deltakv_jax.cli import arguments, measuring, mesh, progress
from deltakv_jax.codec import parse_spec
from deltakv_jax.evaluation import files
from deltakv_jax.parallel.mesh import make_mesh
from deltakv_jax.parallel.sharding import check_batch, check_mesh
from deltakv_jax.planning import report
from deltakv_jax.planning.devices import DEVICES
from deltakv_jax.planning.models import plan_model
from deltakv_jax.planning.plan import Run, make_plan
from deltakv_jax.planning.presets import PRESETS
from deltakv_jax.planning.programs import use_cpu

FORMATS = ("f16", "q4_0", "delta")
CTX = 8192  # tokens, where the model's context has as many
_UNITS = {"GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Plans what the arguments ask for; returns the exit status."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    say = measuring.sayer(parser.prog)
    return arguments.run(lambda: plan(options, say), prog=parser.prog)


def make_parser(prog: str | None) -> arguments.OneLineParser:
    """The options of this command."""
    parser = arguments.OneLineParser(
        prog,
        description="What a run takes on each device: compiled from shapes, nothing is allocated.",
    )
    add = parser.add_argument
    add("--model", metavar="NAME|FOLDER|FILE.gguf", default="demo", help=_MODEL_HELP)
    arguments.add_weights_argument(parser)
    add("--kv", nargs="+", metavar="SPEC", default=FORMATS, help=_KV_HELP)
    add("--ctx", type=arguments.positive, metavar="N", help=_CTX_HELP)
    add("--beyond-context", action="store_true", help="let --ctx exceed the model's context")
    add("--batch", type=arguments.positive, metavar="N", default=1, help="sequences (%(default)s)")
    add("--mesh", type=mesh.mesh_shape, metavar="tensor=N[,data=N]", help=_MESH_HELP)
    add("--device", choices=tuple(DEVICES), default="cpu", help=_DEVICE_HELP)
    add("--memory", type=size, metavar="32GB", help=_MEMORY_HELP)
    add("--json", metavar="FILE|-", help="write all figures there; - is stdout")
    return parser


_MODEL_HELP = (
    f"{', '.join(PRESETS)}; or demo, a Hugging Face folder, a converted model or a GGUF file, of "
    "which only the headers are read (%(default)s)"
)
_KV_HELP = f"cache formats ({' '.join(FORMATS)})"
_CTX_HELP = f"tokens per sequence ({CTX}, or the model's context if that is less)"
_MESH_HELP = "devices that share heads and vocabulary, and sequences (a single one)"
_DEVICE_HELP = "what each device is; the step is lowered for it too (%(default)s)"
_MEMORY_HELP = "of each device, in GB or GiB (what the device has)"


def plan(options: argparse.Namespace, say: measuring.Say) -> None:
    """Plans every format, shows the table and writes the JSON."""
    if options.json not in (None, "-"):
        files.check_writable(Path(options.json), "--json")
    specs = [parse_spec(name) for name in options.kv]
    run = make_run(options, say)
    for spec in specs:
        spec.check(run.planned.config.head_dim)
    with progress.shown(len(specs), "formats") as advance:
        plans = []
        for spec in specs:
            plans.append(make_plan(run, spec))
            advance(1)
    # stdout is for the JSON alone where it is asked for there
    out = measuring.console(stderr=options.json == "-")
    out.print(report.headline(run), report.table(run, plans), report.legend(run, plans), sep="\n")
    _write_json(options.json, report.to_json(run, plans))


def make_run(options: argparse.Namespace, say: measuring.Say) -> Run:
    """What the arguments ask for, checked before any device is made."""
    shape = options.mesh or {}
    use_cpu(math.prod(shape.values()))
    device = DEVICES[options.device]
    on_cpu = device.platform is None
    planned = plan_model(options.model, options.weights, on_cpu=on_cpu, mesh=shape)
    context = planned.config.context
    ctx = options.ctx or min(CTX, context)
    measuring.check_context(ctx, context, beyond=options.beyond_context, say=say)
    check_mesh(planned.model, shape)
    devices = make_mesh(shape) if shape else None
    check_batch(devices, options.batch)
    return Run(
        planned=planned,
        mesh=devices,
        device=device,
        memory=options.memory or device.memory,
        ctx=ctx,
        batch=options.batch,
    )


def size(text: str) -> int:
    """`text` as bytes, for `type=` of an argument."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text)
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"expected a size such as 32GB or 30.5GiB, got {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])


def _write_json(target: str | None, content: str) -> None:
    if target == "-":
        sys.stdout.write(content)
    elif target is not None:
        files.write_atomically(Path(target), content.encode(), "--json")
