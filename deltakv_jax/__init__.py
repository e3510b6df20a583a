"""A Flax Llama whose KV cache is stored as keyframes and 4-bit differences.

From a prompt to tokens, one step at a time:

    import jax.numpy as jnp
    import deltakv_jax as dk

    loaded = dk.load_model(dk.demo_folder())
    cache = dk.empty_cache(loaded.config, dk.parse_spec("delta"), capacity=256)
    prompt = loaded.tokenizer.encode("The for statement is used to")
    logits, cache = dk.prefill(loaded.model, [prompt], cache)
    tokens = []
    for _ in range(40):
        token = jnp.argmax(logits, axis=-1)
        tokens.append(token.item())
        logits, cache = dk.decode_step(loaded.model, token, cache)
    print(loaded.tokenizer.decode(tokens))
    print(dk.bits_per_value(cache), "bits per value,", dk.cache_bytes(cache), "bytes")

Every step donates its cache: use the one that it returns. `decode` does the whole loop in one
compiled program, with sampling, a batch and text as it is made. A model that is loaded with
`mesh=dk.make_mesh({"tensor": 4})` lies on four devices; the functions take that mesh too.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from deltakv_jax.cache import (
        KVCache,
        bits_per_value,
        cache_bytes,
        make_cache,
        truncate,
    )
    from deltakv_jax.calibration import Calibration, load_calibration
    from deltakv_jax.codec import KVSpec, parse_spec
    from deltakv_jax.config import LlamaConfig
    from deltakv_jax.errors import UserError
    from deltakv_jax.generation.decode import Decoded, Stop, decode
    from deltakv_jax.generation.sampling import Sampling, make_sampling, sequence_keys
    from deltakv_jax.generation.steps import decode_step, empty_cache, prefill
    from deltakv_jax.linear import multiplied_by
    from deltakv_jax.parallel.mesh import make_mesh
    from deltakv_jax.weights import LoadedModel, demo_folder, load_model

# Where each public name is. It is imported when first asked for: `deltakv --help` needs no JAX.
_HOMES = {
    "cache": ("KVCache", "bits_per_value", "cache_bytes", "make_cache", "truncate"),
    "calibration": ("Calibration", "load_calibration"),
    "codec": ("KVSpec", "parse_spec"),
    "config": ("LlamaConfig",),
    "errors": ("UserError",),
    "generation.decode": ("Decoded", "Stop", "decode"),
    "generation.sampling": ("Sampling", "make_sampling", "sequence_keys"),
    "generation.steps": ("decode_step", "empty_cache", "prefill"),
    "linear": ("multiplied_by",),
    "parallel.mesh": ("make_mesh",),
    "weights": ("LoadedModel", "demo_folder", "load_model"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Calibration",
    "Decoded",
    "KVCache",
    "KVSpec",
    "LlamaConfig",
    "LoadedModel",
    "Sampling",
    "Stop",
    "UserError",
    "bits_per_value",
    "cache_bytes",
    "decode",
    "decode_step",
    "demo_folder",
    "empty_cache",
    "load_calibration",
    "load_model",
    "make_cache",
    "make_mesh",
    "make_sampling",
    "multiplied_by",
    "parse_spec",
    "prefill",
    "sequence_keys",
    "truncate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
