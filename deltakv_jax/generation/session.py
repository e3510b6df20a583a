"""What the decoding command does: prompts or a saved cache in, text out as it is made."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from deltakv_jax.attention import Implementation
from deltakv_jax.cache import KVCache, cache_bytes, make_cache
from deltakv_jax.cache.grow import grow
from deltakv_jax.calibration import Calibration
from deltakv_jax.codec import CacheSpec, LayerSpecs, parse_spec
from deltakv_jax.config import LlamaConfig
from deltakv_jax.errors import UserError
from deltakv_jax.generation import saving
from deltakv_jax.generation.decode import Step, Stop, decode
from deltakv_jax.generation.sampling import GREEDY, Sampling, sequence_keys
from deltakv_jax.generation.saving import Prefilled
from deltakv_jax.generation.steps import compile_prefill, empty_cache, prefill
from deltakv_jax.parallel.placement import make_on, put, to_host
from deltakv_jax.parallel.sharding import WHOLE, check_batch
from deltakv_jax.weights import LoadedModel, Tokenizer
from deltakv_jax.weights.tokenizers.chat import conversation

DEFAULT_SPEC = "f16"

Tokens = list[list[int]]
OnText = Callable[[int, str, bool], object]
"""Takes the number of a sequence, more of its text, and whether that is its end."""
Warn = Callable[[str], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to go on from, and how.

    Attributes:
      prompts: one per sequence; may be empty only with `load_cache`.
      spec: the cache's format; None is the loaded cache's, or else f16.
      calibration: has the means that the format takes off; a loaded cache has its own.
      max_new_tokens: per sequence.
      sampling: how tokens are drawn.
      seed: of the first sequence; each next one has the next.
      beyond_context: let a sequence exceed the model's context.
      load_cache: a folder that `save_cache` named before; the prompts follow what it holds.
      save_cache: where to save the cache after the prompts.
      special: special tokens in the prompts are no plain text.
      chat: the prompts are what a user says, and the model's chat template is put around them.
      system: what the conversation begins with, for `chat`.
      implementation: of attention.
    """

    prompts: tuple[str, ...]
    spec: CacheSpec | None = None
    calibration: Calibration | None = None
    max_new_tokens: int
    sampling: Sampling = GREEDY
    seed: int = 0
    beyond_context: bool = False
    load_cache: Path | None = None
    save_cache: Path | None = None
    special: bool = False
    chat: bool = False
    system: str | None = None
    implementation: Implementation | None = None


@dataclasses.dataclass(frozen=True)
class Timed:
    """Tokens that went through the model, and the seconds it took, compilation excluded."""

    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together; 0 where there were none."""
        return self.tokens / self.seconds if self.tokens else 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a session made: texts, tokens and `Stop` of each sequence, times, the last cache."""

    texts: list[str]
    tokens: Tokens
    stops: list[Stop]
    prefill: Timed
    decode: Timed
    cache: KVCache


def run(loaded: LoadedModel, request: Request, on_text: OnText, warn: Warn) -> Outcome:
    """Does what `request` says.

    Raises:
      UserError: where a prompt, a saved cache or a calibration does not fit the model, or logits
        are not finite.
    """
    if request.calibration is not None:
        request.calibration.check_model(saving.fingerprint(loaded.model))
    prompts = [_encode(loaded.tokenizer, request, text) for text in request.prompts]
    saved = _load(loaded, request.load_cache, request.spec) if request.load_cache else None
    end, prefilled = _prefill(loaded, request, prompts, saved, warn)
    if request.save_cache is not None:
        saving.save(request.save_cache, loaded.model, end)
    return _decode(loaded, request, end, prefilled, on_text)


def _encode(tokenizer: Tokenizer, request: Request, prompt: str) -> list[int]:
    if request.chat:
        messages = conversation(prompt, request.system)
        return tokenizer.encode_chat(messages, special=request.special)
    return tokenizer.encode(prompt, bos=request.load_cache is None, special=request.special)


def _load(loaded: LoadedModel, folder: Path, spec: CacheSpec | None) -> Prefilled:
    saved = saving.load(folder, loaded.model, loaded.mesh)
    layers = spec.layers if isinstance(spec, LayerSpecs) else (spec,) * loaded.config.layers
    held = saved.cache.layout
    if spec is not None and layers != tuple(held.kinds[kind] for kind in held.kind_of):
        raise UserError(f"the cache in {folder} is {kv(saved.cache)}, not {spec}")
    return saved


def kv(cache: KVCache) -> str:
    """The specs of a cache's kinds of layer."""
    return ", ".join(str(kind) for kind in cache.layout.kinds)


