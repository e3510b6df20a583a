"""Loading a model of 3 GB: minutes, and 7 GB of disk and memory."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type

from deltakv_jax.config import LlamaConfig
from deltakv_jax.weights.gguf.source import NAMES
from deltakv_jax.weights.roles import layer_shapes, model_shapes
from scripts.fuzzing.gguf_files import (
    model_metadata,
    random_tensor,
    sentencepiece_metadata,
    write_gguf,
)

ROOT = Path(__file__).parents[2]

# The matrices of Llama 3.1 8B, in fewer layers.
CONFIG = LlamaConfig(
    vocab_size=32000,
    width=4096,
    layers=24,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=14336,
    context=2048,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=False,
)

_TOKENS = 900  # that the tokenizer of those files can have

LOAD = """
import sys
import jax
from deltakv_jax.weights import load_model
model = load_model(sys.argv[1], "native").model
matrices = [model.embedding, model.head, model.query, model.key, model.value, model.output]
leaves = jax.tree.leaves([*matrices, model.gate, model.up, model.down])
print(8 * sum(leaf.nbytes for leaf in leaves))
"""


def write_model(path: Path) -> int:
    """Returns the number of weights in matrices; layers share their random values."""
    rng = np.random.default_rng(0)
    draw = lambda shape: random_tensor(rng, shape, Type.Q4_0 if len(shape) == 2 else Type.F32)
    once = {role: draw(shape) for role, shape in model_shapes(CONFIG).items()}
    layer = {role: draw(shape) for role, shape in layer_shapes(CONFIG).items()}
    numbers = range(CONFIG.layers)
    tensors = {NAMES[role]: tensor for role, tensor in once.items()} | {
        NAMES[role].format(number): tensor for number in numbers for role, tensor in layer.items()
    }
    metadata = model_metadata(CONFIG) | sentencepiece_metadata(_TOKENS)
    write_gguf(path, "llama", metadata, tensors)
    sizes = [
        *(np.prod(shape) for shape in model_shapes(CONFIG).values() if len(shape) == 2),
        *(CONFIG.layers * np.prod(s) for s in layer_shapes(CONFIG).values() if len(s) == 2),
    ]
    return int(sum(sizes))


def own_memory(pid: int) -> int:
    """Bytes of resident memory of a process that no file backs; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    kinds = [fields.get(name, "0 kB") for name in ("RssAnon", "RssShmem")]
    return sum(1024 * int(kind.split()[0]) for kind in kinds)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_packed_model_is_never_there_twice(tmp_path: Path):
    path = tmp_path / "large.gguf"
    weights = write_model(path)
    size = path.stat().st_size
    assert size > 3e9
    command = [sys.executable, "-c", LOAD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, own_memory(process.pid))
            time.sleep(0.005)
        assert process.stdout is not None
        bits = int(process.stdout.read())
    path.unlink()
    print(f"file {size}, peak {peak}, {peak / size:.3f} of it, {bits / weights:.3f} bits a weight")
    assert bits / weights <= 4.6
    assert peak <= 1.15 * size
