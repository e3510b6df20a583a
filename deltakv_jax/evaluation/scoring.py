"""The two programs that run on the device, each compiled for one fixed shape.

`chunk_hidden` depends on the cache's format: it feeds a chunk through the model and an empty cache
that holds exactly this chunk, so that every token attends to what the cache would hold for it.
`score` does not: it compares the formats over one chunk, a few positions at a time, so that logits
never exist for all positions and the whole vocabulary.

A chunk is always a program of its own. How many are dispatched together changes no result. On a
mesh every row of devices has a chunk of its own.
"""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int32

from deltakv_jax.attention import Implementation, attend
from deltakv_jax.cache import KVCache, Sides
from deltakv_jax.codec import CacheSpec
from deltakv_jax.evaluation.raw import attend_raw
from deltakv_jax.generation.steps import cache_for, forward
from deltakv_jax.model import Llama
from deltakv_jax.parallel.collectives import collectives_on, spread
from deltakv_jax.parallel.sharding import BATCH, cache_specs, model_specs
from deltakv_jax.typed import typed

MAX_PIECE = 512  # tokens fed at once: bounds the memory of a long context
MAX_LOGITS = 2**23  # of one format held at once, 32 MiB


class TokenScores(NamedTuple):
    """What is kept of each scored prediction, for each format f; the first one is the base.

    Attributes:
      nll: minus the natural logarithm of the true token's probability.
      kld: Kullback-Leibler divergence of the base's distribution from the format's, in nats.
      same_top: whether the most likely token is the base's.
      finite: whether every logit is.
    """

    nll: Float32[Array, "*data f n"]
    kld: Float32[Array, "*data f n"]
    same_top: Bool[Array, "*data f n"]
    finite: Bool[Array, "*data f n"]


def piece_length(ctx: int, *, sequential: bool) -> int:
    """Tokens fed at once: one, or a chunk in as few equal pieces as `MAX_PIECE` allows."""
    return 1 if sequential else math.ceil(ctx / math.ceil(ctx / MAX_PIECE))


Reads = Literal["cache", "raw"]
READS: tuple[Reads, ...] = ("cache", "raw")
"""What a token attends to: the cache alone, or what is not yet packed (not cache-true)."""


def cut_in_pieces(tokens: Int32[Array, " ctx"], piece: int) -> tuple[Array, Array]:
    """Tokens [p, 1, piece], the last ones padding, and how many of each piece are not [p, 1]."""
    ctx, pieces = len(tokens), math.ceil(len(tokens) / piece)
    padded = jnp.pad(tokens, (0, pieces * piece - ctx)).reshape(pieces, 1, piece)
    return padded, jnp.minimum(piece, ctx - piece * jnp.arange(pieces))[:, None]


@functools.partial(jax.jit, static_argnames=("spec", "piece", "reads", "mesh", "implementation"))
@typed
def chunk_hidden(
    model: Llama,
    tokens: Int32[Array, "*data ctx"],
    centre: Sides | None = None,
    *,
    spec: CacheSpec,
    piece: int,
    reads: Reads = "cache",
    mesh: Mesh | None = None,
    implementation: Implementation | None = None,
) -> Float32[Array, "*data ctx w"]:
    """The final hidden states of one chunk, read through a cache of format `spec`.

    Args:
      model: the weights.
      tokens: the chunk; the cache is empty before it and full after it. On a mesh, a chunk for
        each row of devices.
      centre: the means, as `make_cache` takes them.
      spec: the cache's format.
      piece: tokens fed at once; 1 is the route that decoding takes.
      reads: what the tokens of a piece attend to.
      mesh: the devices that share the model.
      implementation: of attention to the cache.
    """
    on, ctx = collectives_on(mesh), tokens.shape[-1]
    readers = {"cache": functools.partial(attend, implementation=implementation), "raw": attend_raw}

    def run(model: Llama, tokens: Array, empty: KVCache) -> Array:
        def feed(cache: KVCache, at: tuple[Array, Array]) -> tuple[KVCache, Array]:
            hidden, cache = forward(model, *at, cache, readers[reads], on)
            return cache, hidden[0]

        _, hidden = jax.lax.scan(feed, empty, cut_in_pieces(tokens.reshape(ctx), piece))
        return hidden.reshape(-1, hidden.shape[-1])[:ctx].reshape(*tokens.shape, -1)

    batch = tokens.size // ctx
    empty = cache_for(model.config, spec, capacity=ctx, batch=batch, centre=centre)
    inputs = (model_specs(model), BATCH, cache_specs(empty))
    return spread(mesh, run, inputs, BATCH)(model, tokens, empty)


@functools.partial(jax.jit, static_argnames=("first", "mesh"))
@typed
def score(
    model: Llama,
    hidden: tuple[Float32[Array, "*data ctx w"], ...],
    tokens: Int32[Array, "*data ctx"],
    *,
    first: int,
    mesh: Mesh | None = None,
) -> TokenScores:
    """Scores the predictions at positions `first` … ctx - 2 of one chunk.

    Args:
      model: the weights, of which the head is used.
      hidden: final hidden states under each format, the base's first.
      tokens: the chunk, or on a mesh one for each row of devices.
      first: the first position that is scored; it predicts token first + 1.
      mesh: the devices that share the model.

    Returns:
      The scores [f n]; on a mesh [data f n].
    """
    on, ctx = collectives_on(mesh), tokens.shape[-1]
    at_once = max(1, min(256, MAX_LOGITS // model.config.vocab_size))

    def run(model: Llama, hidden: tuple[Array, ...], tokens: Array) -> TokenScores:
        lead = tokens.shape[:-1]
        states = [h.reshape(ctx, -1)[first:-1] for h in hidden]

        def compare(at: tuple[list[Array], Array]) -> TokenScores:
            logits = [model.logits(h, on) for h in at[0]]
            return _token_scores(jnp.stack(logits), at[1])

        targets = tokens.reshape(ctx)[first + 1 :]
        scores = jax.lax.map(compare, (states, targets), batch_size=at_once)
        return jax.tree.map(lambda x: x.T.reshape(*lead, *x.T.shape), scores)

    inputs = (model_specs(model), BATCH, BATCH)
    return spread(mesh, run, inputs, BATCH)(model, hidden, tokens)


def _token_scores(logits: Float32[Array, "f v"], target: Int32[Array, ""]) -> TokenScores:
    log_p = jax.nn.log_softmax(logits)
    top = jnp.argmax(logits, axis=-1)
    return TokenScores(
        nll=-log_p[:, target],
        kld=kl_divergence(log_p[0], log_p),
        same_top=top == top[0],
        finite=jnp.isfinite(logits).all(axis=-1),
    )


def kl_divergence(log_p: Float[Array, "*#f v"], log_q: Float[Array, "*f v"]) -> Float[Array, "*f"]:
    """KL(p‖q) = Σ p ln(p/q) in nats, exact to second order in x = ln(p/q).

    Summed as p (x + e^-x - 1), which adds Σ q - Σ p = 0: no term is negative, and a rounding error
    in a normaliser, which moves all x by one amount, cancels to first order. In float32 the plain
    sum drowns the divergence of a 16-bit cache (about 1e-7) in such errors.
    """
    x, p = log_p - log_q, jnp.exp(log_p)
    near = p * (x + jnp.expm1(-x))
    far = p * x + (jnp.exp(log_q) - p)  # where e^-x may overflow
    return jnp.sum(jnp.where(x > -1, near, far), axis=-1)
