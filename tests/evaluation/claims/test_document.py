"""The report: made of the files alone, and whole."""

import json
from pathlib import Path

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation.claims import document, on_model, verdicts
from deltakv_jax.evaluation.claims.findings import find, read_all, write
from tests.evaluation.claims.samples import ASKED, NOTHING, evidence

ROOT = Path(__file__).parents[3]


def write_model(folder: Path, name: str, found) -> Path:
    runs = [run for runs in found.runs.values() for run in runs]
    claims = on_model.claims(found, ASKED)
    return write(
        folder,
        find(claims, model=name, description="sizes", runs=runs, coherence=found.coherence),
    )


def test_findings_come_back_from_their_file(tmp_path):
    for name, found in (("b", evidence()), ("a/b c", NOTHING)):
        write_model(tmp_path, name, found)
    write(tmp_path, find([]))
    back = read_all(tmp_path)
    assert [one.model for one in back] == [None, "a/b c", "b"]
    assert back[2].claims == tuple(on_model.claims(evidence(), ASKED))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "claims-a_b_c.json",
        "claims-b.json",
        "claims.json",
    ]


def test_the_report_holds_every_claim_of_every_file(tmp_path):
    write_model(tmp_path, "one", evidence())
    write_model(tmp_path, "two", NOTHING)
    content = document.render(read_all(tmp_path))
    assert content == document.render(read_all(tmp_path))
    summary = content.split("\n## ")[0]
    claims = on_model.claims(evidence(), ASKED)
    assert sum(line.startswith("| ") for line in summary.splitlines()) == 2 + 2 * len(claims)
    words = " ".join(content.split())
    for claim in claims:
        assert f"| {claim.title} | one | **{claim.verdict}** |" in words
        assert f"### {claim.title} " in words
        for part in (claim.published, claim.experiment, claim.rule, claim.why, *claim.commands):
            assert part in words
        for case in claim.cases:
            assert f"| {case.subject} | {verdicts.measured(case, claim.form)} |" in words
    assert "**Verdict: not measured here.** Not with this model." in words
    assert "Model: one" in words
    assert max(len(line) for line in content.splitlines() if line[:1] not in ("|", "p")) <= 100


def test_a_damaged_file_is_named(tmp_path):
    path = write_model(tmp_path, "one", evidence())
    values = json.loads(path.read_text())
    del values["claims"][0]["verdict"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"claims-one\.json: claims\[0\]\.verdict is missing"):
        read_all(tmp_path)


def test_verdicts_in_the_project_follow_from_the_numbers_beside_them():
    for one in read_all(ROOT / "results"):
        for claim in one.claims:
            for case in claim.cases:
                claimed = case.claimed_low, case.claimed_high
                assert case.verdict == verdicts.judge(case.low, case.high, claimed, case.kind)
            assert claim.verdict == verdicts.conclude(claim.cases, claim.condition)


def test_the_report_in_the_project_is_that_of_its_files():
    """`python scripts/claims.py` writes both."""
    report = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert report == document.render(read_all(ROOT / "results")) + document.kept(report)
