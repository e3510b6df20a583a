"""Which module may import which, over the syntax trees: each layer only from its left."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltakv_jax.codec.formats import FORMATS

ROOT = Path(__file__).parents[1]
ORDER = (
    ("errors",),
    ("typed", "config", "checkpoint"),
    ("codec",),
    ("cache",),
    ("deltakv_pallas",),
    ("attention", "linear"),
    ("model",),
    ("parallel",),
    ("weights",),
    ("calibration",),
    ("generation", "training"),
    ("evaluation",),
    ("planning",),
    ("cli",),
    ("scripts",),
)
RANK = {layer: rank for rank, layers in enumerate(ORDER) for layer in layers}
PACKAGES = ("deltakv_jax", "deltakv_pallas", "scripts")
FORMATS_PY = "deltakv_jax/codec/formats.py"


def sources() -> dict[str, str]:
    """The text of every module, by its path from the root."""
    files = [
        *ROOT.glob("deltakv_jax/**/*.py"),
        *ROOT.glob("pallas/deltakv_pallas/**/*.py"),
        *ROOT.glob("scripts/**/*.py"),
    ]
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}


def layer_of(parts: tuple[str, ...]) -> str | None:
    """The layer of a dotted name: None for the package's own `__init__` and strangers."""
    if parts[0] != "deltakv_jax":
        return parts[0] if parts[0] in PACKAGES else None
    return parts[1] if len(parts) > 1 else None


def imports(tree: ast.Module) -> Iterator[tuple[int, tuple[str, ...]]]:
    """The line and the dotted name of everything that is imported, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, tuple(alias.name.split("."))) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            module = (".",) if node.level else tuple((node.module or "").split("."))
            yield from ((node.lineno, (*module, alias.name)) for alias in node.names)


def violations(path: str, source: str) -> list[str]:
    """What this module imports and may not."""
    parts = Path(path).with_suffix("").parts
    own = layer_of(parts[1:] if parts[0] == "pallas" else parts)
    if own == "__init__":
        own = None  # the package's own face: all of it may be shown there
    found = []
    for line, name in imports(ast.parse(source)):
        if name[0] == ".":
            found.append(f"{path}:{line} is a relative import")
        elif reason := forbidden(own, name):
            found.append(f"{path}:{line} imports {'.'.join(name)}: {reason}")
    return found


def forbidden(own: str | None, name: tuple[str, ...]) -> str | None:
    """Why a module of the layer `own` may not import `name`, or None."""
    layer = layer_of(name)
    if name[0] not in PACKAGES or own is None or layer in (None, "__version__", own):
        return None
    if layer not in RANK:
        return f"{layer} is in no layer"
    if own not in RANK:
        return f"{own} is in no layer"
    return None if RANK[layer] < RANK[own] else f"{layer} is not to the left of {own}"


def format_comparisons(path: str, source: str) -> list[str]:
    """Where a module asks for a format by its name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare():
                asked = [node.left, *node.comparators]
            case ast.MatchValue():
                asked = [node.value]
            case ast.Call(func=ast.Attribute(attr="startswith" | "endswith")):
                asked = node.args
            case _:
                continue
        words = {n.value for part in asked for n in ast.walk(part) if isinstance(n, ast.Constant)}
        if words & set(FORMATS):
            found.append(f"{path}:{node.lineno} compares {sorted(set(FORMATS) & words)}")
    return found


def test_every_module_imports_only_from_its_left():
    found = [text for item in sources().items() for text in violations(*item)]
    assert not found, "\n".join(found)


def test_every_module_stands_in_a_layer():
    named = {path.split("/")[1].removesuffix(".py") for path in sources() if "deltakv_jax/" in path}
    assert named - {"__init__", "__main__"} <= set(RANK)
    assert {"codec", "cache", "attention", "model"} <= named


@pytest.mark.parametrize(
    ("path", "source", "says"),
    [
        ("deltakv_jax/codec/a.py", "import deltakv_jax.cache", "cache is not to the left of codec"),
        ("deltakv_jax/cache/a.py", "from deltakv_jax import model", "model is not to the left"),
        ("deltakv_jax/cache/a.py", "from deltakv_pallas import x", "deltakv_pallas is not to the"),
        (
            "deltakv_jax/linear/a.py",
            "from deltakv_jax.attention import x",
            "not to the left of lin",
        ),
        (
            "deltakv_jax/model/a.py",
            "def f():\n    import deltakv_jax.cli.main as m",
            "a.py:2 imports",
        ),
        ("deltakv_jax/cli/a.py", "from scripts.decode import main", "scripts is not to the left"),
        ("deltakv_jax/cli/a.py", "from deltakv_jax import load_model", "load_model is in no layer"),
        ("deltakv_jax/cli/a.py", "from . import main", "is a relative import"),
        ("deltakv_jax/new/a.py", "from deltakv_jax import codec", "new is in no layer"),
        ("pallas/deltakv_pallas/a.py", "import deltakv_jax.attention.rope", "attention is not to"),
    ],
)
def test_a_violation_is_seen(path, source, says):
    (found,) = violations(path, source)
    assert says in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("deltakv_jax/cache/a.py", "from deltakv_jax.cache.state import x\nimport numpy.cache"),
        ("deltakv_jax/cli/a.py", "import deltakv_jax\nfrom deltakv_jax import __version__, codec"),
        ("deltakv_jax/__init__.py", "from deltakv_jax.weights import load_model"),
        ("pallas/deltakv_pallas/a.py", "from deltakv_jax.codec import packing"),
        ("scripts/bench/a.py", "from deltakv_jax.cli import main\nfrom deltakv_pallas import x"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert violations(path, source) == []


def test_only_the_table_of_formats_compares_their_names():
    """A format is one record in one table; what differs between formats stands in the record."""
    others = [item for item in sources().items() if item[0] != FORMATS_PY]
    found = [text for item in others for text in format_comparisons(*item)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "side.name == 'delta'",
        "name in ('q8_0', 'q4_0')",
        "match name:\n    case 'f16': pass",
        "str(side).startswith('delta')",
    ],
)
def test_a_comparison_of_names_is_seen(source):
    assert len(format_comparisons("a.py", source)) == 1
    assert format_comparisons("a.py", "default = 'f16 delta'; dtypes = {'f32': 4}") == []
