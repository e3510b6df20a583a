import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from gguf import GGUFReader
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize

from deltakv_jax.attention.rope import inverse_frequencies
from deltakv_jax.errors import UserError
from deltakv_jax.weights.gguf import open_gguf
from deltakv_jax.weights.gguf.source import BLOCKS, DENSE, NAMES
from deltakv_jax.weights.roles import layer_shapes
from tests.weights.gguf.material import CONFIG, write_model

WIDE = dataclasses.replace(CONFIG, width=256, head_dim=64, ffn=256, layers=1)


def stored(path: Path) -> dict[str, tuple[np.ndarray, Type]]:
    """Every tensor as the package reads it."""
    return {tensor.name: (tensor.data, tensor.tensor_type) for tensor in GGUFReader(path).tensors}


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows in halves, put as GGUF has them: by llama.cpp's own `permute`."""
    return (
        rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
        .swapaxes(1, 2)
        .reshape(rows.shape)
    )


@pytest.mark.parametrize("type_", [*DENSE, *BLOCKS], ids=lambda type_: type_.name)
def test_values_are_those_of_the_package(type_: Type, tmp_path):
    """Of every type; `read` gives the bytes as they are."""
    types: dict[str, Type] = dict.fromkeys(("embedding", "value", "query", "down"), type_)
    path = write_model(tmp_path / "a.gguf", config=WIDE, types=types)
    source, by_package = open_gguf(path), stored(path)
    for role, layer in (("embedding", None), ("value", 0), ("down", 0), ("query", 0)):
        tensor = source.tensor(role, layer)
        raw, kind = by_package[NAMES[role].format(layer)]
        want = dequantize(raw, kind)
        values, bytes_ = tensor.values(), tensor.read()
        if role == "query":
            values = interleaved(values, WIDE.heads)
            bytes_ = interleaved(bytes_, WIDE.heads)
        assert tensor.kind == type_.name.lower()
        assert values.dtype == np.float32
        assert values.shape == tensor.shape == want.shape
        assert np.array_equal(values, want)
        assert bytes_.tobytes() == raw.tobytes()


def test_dense_types_keep_their_own_dtype(tmp_path):
    types = {"query": Type.F16, "value": Type.BF16, "output": Type.F32}
    source = open_gguf(write_model(tmp_path / "a.gguf", types=types))
    got = [source.tensor(role, 0).read().dtype for role in types]
    assert got == [np.float16, ml_dtypes.bfloat16, np.float32]


def test_a_matrix_of_many_rows_is_dequantised_in_pieces(tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=2500)
    path = write_model(tmp_path / "a.gguf", config=config, types={"embedding": Type.Q4_0})
    raw, kind = stored(path)["token_embd.weight"]
    assert np.array_equal(open_gguf(path).tensor("embedding").values(), dequantize(raw, kind))


def test_all_weights_of_a_real_model_are_those_of_its_folder(shared):
    """Bit for bit, the rows of q and k put back."""
    from safetensors.numpy import load_file

    from deltakv_jax.weights.huggingface import NAMES as FOLDER_NAMES

    source = open_gguf(shared / "models" / "tiny1m-f32.gguf")
    folder = load_file(shared / "models" / "tiny1m" / "model.safetensors")
    roles = [(role, None) for role in ("embedding", "head", "final_norm")]
    roles += [(role, layer) for role in layer_shapes(source.config) for layer in range(4)]
    assert len(roles) == len(folder)
    for role, layer in roles:
        want = folder[FOLDER_NAMES[role].format(layer)]
        assert np.array_equal(source.tensor(role, layer).read(), want), (role, layer)


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_the_rows_of_qwen_are_not_moved(arch, tmp_path):
    config = dataclasses.replace(CONFIG, qkv_bias=arch == "qwen2", qk_norm=arch == "qwen3")
    path = write_model(tmp_path / "a.gguf", arch=arch, config=config, types={"key": Type.Q8_0})
    source, by_package = open_gguf(path), stored(path)
    source.check_all_used()
    for role in layer_shapes(config):
        raw, kind = by_package[NAMES[role].format(1)]
        assert np.array_equal(source.tensor(role, 1).values(), dequantize(raw, kind)), role


