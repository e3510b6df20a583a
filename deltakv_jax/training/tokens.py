"""The demo model's own tokenizer, and texts as streams of its tokens."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from deltakv_jax.typed import typed

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
BOS_ID, EOS_ID = 0, 1


def train_tokenizer(texts: Sequence[str], vocab_size: int, path: Path) -> tokenizers.Tokenizer:
    """Makes a byte-level BPE of `texts`, kept at `path`; one that lies there already is taken."""
    if not path.exists():
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.save(str(path))
    return tokenizers.Tokenizer.from_file(str(path))


@typed
def stream(
    tokenizer: tokenizers.Tokenizer, documents: Sequence[str]
) -> Int32[np.ndarray, " tokens"]:
    """The documents' tokens, EOS after each document."""
    encoded = tokenizer.encode_batch(list(documents), add_special_tokens=False)
    return np.concatenate([np.array([*one.ids, EOS_ID], np.int32) for one in encoded])
