"""A folder with a tiny random model, for tests to load and to damage."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from deltakv_jax.config import LlamaConfig
from deltakv_jax.model import Llama
from deltakv_jax.weights import save_model
from tests.models import abstract

CONFIG = LlamaConfig(
    vocab_size=260,
    width=8,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    ffn=12,
    context=64,
    rope_theta=10000.0,
    norm_eps=1e-5,
    tied=False,
)


@pytest.fixture
def model() -> Llama:
    """Random weights that float16 holds exactly."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape).astype(np.float16), leaf.dtype)
    return jax.tree.map(draw, abstract(CONFIG))


@pytest.fixture
def folder(model: Llama, tmp_path: Path) -> Path:
    """The folder `tiny` with that model and a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<bos>", "<eos>", "<eot>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<eot>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    save_model(tmp_path / "tiny", model, tmp_path / "tokenizer.json", bos="<bos>", eos="<eos>")
    return tmp_path / "tiny"
