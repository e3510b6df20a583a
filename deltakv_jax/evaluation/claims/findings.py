"""What `scripts/claims.py` found, as files: one for each model, and one for what needs none.

FOLDER/claims.json         claims that need no model
FOLDER/claims-MODEL.json   claims about models, and all runs that decide them
"""

import dataclasses
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

from deltakv_jax.config import LlamaConfig
from deltakv_jax.evaluation import files, reading, report
from deltakv_jax.evaluation.claims.record import Claim
from deltakv_jax.evaluation.coherence import Coherence
from deltakv_jax.evaluation.results import Run

GENERAL = "claims.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """The content of one file.

    Attributes:
      model: its name; None for what needs no model.
      description: of the model.
      claims: with their verdicts.
      runs: behind them.
      coherence: of K and V, behind them.
      device, jax, python, version, date: what they were made with, and when.
    """

    model: str | None
    description: str
    claims: tuple[Claim, ...]
    runs: tuple[Run, ...]
    coherence: tuple[Coherence, ...]
    device: str
    jax: str
    python: str
    version: str
    date: str


def find(
    claims: Sequence[Claim],
    *,
    model: str | None = None,
    description: str = "",
    runs: Sequence[Run] = (),
    coherence: Sequence[Coherence] = (),
) -> Findings:
    """Findings made now, on this machine."""
    made_with = {key: value for key, value in report.document(()).items() if key != "runs"}
    return Findings(
        model=model,
        description=description,
        claims=tuple(claims),
        runs=tuple(runs),
        coherence=tuple(coherence),
        date=time.strftime("%Y-%m-%d"),
        **made_with,
    )


def describe(config: LlamaConfig) -> str:
    """The sizes of a model that a cache depends on."""
    return (
        f"{config.layers} layers, {config.heads} heads, {config.kv_heads} kv heads of "
        f"{config.head_dim}, a context of {config.context} tokens"
    )


def path_of(folder: Path, model: str | None) -> Path:
    """The file of a model's findings, or of those that need none."""
    if model is None:
        return folder / GENERAL
    return folder / f"claims-{safe_name(model)}.json"


def safe_name(text: str) -> str:
    """`text` as part of a file's name."""
    return re.sub(r"[^\w.-]", "_", text)


def write(folder: Path, findings: Findings) -> Path:
    """Writes the file and returns its path."""
    path = path_of(folder, findings.model)
    content = json.dumps(dataclasses.asdict(findings), indent=2, allow_nan=False) + "\n"
    files.write_atomically(path, content.encode(), "--out")
    return path


def read_all(folder: Path) -> list[Findings]:
    """All findings in a folder: those that need no model first, then by the name of the file."""
    paths = [folder / GENERAL, *sorted(folder.glob("claims-*.json"))]
    return [_read(path) for path in paths if path.exists()]


def _read(path: Path) -> Findings:
    return reading.record(Findings, reading.read_object(path), f"{path}: ")
