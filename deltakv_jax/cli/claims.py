"""`deltakv claims`, the same as `python scripts/claims.py`."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from deltakv_jax.cli import arguments, measuring, progress
from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import files, runner, store, texts
from deltakv_jax.evaluation.claims import document, experiments, findings, general, on_model
from deltakv_jax.evaluation.claims.commands import Asked
from deltakv_jax.evaluation.claims.experiments import Evidence, Job
from deltakv_jax.evaluation.claims.findings import Findings
from deltakv_jax.evaluation.texts import Text
from deltakv_jax.weights import LoadedModel

TEXTS = ("python-docs", "python-code")
CHUNKS = 120  # minutes on two cores


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Puts the claims to the test on what the arguments name; returns the exit status."""
    parser = make_parser(prog)
    options = parser.parse_args(argv)
    say = measuring.sayer(parser.prog)
    return arguments.run(lambda: claims(options, say), prog=parser.prog)


def make_parser(prog: str | None) -> arguments.OneLineParser:
    """The options of this command."""
    parser = arguments.OneLineParser(
        prog,
        description="What was published of Delta-KV, put to the test: each claim and a verdict.",
    )
    arguments.add_model_arguments(parser)
    add = parser.add_argument
    add("--text", nargs="+", metavar="NAME|FILE", default=list(TEXTS), help=_TEXT_HELP)
    add("--chunks", type=arguments.positive, default=CHUNKS, metavar="N", help=_CHUNKS_HELP)
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help=_OUT_HELP)
    add("--report", type=Path, default=Path("RESULTS.md"), metavar="FILE", help=_REPORT_HELP)
    add("--resume", action="store_true", help="go on with an interrupted run of this model")
    return parser


_TEXT_HELP = f"{', '.join(texts.NAMED)}, or UTF-8 files ({' '.join(TEXTS)})"
_CHUNKS_HELP = "take the first N of each text and context (%(default)s)"
_OUT_HELP = "for claims.json and claims-MODEL.json (%(default)s)"
_REPORT_HELP = "made of all claims in the folder of --out (%(default)s)"


def claims(options: argparse.Namespace, say: measuring.Say) -> None:
    """Runs the experiments, writes what they found and the report, and shows the verdicts."""
    _check_targets(options)
    measured_on = _texts(options.text)
    loaded = arguments.load(options)
    checkpoints = measuring.checkpoint_folder(str(findings.path_of(options.out, loaded.name)))
    _check_resume(checkpoints, resume=options.resume)
    planned = experiments.plan(loaded, list(measured_on.values()), options.chunks)
    for line in dict.fromkeys(planned.missing.values()):
        say(line)
    with progress.shown(planned.units, "chunks x formats") as advance:
        evidence = experiments.carry_out(
            loaded,
            planned,
            progress=advance,
            open_store=lambda job: _open_store(checkpoints, loaded, job, say),
        )
    found = [findings.find(general.claims()), _findings(options, loaded, measured_on, evidence)]
    written = [findings.write(options.out, one) for one in found]
    store.discard(checkpoints)
    _report(options, found, written)


def _check_targets(options: argparse.Namespace) -> None:
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out}: {error.strerror}") from None
    files.check_writable(findings.path_of(options.out, None), "--out")
    files.check_writable(options.report, "--report")
    findings.read_all(options.out)  # what is damaged there is better said before the runs


def _check_resume(checkpoints: Path, *, resume: bool) -> None:
    if store.holds_run(checkpoints) and not resume:
        raise UserError(
            f"{checkpoints} holds an interrupted run: --resume goes on with it, or remove it"
        )


def _texts(names: Sequence[str]) -> dict[str, Text]:
    """The texts by what they were asked for by."""
    loaded = {name: texts.load_text(name) for name in names}
    if len({text.name for text in loaded.values()}) < len(names):
        raise UserError("--text: two texts have one name; claims are told apart by it")
    return loaded


def _open_store(folder: Path, loaded: LoadedModel, job: Job, say: measuring.Say) -> store.Store:
    name = findings.safe_name(f"{job.part}-{job.text.name}")
    identity = runner.identity(loaded, job.text, job.settings)
    return store.Store.open(folder / name, identity, say=say)


def _findings(
    options: argparse.Namespace,
    loaded: LoadedModel,
    measured_on: dict[str, Text],
    evidence: Evidence,
) -> Findings:
    weights = [] if options.weights is None else ["--weights", options.weights]
    asked = Asked(
        shlex.join(["--model", options.model, *weights]),
        {text.name: shlex.quote(name) for name, text in measured_on.items()},
    )
    return findings.find(
        on_model.claims(evidence, asked),
        model=loaded.name,
        description=findings.describe(loaded.config),
        runs=[run for runs in evidence.runs.values() for run in runs],
        coherence=evidence.coherence,
    )


def _report(
    options: argparse.Namespace, found: Sequence[Findings], written: Sequence[Path]
) -> None:
    before = options.report.read_text(encoding="utf-8") if options.report.exists() else ""
    content = document.render(findings.read_all(options.out)) + document.kept(before)
    files.write_atomically(options.report, content.encode(), "--report")
    table = Table("claim", "verdict", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for claim in (claim for one in found for claim in one.claims):
        table.add_row(claim.title, claim.verdict)
    out = measuring.console()
    out.print(table, f"Numbers, rules and commands: {options.report}", sep="\n")
    out.print(f"JSON: {', '.join(map(str, written))}")
