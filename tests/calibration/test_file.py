"""The file of a calibration: all of it comes back, and whatever is wrong is one line."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from deltakv_jax import calibration as module
from deltakv_jax.calibration import load_calibration, parse_cache_spec
from deltakv_jax.codec import LayerSpecs, parse_spec
from deltakv_jax.errors import UserError
from tests.calibration.material import CONFIG, SPECS, make_calibration, model_fingerprint


@pytest.fixture
def path(tmp_path) -> Path:
    made = tmp_path / "some.calibration"
    made.write_bytes(make_calibration(specs=SPECS).to_bytes())
    return made


def contents(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def refused(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_calibration(path)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(f"the calibration {path}")
    return line.removeprefix(f"the calibration {path}").lstrip(" :")


def change(path: Path, *, signed: bool = True, **changes) -> None:
    """Writes the file anew with other arrays or fields, or without; `signed` with their hash."""
    arrays, fields = contents(path)
    for name, value in changes.items():
        among: dict[str, Any] = (
            arrays if name in arrays or isinstance(value, np.ndarray) else fields
        )
        if value is None:
            del among[name]
        else:
            among[name] = value
    if signed and set(arrays) >= set(module._ARRAYS):
        said = {name: text for name, text in fields.items() if name not in ("format", "sha256")}
        fields["sha256"] = module._sha256(arrays, said)
    save_file(arrays, path, fields)


@pytest.mark.parametrize("specs", [SPECS, None])
def test_all_of_it_comes_back(tmp_path, specs):
    made = make_calibration(specs=specs)
    (tmp_path / "file").write_bytes(made.to_bytes())
    read = load_calibration(str(tmp_path / "file"))
    for field in dataclasses.fields(made):
        want, got = getattr(made, field.name), getattr(read, field.name)
        if isinstance(want, np.ndarray):
            assert (got.dtype, got.tobytes()) == (want.dtype, want.tobytes())
        else:
            assert got == want
    assert read.sha256 == made.sha256
    read.check_sizes(CONFIG)
    read.check_model(model_fingerprint())


def test_the_file_says_what_was_promised(path):
    """Names that are in every file ever written."""
    arrays, fields = contents(path)
    assert {name: (x.dtype.name, x.shape) for name, x in arrays.items()} == {
        "k_mean": ("float16", (2, 2, 32)),
        "v_mean": ("float16", (2, 2, 32)),
        "k_cost": ("float32", (2,)),
        "v_cost": ("float32", (2,)),
    }
    assert json.loads(fields.pop("fingerprint")) == json.loads(json.dumps(model_fingerprint()))
    assert json.loads(fields.pop("specs")) == ["layered:bits=3:centre/layered", "q4_0"]
    assert len(fields.pop("sha256")) == 64
    assert fields == {
        "format": "deltakv_jax.calibration/1",
        "model": "random",
        "text": "a.txt",
        "text_sha256": "ab" * 32,
        "ctx": "40",
        "chunks": "3",
    }


DAMAGE = [
    ({"k_mean": None}, "is damaged: k_mean is missing"),
    ({"extra": np.zeros(1)}, "is damaged: extra does not belong there"),
    ({"v_mean": np.zeros((2, 2, 32), np.float32)}, "is damaged: v_mean is F32 of shape [2, 2, 32]"),
    ({"v_mean": np.zeros((2, 64), np.float16)}, "is damaged: v_mean is F16 of shape [2, 64]"),
    ({"v_mean": np.zeros((2, 1, 32), np.float16)}, "is damaged: v_mean has the shape (2, 1, 32)"),
    ({"k_cost": np.zeros(3, np.float32)}, "is damaged: k_cost has the shape (3,)"),
    ({"k_cost": np.full(2, -1, np.float32)}, "is damaged: k_cost has values that cannot be"),
    ({"v_cost": np.full(2, np.nan, np.float32)}, "is damaged: v_cost has values that cannot be"),
    ({"format": None}, "is none; scripts/calibrate.py makes one"),
    ({"format": "deltakv_jax.calibration/2"}, "has format version 2, expected 1"),
    ({"format": "another/1"}, "is none; scripts/calibrate.py makes one"),
    ({"model": None}, "is damaged: model is missing"),
    ({"note": "more"}, "is damaged: note does not belong there"),
    ({"fingerprint": "{"}, "is damaged: "),
    ({"fingerprint": "[]"}, "is damaged: fingerprint does not fit the arrays"),
    ({"fingerprint": "{}"}, "is damaged: fingerprint does not fit the arrays"),
    ({"text_sha256": "abc"}, "is damaged: text_sha256 is 'abc'"),
    ({"ctx": "0"}, "is damaged: ctx is '0'"),
    ({"chunks": "-1"}, "is damaged: chunks is '-1'"),
    ({"specs": '"f16"'}, "is damaged: specs is no list of formats"),
    ({"specs": '["f16"]'}, "is damaged: it has 1 specs for 2 layers"),
    ({"specs": '["f16", "q5_9"]'}, "is damaged: unknown KV format 'q5_9'"),
]


@pytest.mark.parametrize(("changes", "says"), DAMAGE, ids=lambda case: str(case)[:40])
def test_every_field_is_checked(path, changes, says):
    """Also with a hash that fits."""
    change(path, **changes)
    assert refused(path).startswith(says)


def test_formats_must_hold_the_head_dim(path):
    _, fields = contents(path)
    narrow = np.zeros((2, 2, 8), np.float16)
    other = json.dumps(json.loads(fields["fingerprint"]) | {"head_dim": 8})
    change(path, k_mean=narrow, v_mean=narrow, fingerprint=other)
    assert "needs a head_dim that is a multiple of" in refused(path)


@pytest.mark.parametrize("changes", [{"text": "b.txt"}, {"k_cost": np.ones(2, np.float32)}])
def test_what_was_changed_later_is_refused(path, changes):
    change(path, signed=False, **changes)
    assert refused(path) == "is damaged: it is not as it was written"


def test_every_byte_is_part_of_it(path):
    """Cut anywhere, or a bit flipped anywhere, it is refused in one line, or reads the same."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    want = make_calibration(specs=SPECS).sha256
    for at in rng.integers(0, len(whole), 60).tolist():
        path.write_bytes(whole[:at])
        refused(path)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            got = load_calibration(path).sha256
        except UserError:
            refused(path)
        else:
            assert got == want


