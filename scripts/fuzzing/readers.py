"""The readers that are fuzzed, and what may come of a mutated file."""

from collections.abc import Callable
from pathlib import Path

from deltakv_jax.errors import UserError
from deltakv_jax.weights.load import open_source
from deltakv_jax.weights.roles import layer_shapes, model_shapes
from scripts.fuzzing import seeds
from scripts.fuzzing.mutations import Random, mutate
from scripts.fuzzing.seeds import Seed

READERS: dict[str, Callable[[], list[Seed]]] = {
    "gguf": seeds.gguf,
    "gguf-parts": seeds.gguf_parts,
    "safetensors": seeds.safetensors,
    "index": seeds.index,
    "config": seeds.configs,
    "tokenizer.json": seeds.tokenizer_json,
    "tokenizer.model": seeds.tokenizer_model,
}
"""By name, the valid models from which the files of a reader are made."""


def mutated(models: list[Seed], random: Random) -> Seed:
    """One of the models with one of its files mutated."""
    seed = random.choice(models)
    name = random.choice(seed.mutated)
    donors = [donor.files[name] for donor in models if name in donor.files]
    return Seed({**seed.files, name: mutate(seed.files[name], donors, random)}, seed.opened, ())


def read(path: Path) -> None:
    """Reads all that a model is made from: config, tokenizer, every tensor stored and as values."""
    source = open_source(path)
    tokenizer = source.tokenizer()
    tokenizer.decode(tokenizer.encode("abc def"))
    names = [(role, None) for role in model_shapes(source.config)]
    layers = range(source.config.layers)
    names += [(role, layer) for layer in layers for role in layer_shapes(source.config)]
    for role, layer in names:
        tensor = source.tensor(role, layer)
        tensor.read()
        tensor.values()
    source.check_all_used()


def loads(seed: Seed, folder: Path) -> bool:
    """Whether a model loads; all else than a `UserError` of one line is raised.

    Its files are left in the folder.
    """
    for path in folder.iterdir():
        path.unlink()
    for name, content in seed.files.items():
        (folder / name).write_bytes(content)
    try:
        read(folder / seed.opened)
    except UserError as error:
        _check(error)
        return False
    return True


def _check(error: UserError) -> None:
    if len(str(error).splitlines()) != 1 or not str(error).isprintable():
        raise AssertionError(f"an error of more than one line: {str(error)!r}") from error
    cause = error.__context__
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise AssertionError(f"a large allocation, refused with {error}") from error
        cause = cause.__context__
