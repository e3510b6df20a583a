"""Which predictions are scored: protocols as records of one table.

In both a text is tokenised once and cut into chunks that do not overlap, each run alone from an
empty cache; position p predicts token p + 1.

- `llama.cpp`, of its `llama-perplexity`: the whole file; the first token of each chunk is replaced
  by BOS, and its second half is scored: p in ctx // 2 … ctx - 2.
- `gptq`, of GPTQ (arXiv 2210.17323) and most papers since: the rows of a dataset with an empty line
  between them, BOS once in front of all; windows of 2048, every prediction inside one is scored.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Int32

from deltakv_jax.errors import UserError
from deltakv_jax.typed import typed
from deltakv_jax.weights import Tokenizer

MIN_CTX = 8  # three scored predictions: fewer have no error bar worth the name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way to cut and score a text.

    Attributes:
      ctx: tokens of a chunk unless asked for otherwise.
      prepare: what is tokenised, made of the text.
      bos_each: whether the first token of every chunk is replaced by BOS.
      first: the first scored position of a chunk of so many tokens.
    """

    ctx: int
    prepare: Callable[[str], str]
    bos_each: bool
    first: Callable[[int], int]


def _as_rows(content: str) -> str:
    """Rows as `datasets` has WikiText's, one a line, blank ones empty; an empty line between."""
    rows = re.findall(r"[^\n]*\n|[^\n]+", content)
    return "\n\n".join(row if row.strip() else "" for row in rows)


PROTOCOLS = {
    "llama.cpp": Protocol(
        ctx=512, prepare=lambda content: content, bos_each=True, first=lambda ctx: ctx // 2
    ),
    "gptq": Protocol(ctx=2048, prepare=_as_rows, bos_each=False, first=lambda ctx: 0),
}
DEFAULT = "llama.cpp"


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


def tokenize(tokenizer: Tokenizer, content: str, protocol: Protocol) -> Int32[np.ndarray, " t"]:
    """A text as token ids, after BOS where the tokenizer has one."""
    tokens = tokenizer.encode(protocol.prepare(content), bos=True)
    if len(tokens) <= (tokenizer.bos_id is not None):
        raise UserError("the text has no tokens; give a longer one")
    return np.asarray(tokens, np.int32)


@typed
def cut(
    tokens: Int32[np.ndarray, " t"],
    protocol: Protocol,
    *,
    ctx: int,
    bos_id: int | None,
    limit: int | None,
) -> Chunks:
    """Cuts a tokenised text as `protocol` does, and takes its first `limit` chunks."""
    available = len(tokens) // ctx
    if not available:
        raise UserError(_too_short(len(tokens), ctx))
    count = available if limit is None else min(limit, available)
    chunks = tokens[: count * ctx].reshape(count, ctx).copy()
    if protocol.bos_each and bos_id is not None:
        chunks[:, 0] = bos_id
    return Chunks(chunks, protocol.first(ctx), available)


def _too_short(tokens: int, ctx: int) -> str:
    found = f"the text has {tokens} tokens, fewer than one chunk of --ctx {ctx}"
    if tokens < MIN_CTX:
        return f"{found}; give a longer text"
    return f"{found}; give a longer text or --ctx {tokens} or less"