def test_a_model_without_a_head_is_tied(tmp_path):
    path = write_model(tmp_path / "a.gguf", tensors={"output.weight": None})
    source = open_gguf(path)
    source.check_all_used()
    assert source.config == dataclasses.replace(CONFIG, tied=True)


FACTORS = np.linspace(1, 8, 8, dtype=np.float32)


def test_factors_of_the_frequencies(tmp_path):
    """As llama.cpp: theta divided by the tensor, all of it by the linear factor."""
    source = open_gguf(
        write_model(
            tmp_path / "a.gguf",
            metadata={"llama.rope.scaling.factor": 2.0},
            tensors={"rope_freqs.weight": (FACTORS, Type.F32)},
        )
    )
    source.check_all_used()
    want = inverse_frequencies(CONFIG) / (2 * FACTORS)
    np.testing.assert_allclose(inverse_frequencies(source.config), want, rtol=1e-6)


def test_linear_scaling_without_factors(tmp_path):
    source = open_gguf(
        write_model(tmp_path / "a.gguf", metadata={"llama.rope.scaling.factor": 4.0})
    )
    want = inverse_frequencies(CONFIG) / 4
    np.testing.assert_allclose(inverse_frequencies(source.config), want, rtol=1e-6)


ROW = np.zeros((CONFIG.heads * CONFIG.head_dim, CONFIG.width), np.float32)
NORM = np.zeros(CONFIG.width, np.float32)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (
            {"blk.1.attn_k.weight": None},
            r"a.gguf lacks the tensor blk.1.attn_k.weight, expected with shape \[32, 32\]$",
        ),
        (
            {"blk.0.attn_k.weight": (ROW, Type.F32)},
            r"a.gguf: blk.0.attn_k.weight has shape \[64, 32\], expected \[32, 32\]$",
        ),
        (
            {"output_norm.weight": (NORM[:16], Type.F32)},
            r"a.gguf: output_norm.weight has shape \[16\], expected \[32\]$",
        ),
        (
            {"token_embd.weight": (ROW.astype(np.float64), Type.F64)},
            r"a.gguf: token_embd.weight has shape \[64, 32\], expected \[300, 32\]$",
        ),
        (
            {"rope_freqs.weight": (NORM, Type.F32)},
            r"a.gguf: rope_freqs.weight has shape \[32\], expected \[8\]$",
        ),
        (
            {"rope_freqs.weight": (NORM[:8], Type.F32)},
            r"a.gguf: rope_factors must be positive and finite, got 0.0$",
        ),
        (
            {"token_embd.weight": (np.zeros((300, 32), np.int8), Type.I8)},
            r"a.gguf: token_embd.weight has type I8, supported are F32, F16, BF16, Q4_0",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_on_opening(tensors, says, tmp_path):
    with pytest.raises(UserError, match=says):
        open_gguf(write_model(tmp_path / "a.gguf", tensors=tensors))


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "blk.2.attn_norm.weight", "blk.0.ffn_gate_exps.weight"]
)
def test_a_tensor_that_is_left_over_is_named(name, tmp_path):
    path = write_model(tmp_path / "a.gguf", tensors={name: (NORM, Type.F32)})
    with pytest.raises(UserError, match=f"a.gguf: the tensor {name} has no place in the model$"):
        open_gguf(path).check_all_used()


def test_more_layers_than_tensors_are_refused_at_once(tmp_path):
    path = write_model(tmp_path / "a.gguf", metadata={"llama.block_count": 2**31 - 1})
    with pytest.raises(UserError, match=r"a.gguf has 21 tensors, too few for 2147483647 layers"):
        open_gguf(path)
