"""Which predictions are scored: the protocol of llama.cpp's `llama-perplexity`.

The whole text is tokenised once and cut into chunks that do not overlap. Each chunk is run alone,
from an empty cache, its first token replaced by BOS, and the predictions in its second half are
scored: position p predicts token p + 1, for p in ctx // 2 … ctx - 2.
"""

import dataclasses

import numpy as np
from jaxtyping import Int32

from deltakv_jax.errors import UserError
from deltakv_jax.typed import typed
from deltakv_jax.weights import Tokenizer

MIN_CTX = 8  # three scored predictions: fewer have no error bar worth the name


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Token sequences that are scored apart, all of one length.

    Attributes:
      tokens: one chunk a row, [c, ctx].
      first: the first position whose prediction is scored; the last is ctx - 2.
      available: how many chunks the text has, of which these are the first.
    """

    tokens: Int32[np.ndarray, "c ctx"]
    first: int
    available: int

    @property
    def scored(self) -> int:
        """Predictions scored over all chunks."""
        count, ctx = self.tokens.shape
        return count * (ctx - 1 - self.first)


def tokenize(tokenizer: Tokenizer, content: str) -> Int32[np.ndarray, " t"]:
    """The whole text as token ids, after BOS where the tokenizer has one."""
    return np.asarray(tokenizer.encode(content, bos=True), np.int32)


@typed
def llama_cpp_chunks(
    tokens: Int32[np.ndarray, " t"], *, ctx: int, bos_id: int | None, limit: int | None
) -> Chunks:
    """Cuts a tokenised text as `llama-perplexity` does, and takes its first `limit` chunks."""
    available = len(tokens) // ctx
    if not available:
        raise UserError(_too_short(len(tokens), ctx))
    count = available if limit is None else min(limit, available)
    chunks = tokens[: count * ctx].reshape(count, ctx).copy()
    if bos_id is not None:
        chunks[:, 0] = bos_id
    return Chunks(chunks, ctx // 2, available)


def _too_short(tokens: int, ctx: int) -> str:
    found = f"the text has {tokens} tokens, fewer than one chunk of --ctx {ctx}"
    if tokens < MIN_CTX:
        return f"{found}; give a longer text"
    return f"{found}; give a longer text or --ctx {tokens} or less"