def test_what_cannot_be_read_is_one_line(tmp_path):
    assert refused(tmp_path / "absent") == "No such file or directory"
    assert refused(tmp_path) == "Is a directory"


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"width": 128}, "random: width is 64 there, 128 here; make one with scripts/calibrate.py"),
        ({"weights_checksum": 1}, "and the same --model and --weights"),
    ],
)
def test_another_model_is_refused(field, says):
    made = make_calibration()
    with pytest.raises(UserError, match="the calibration is of another model, random: ") as raised:
        made.check_model(model_fingerprint() | field)
    assert says in str(raised.value)
    with pytest.raises(UserError, match="kv_heads is 2 there, 4 here"):
        made.check_sizes(dataclasses.replace(CONFIG, kv_heads=4))


def test_formats_that_take_a_calibration():
    plain, allotted = make_calibration(), make_calibration(specs=SPECS)
    assert parse_cache_spec("q4_0", None) == parse_spec("q4_0")
    assert parse_cache_spec("f16/layered:centre", plain) == parse_spec("f16/layered:centre")
    found = parse_cache_spec("calibrated", allotted)
    assert found == LayerSpecs("calibrated", SPECS)
    assert str(found) == "calibrated"
    for name, given, says in (
        ("f16/layered:centre", None, "takes the means of a calibration file; give --kv-calibrati"),
        ("calibrated", None, "is what a calibration file has allotted; give --kv-calibration FILE"),
        ("calibrated", plain, "has allotted none; make one with scripts/calibrate.py --bits B"),
    ):
        with pytest.raises(UserError, match=says):
            parse_cache_spec(name, given)
