"""Tables of figures in Markdown: what they show, and that nothing out of date goes unseen."""

import dataclasses
import json

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import markdown, report
from scripts import tables
from tests.evaluation.samples import make_run

SPEED = {
    "rows": [
        {"part": "prefill", "shape": "llama_100m", "what": "delta", "figure": 118.04,
         "unit": "GFLOP/s", "ratio": 0.674, "against": "matmul, 176 GFLOP/s; weights 77.4 GFLOP",
         "least": 0.6, "goal": "", "met": True},
        {"part": "attention", "shape": "llama3_8b_decode_8k", "what": "plain: tiles",
         "figure": 9.0, "unit": "ms", "ratio": 1.2, "against": "plain: einsum [b k d s]; 33 MB"},
        {"part": "attention", "shape": "llama3_8b_decode_8k", "what": "q4_0", "figure": 6.19,
         "unit": "ms", "ratio": 0.84, "against": "plain: einsum [b k d s]; 9 MB"},
        {"part": "attention", "shape": "llama3_8b_decode_8k", "what": "f32", "figure": 10,
         "unit": "ms", "ratio": None, "against": ""},
    ],
    "device": "cpu", "cores": 2, "jax": "0.10.1", "date": "2026-11-23T20:54:29+00:00", "load": 0.8,
}  # fmt: skip
EMPTY = "# Title\n\n<!-- table: results/a.json -->\n<!-- end -->\n\nThe end.\n"


@pytest.fixture
def readme(tmp_path):
    """A file with a table of results/a.json, of one run."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text(report.to_json([make_run()]))
    path = tmp_path / "README.md"
    path.write_text(EMPTY)
    return path


def lines(table):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_a_run_is_a_line_for_each_format():
    head, _, base, _, row, _ = lines(markdown.runs_table([make_run()]))
    assert head == list(markdown.RUN_COLUMNS)
    assert base == ["tiny, a.txt, 64", "`f16`", "16", "20.0000", "", "", "", ""]
    assert row == [
        "tiny, a.txt, 64", "`q4_0`", "4.5", "20.2440", "+1.23 % ± 0.30", "+0.22 … +2.24 %",
        "0.03980", "88.1 %",
    ]  # fmt: skip


def test_small_divergences_keep_two_figures_and_an_unknown_interval_is_blank():
    base, other, *_ = make_run().rows
    other = dataclasses.replace(
        other, kld_mean=2.51e-7, delta_ln_ppl_low=None, delta_ln_ppl_high=None
    )
    *_, row = lines(markdown.runs_table([make_run(rows=(base, other))]))
    assert row[5:7] == ["", "2.5e-07"]


def test_what_sets_a_run_apart_stands_in_its_lines():
    run = make_run(protocol="gptq", sequential=True, reads="raw")
    *_, row = lines(markdown.runs_table([run]))
    assert row[0] == "tiny, a.txt, 64, gptq, one token at a time, raw reads"


def test_a_region_is_filled_and_what_is_around_it_stays(readme):
    content = markdown.filled(readme)
    table = markdown.runs_table([make_run()])
    marker = "<!-- table: results/a.json -->"
    assert content == f"# Title\n\n{marker}\n\n{table}\n<!-- end -->\n\nThe end.\n"
    readme.write_text(content)
    assert markdown.filled(readme) == content
    assert not markdown.stale(readme)


def test_what_is_out_of_date_is_named(readme):
    assert markdown.stale(readme) == [f"{readme}:3: the table of results/a.json is out of date"]
    readme.write_text(markdown.filled(readme))
    (readme.parent / "results" / "a.json").write_text(report.to_json([make_run(chunks=5, ctx=96)]))
    assert len(markdown.stale(readme)) == 1


def test_a_typed_figure_is_out_of_date(readme):
    readme.write_text(markdown.filled(readme).replace("20.2440", "20.2441"))
    assert len(markdown.stale(readme)) == 1


def test_several_files_make_one_table_and_a_file_several_tables(readme):
    (readme.parent / "b.json").write_text(report.to_json([make_run(text="b.txt")]))
    both = "<!-- table: b.json results/a.json -->\nold\n<!-- end -->\n"
    readme.write_text(both + EMPTY)
    first, second = markdown.filled(readme).split("# Title")
    assert [line[0] for line in lines(first) if line][2::4] == [
        "tiny, b.txt, 64",
        "tiny, a.txt, 64",
    ]
    assert "| tiny, a.txt, 64 |" in second
    assert "b.txt" not in second
    assert "old" not in first


def test_a_benchmark_is_a_line_for_each_figure(readme):
    (readme.parent / "results" / "a.json").write_text(json.dumps(SPEED))
    table = markdown.filled(readme).split("-->")[1]
    got = [line for line in lines(table) if len(line) == 3]
    shape = "attention, `llama3_8b_decode_8k`"
    assert got == [
        ["what", "figure", "of"],
        ["---"] * 3,
        ["prefill, `llama_100m`, `delta`", "118 GFLOP/s", "0.67 of matmul, 176 GFLOP/s"],
        [f"{shape}, `q4_0`", "6.19 ms", "0.84 of plain bf16, the fastest form: einsum [b k d s]"],
        [f"{shape}, `f32`", "10 ms", ""],
    ]
    assert "\n\nMade on cpu with 2 cores, jax 0.10.1, 2026-11-23.\n" in table


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("<!-- table: a.json -->\n", r"README\.md: the last table has no line <!-- end -->"),
        ("x\n<!-- end -->\n", r"README\.md:2: <!-- end --> where a 'table' marker should come"),
        ("<!-- table: a.json -->\n" * 2 + "<!-- end -->\n", "README.md:2: .* an? 'end' marker"),
        ("<!-- table: absent.json -->\n<!-- end -->\n", r"absent\.json: No such file"),
        ("<!-- table: b.json -->\n<!-- end -->\n", r'b\.json: expected "runs" in all, or a single'),
        ("<!-- table: speed.json -->\n<!-- end -->\n", r"speed\.json: cores is missing"),
        ("<!-- table: runs.json -->\n<!-- end -->\n", r"runs\.json: runs\[0\]\.model is missing"),
    ],
)
def test_what_cannot_be_filled_is_named(readme, content, says):
    folder = readme.parent
    (folder / "b.json").write_text("{}")
    (folder / "speed.json").write_text(json.dumps({"rows": [], "device": "cpu"}))
    (folder / "runs.json").write_text('{"runs": [{}]}')
    readme.write_text(content)
    for work in (markdown.filled, markdown.stale):
        with pytest.raises(UserError, match=says):
            work(readme)


def test_the_script_checks_and_fills(readme, capsys):
    assert tables.main(["--check", str(readme)]) == 1
    assert "results/a.json is out of date; run python scripts/tables.py" in capsys.readouterr().out
    assert readme.read_text() == EMPTY
    assert tables.main([str(readme)]) == 0
    assert capsys.readouterr().out == f"wrote {readme}\n"
    assert tables.main(["--check", str(readme)]) == 0
    assert tables.main([str(readme)]) == 0
    assert capsys.readouterr().out == ""


def test_nothing_is_written_where_one_file_cannot_be_filled(readme, capsys):
    broken = readme.with_name("RESULTS.md")
    broken.write_text("<!-- table: absent.json -->\n<!-- end -->\n")
    assert tables.main([str(readme), str(broken)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert readme.read_text() == EMPTY


def test_the_tables_of_this_project_are_up_to_date(capsys):
    assert tables.documents()
    assert tables.main(["--check"]) == 0, capsys.readouterr().out
