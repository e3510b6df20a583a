"""Runs survive the way through JSON, and what is no run is named."""

import json

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import reading, report
from tests.evaluation.samples import make_run


def test_what_was_written_is_read(tmp_path):
    runs = (make_run(), make_run(text="b.txt", by_layer=True, sequential=True))
    path = tmp_path / "out.json"
    path.write_text(report.to_json(runs))
    assert reading.read_runs(path) == runs


def test_fields_of_a_later_version_are_left_aside(tmp_path):
    document = report.document([make_run()])
    document["runs"][0]["rows"][0]["new_figure"] = 1
    path = tmp_path / "out.json"
    path.write_text(json.dumps(document))
    assert reading.read_runs(path) == (make_run(),)


def test_a_whole_number_is_a_float_where_one_is_expected(tmp_path):
    document = report.document([make_run()])
    document["runs"][0]["rows"][0]["ppl"] = 20
    path = tmp_path / "out.json"
    path.write_text(json.dumps(document))
    ppl = reading.read_runs(path)[0].rows[0].ppl
    assert (type(ppl), ppl) == (float, 20.0)


def wrong(document, *keys_and_value):
    *keys, last, value = keys_and_value
    for key in keys:
        document = document[key]
    if value is None:
        del document[last]
    else:
        document[last] = value


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (("runs", None), "'runs' is missing"),
        (("runs", 3), "runs should be a list, got 3"),
        (("runs", 0, "ctx", None), r"runs\[0\]\.ctx is missing"),
        (("runs", 0, "ctx", "512"), r"runs\[0\]\.ctx should be of type int, got '512'"),
        (("runs", 0, "sequential", 1), "sequential should be of type bool, got 1"),
        (("runs", 0, "rows", 1, "ppl", True), r"rows\[1\]\.ppl should be of type float, got True"),
        (("runs", 0, "rows", 1, [1]), r"rows\[1\] should be an object, got \[1\]"),
        (("runs", 0, "rows", 2, "by_position", "kld", 0, "x"), r"by_position\.kld\[0\] should be"),
    ],
)
def test_a_damaged_run_is_named_with_its_place(tmp_path, fault, says):
    document = json.loads(report.to_json([make_run()]))
    wrong(document, *fault)
    path = tmp_path / "out.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=f"out.json: .*{says}"):
        reading.read_runs(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b'{"runs": [', "is no JSON"), (b"\xff\xfe", "is no JSON"), (b"[1]", "no JSON object")],
)
def test_a_file_that_is_no_json_object_is_named(tmp_path, content, says):
    path = tmp_path / "out.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"out.json .*{says}|out.json {says}"):
        reading.read_runs(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: No such file"):
        reading.read_runs(tmp_path / "absent.json")
