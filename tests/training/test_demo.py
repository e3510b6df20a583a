"""The model that comes with the package, and the road to it."""

from pathlib import Path

import numpy as np
import pytest

from deltakv_jax.training import corpus, demo
from deltakv_jax.training.tokens import BOS_ID, EOS_ID, stream, train_tokenizer
from deltakv_jax.weights import demo_folder, load_model


def test_the_demo_model_is_what_the_script_makes():
    loaded = load_model(demo_folder())
    assert loaded.name == "demo"
    assert loaded.config == demo.CONFIG
    assert loaded.tokenizer.bos_id == BOS_ID
    assert loaded.tokenizer.eos_ids == {EOS_ID}
    assert loaded.tokenizer.vocab_size == demo.CONFIG.vocab_size


def test_the_demo_model_is_small():
    assert sum(path.stat().st_size for path in demo_folder().iterdir()) <= 10_000_000


def test_any_text_survives_its_tokenizer():
    tokenizer = load_model(demo_folder()).tokenizer
    text = "def f(x):\n        return x  # naïve €\t\r\n\n\N{PILE OF POO}"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_stream_ends_each_document(tmp_path: Path):
    texts = ["for while for while", "while for"]
    tokenizer = train_tokenizer(texts, 300, tmp_path / "tokenizer.json")
    tokens = stream(tokenizer, texts)
    assert (tokens == EOS_ID).sum() == 2
    assert tokens[-1] == EOS_ID
    assert tokenizer.decode(tokens.tolist()) == "".join(texts)


def test_a_tokenizer_that_lies_there_is_taken(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    train_tokenizer(["for while"], 300, path)
    before = path.read_bytes()
    train_tokenizer(["other words"], 300, path)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_more_context_helps():
    loaded = load_model(demo_folder())
    tokens = np.array(loaded.tokenizer.encode(corpus.python_docs().held_out, bos=False))
    data = demo.Data(tokens, tokens, {"docs": tokens}, demo_folder() / "tokenizer.json")
    short, long = (demo.perplexities(loaded.model, data, n)["docs"] for n in (512, 2048))
    assert long < short < 100
