"""Evidence whose figures a test can choose, and a model that needs no files."""

import dataclasses

from deltakv_jax.config import LlamaConfig
from deltakv_jax.evaluation.capture import ARRAYS
from deltakv_jax.evaluation.claims.commands import Asked
from deltakv_jax.evaluation.claims.experiments import PARTS, Evidence
from deltakv_jax.evaluation.coherence import Coherence
from deltakv_jax.evaluation.coherence import Row as CoherenceRow
from deltakv_jax.evaluation.results import Row, Run
from deltakv_jax.evaluation.texts import Text
from deltakv_jax.model import Llama
from deltakv_jax.weights import LoadedModel
from tests.evaluation.samples import make_row

ASKED = Asked("--model demo", {"a.txt": "folder/a.txt", "b.txt": "b.txt"})
BITS = (16.0, 4.5, 5.5, 5.0, 4.75)


def text(name: str = "a.txt", length: int = 300) -> Text:
    return Text(name, "".join(chr(33 + (7 * i * i + i) % 90) for i in range(length)), "0" * 64)


class LetterTokenizer:
    """A token for each letter, and 0 in front."""

    bos_id = 0

    def encode(self, content: str, *, bos: bool = True) -> list[int]:
        return [0] * bos + [ord(letter) % 96 for letter in content]


def loaded(model: Llama, name: str = "small", **sizes: int) -> LoadedModel:
    """A model of the config's sizes but for those given."""
    config: LlamaConfig = dataclasses.replace(model.config, **sizes)
    return LoadedModel(name, config, model, LetterTokenizer())  # pyright: ignore[reportArgumentType]


def change(row: Row, value: float, low: float | None, high: float | None) -> Row:
    """`row` with another change of ln(perplexity)."""
    return dataclasses.replace(
        row, delta_ln_ppl=value, delta_ln_ppl_low=low, delta_ln_ppl_high=high
    )


def make_run(part: str, name: str, *changes: tuple[float, float | None, float | None]) -> Run:
    """A run of a part; the changes are those of its formats behind the first."""
    kvs, raw = PARTS[part].formats, PARTS[part].reads == "raw"
    rows = [make_row(kv, bits, 0.0, 0.0) for kv, bits in zip(kvs, BITS, strict=False)]
    for i, of_format in enumerate(changes, 1):
        kld = 0.0 if raw else 0.02
        rows[i] = dataclasses.replace(change(rows[i], *of_format), kld_mean=kld, kld_max=10 * kld)
    return Run(
        model="small",
        text=name,
        text_sha256="0" * 64,
        protocol="llama.cpp",
        reads=PARTS[part].reads,
        sequential=False,
        ctx=PARTS[part].ctx,
        chunks=3,
        tokens_scored=99,
        rows=tuple(rows),
    )


def make_coherence(name: str, relative_delta: float, gain: float | None) -> Coherence:
    """Two layers, ten percent below and above the figures of both."""
    rows = tuple(
        CoherenceRow(
            layer=layer,
            array=array,
            relative_delta=factor * relative_delta,
            correlation=0.1,
            mean_energy=0.2,
            range_ratio=1.0,
            q4_0_mse=None if gain is None else factor * gain * 1e-3,
            delta_mse=None if gain is None else 1e-3,
            centred_q4_0_mse=None if gain is None else 1e-3,
        )
        for layer, factor in ((0, 0.9), (1, 1.1), (None, 1.0))
        for array in ARRAYS
    )
    return Coherence(
        model="small",
        text=name,
        text_sha256="0" * 64,
        ctx=512,
        chunks=2,
        head_dim=32,
        interval=32,
        rows=rows,
    )


LOSS = (0.01, 0.008, 0.012)
NO_LOSS = (0.001, -0.001, 0.003)


def evidence(short=(LOSS, LOSS, NO_LOSS, (0.005, 0.001, 0.009)), relative_delta: float = 0.8):
    """On one text: q4_0 and N = 16 lose 1 %, N = 32 nothing, and N = 64 nobody knows."""
    return Evidence(
        {
            "short": (make_run("short", "a.txt", *short),),
            "long": (make_run("long", "a.txt", LOSS, LOSS),),
            "raw": (make_run("raw", "a.txt", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),),
        },
        (make_coherence("a.txt", relative_delta, 1.5),),
        {},
    )


NOTHING = Evidence(
    dict.fromkeys(PARTS, ()),
    (make_coherence("a.txt", 0.8, None),),
    dict.fromkeys(PARTS, "Not with this model."),
)
