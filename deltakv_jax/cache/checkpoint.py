"""A cache on disk: its arrays, and a record of the model, the specs and the sizes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Sharding
from jaxtyping import Array

from deltakv_jax import checkpoint
from deltakv_jax.cache.state import KVCache, make_cache
from deltakv_jax.checkpoint import Kind
from deltakv_jax.codec import parse_spec
from deltakv_jax.errors import UserError

KIND = Kind("cache", version=2)

Where = Callable[[KVCache], tuple[KVCache, Sharding]]


def save_cache(
    folder: Path,
    cache: KVCache,
    *,
    model: Mapping[str, Any],
    extra: Mapping[str, Array] | None = None,
) -> None:
    """Saves `cache` in `folder`, in place of the cache that it may hold.

    Args:
      folder: new, empty, or one that this function wrote.
      cache: what to save.
      model: what makes caches of two models differ, in JSON's types. Loading compares it.
      extra: arrays that go with the cache, by name.

    Raises:
      UserError: where `folder` holds anything else, or cannot be written.
    """
    arrays = _named_arrays(cache) | {f"extra.{name}": x for name, x in (extra or {}).items()}
    checkpoint.save(folder, KIND, arrays, _describe(cache, model))


def load_cache(
    folder: Path, *, model: Mapping[str, Any], where: Where | None = None
) -> tuple[KVCache, dict[str, Array]]:
    """The cache and the extra arrays that `save_cache` put into `folder`, bit for bit.

    Args:
      folder: where they are.
      model: as `save_cache` was given it.
      where: of a cache of shapes, where its leaves go straight to, a tree like it, and where the
        extra arrays do; None for the default device.

    Raises:
      UserError: where there is none, or it is damaged, of another format version, or of a model
        other than `model`.
    """
    saved = checkpoint.open_saved(folder, KIND)
    with checkpoint.reading(folder, KIND):
        _check_model(folder, saved.record["model"], dict(model))
        template = jax.eval_shape(lambda: _empty(saved.record))
        return _restored(template, saved.arrays(where and _by_name(*where(template))))


def check_folder(folder: Path) -> None:
    """Raises UserError unless `save_cache` may write to `folder`."""
    checkpoint.check_folder(folder, KIND)


def _named_arrays(cache: KVCache) -> dict[str, Any]:
    """Every leaf by its path, as in `stacks.0.k.codes`: names that stay when the order changes."""
    leaves = jax.tree_util.tree_leaves_with_path(cache)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}


def _describe(cache: KVCache, model: Mapping[str, Any]) -> dict[str, Any]:
    batch, kv_heads = jax.tree.leaves(cache.stacks)[0].shape[1:3]
    return {
        "model": dict(model),
        "specs": [str(cache.layout.kinds[kind]) for kind in cache.layout.kind_of],
        "batch": batch,
        "kv_heads": kv_heads,
        "head_dim": cache.head_dim,
        "capacity": cache.capacity,
    }


def _check_model(folder: Path, saved: dict, given: dict) -> None:
    for name in saved | given:
        was, wanted = saved.get(name), given.get(name)
        if was != wanted:
            raise UserError(
                f"the cache in {folder} is of another model: {name} is {was} there, {wanted} here"
            )


def _by_name(cache: KVCache, extra: Sharding) -> Callable[[str, int], Sharding]:
    """Where each array goes, by its name."""
    leaves = _named_arrays(cache)
    return lambda name, ndim: leaves.get(name, extra)


def _restored(template: KVCache, arrays: dict[str, Array]) -> tuple[KVCache, dict[str, Array]]:
    names = _named_arrays(template)
    cache = jax.tree.unflatten(jax.tree.structure(template), [arrays.pop(name) for name in names])
    return cache, {name.removeprefix("extra."): x for name, x in arrays.items()}


def _empty(record: Mapping[str, Any]) -> KVCache:
    return make_cache(
        [parse_spec(spec) for spec in record["specs"]],
        layers=len(record["specs"]),
        kv_heads=record["kv_heads"],
        head_dim=record["head_dim"],
        capacity=record["capacity"],
        batch=record["batch"],
    )