def f16_bytes(cache: KVCache) -> int:
    """What a cache for as many tokens would take in f16; nothing is allocated."""
    _, batch, kv_heads = jax.tree.leaves(cache.stacks)[0].shape[:3]
    same = functools.partial(
        make_cache,
        parse_spec("f16"),
        layers=len(cache.layout.kind_of),
        kv_heads=kv_heads,
        head_dim=cache.head_dim,
        capacity=cache.capacity,
        batch=batch,
    )
    return cache_bytes(jax.eval_shape(same))


def _prefill(
    loaded: LoadedModel, request: Request, prompts: Tokens, saved: Prefilled | None, warn: Warn
) -> tuple[Prefilled, Timed]:
    """Feeds the prompts to a new cache or after a saved one, with room for all that follows."""
    mesh = loaded.mesh
    if saved is None:
        spec, batch = request.spec or parse_spec(DEFAULT_SPEC), len(prompts)
        check_batch(mesh, batch)
        capacity = _capacity(loaded.config, request, prompts, [0] * batch, warn)
        cache = empty_cache(
            loaded.config,
            spec,
            batch=batch,
            capacity=capacity,
            mesh=mesh,
            calibration=request.calibration,
        )
    else:
        held = to_host(saved.cache.lengths).tolist()
        capacity = _capacity(loaded.config, request, prompts, held, warn)
        cache = saved.cache
        if capacity > cache.capacity:
            cache = make_on(mesh, functools.partial(grow, capacity=capacity), cache)
        if not prompts:
            return saved._replace(cache=cache), Timed(0, 0.0)
    static = {"mesh": mesh, "implementation": request.implementation}
    compile_prefill(loaded.model, prompts, cache, **static)
    start = time.perf_counter()
    logits, cache = jax.block_until_ready(prefill(loaded.model, prompts, cache, **static))
    seconds = time.perf_counter() - start
    last = put(mesh, WHOLE, np.array([prompt[-1] for prompt in prompts], np.int32))
    return Prefilled(logits, last, cache), Timed(sum(map(len, prompts)), seconds)


def _capacity(
    config: LlamaConfig, request: Request, prompts: Tokens, held: list[int], warn: Warn
) -> int:
    """Tokens that the cache needs room for: no more than the model's context unless wanted."""
    new = [len(prompt) for prompt in prompts] or [0] * len(held)
    if len(new) != len(held):
        raise UserError(f"{len(new)} prompts for a saved cache of {len(held)} sequences")
    longest = max(before + tokens for before, tokens in zip(held, new, strict=True))
    wanted = longest + request.max_new_tokens
    if request.beyond_context and wanted > config.context:
        warn(f"warning: up to {wanted} tokens, beyond the model's context of {config.context}")
    if request.beyond_context or wanted <= config.context:
        return wanted
    if longest > config.context:
        raise UserError(
            f"the prompt has {longest} tokens, more than the model's context of {config.context}; "
            "shorten it, or let it through with --beyond-context"
        )
    return config.context


def _decode(
    loaded: LoadedModel, request: Request, end: Prefilled, prefilled: Timed, on_text: OnText
) -> Outcome:
    texts = _Texts(loaded.tokenizer, to_host(end.last).tolist(), on_text)
    before = int(to_host(end.cache.lengths).sum())
    decoded = decode(
        loaded.model,
        end.logits,
        end.cache,
        max_new_tokens=request.max_new_tokens,
        sampling=request.sampling,
        keys=sequence_keys(request.seed, len(end.last)),
        eos_ids=loaded.tokenizer.eos_ids,
        on_step=texts.take,
        mesh=loaded.mesh,
        implementation=request.implementation,
    )
    texts.end()
    for number, stop in enumerate(decoded.stops, 1):
        if stop == Stop.NON_FINITE:
            raise UserError(f"the logits of prompt {number} are not finite; try --weights f32")
    fed = int(to_host(decoded.cache.lengths).sum()) - before
    return Outcome(
        texts=texts.whole,
        tokens=decoded.tokens,
        stops=decoded.stops,
        prefill=prefilled,
        decode=Timed(fed, decoded.seconds),
        cache=decoded.cache,
    )


class _Texts:
    """Turns the tokens of each step into text, whole characters only."""

    def __init__(self, tokenizer: Tokenizer, last: list[int], on_text: OnText):
        self.whole = [""] * len(last)
        self._streams = [tokenizer.stream(after=[token]) for token in last]
        self._open = set(range(len(last)))
        self._on_text = on_text

    def take(self, step: Step) -> None:
        for number, token in enumerate(step):
            if token is None:
                self._end(number)
            else:
                self._add(number, self._streams[number].push(token), ended=False)

    def end(self) -> None:
        for number in sorted(self._open):
            self._end(number)

    def _end(self, number: int) -> None:
        if number in self._open:
            self._open.remove(number)
            self._add(number, self._streams[number].flush(), ended=True)

    def _add(self, number: int, text: str, *, ended: bool) -> None:
        self.whole[number] += text
        self._on_text(number, text, ended)
