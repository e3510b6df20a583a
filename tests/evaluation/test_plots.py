"""What the pictures show: the figures of the runs, axes with units, names that can be read."""

import dataclasses
import itertools
import math
import subprocess
import sys
from typing import Any

import pytest

from deltakv_jax.errors import UserError
from deltakv_jax.evaluation import plots
from tests.evaluation.samples import ERRORS, make_row, make_run


@pytest.fixture(scope="module")
def layered():
    """The figure of a run with all panels; nothing changes it."""
    return plots.formats_figure(make_run(by_layer=True))


def without(run, **fields):
    """`run` with the same new fields in all rows."""
    return dataclasses.replace(
        run, rows=tuple(dataclasses.replace(row, **fields) for row in run.rows)
    )


def series(axes) -> list[Any]:
    """Everything that was drawn with error bars, in order."""
    return list(axes.containers)


def drawn(axes):
    """The x and y of every series."""
    return [tuple(map(list, one.lines[0].get_data(orig=True))) for one in series(axes)]


def bars(container):
    """The lower and upper ends of the error bars of one series."""
    (segments,) = container.lines[2]
    return [(float(low[1]), float(high[1])) for low, high in segments.get_segments()]


def text_of(figure):
    return figure.get_suptitle()


def test_every_panel_is_named_with_its_units(layered):
    named = [(axes.get_xlabel(), axes.get_ylabel()) for axes in layered.axes]
    kld = "KL divergence from f16 (nats)"
    assert named == [
        ("bits per stored value", "change of perplexity from f16 (%)"),
        ("position in the context (tokens)", kld),
        ("position in the group (tokens)", kld),
        *[("layer", "relative error")] * 3,
    ]
    assert all(axes.get_title() for axes in layered.axes)


def test_the_title_says_what_was_measured(layered):
    assert "tiny on a.txt, context 64, protocol llama.cpp" in text_of(layered)
    assert "4 chunks, 124 predictions" in text_of(layered)
    raw = plots.formats_figure(make_run(reads="raw", sequential=True))
    assert "one token at a time, raw reads: not cache-true" in text_of(raw)


def test_panels_without_figures_are_left_out():
    plain = plots.formats_figure(without(make_run(), by_group_position=None))
    assert [axes.get_title() for axes in plain.axes] == ["Cost against size", "Along the context"]


def test_change_stands_against_bits_with_its_interval(layered):
    axes = layered.axes[0]
    assert axes.get_xscale() == "log"
    got = drawn(axes)
    assert [x for (x,), _ in got] == [16, 8.5, 4.5, 5]
    (_, (change,)) = got[2]
    assert change == pytest.approx(100 * math.expm1(0.0122))
    ((low, high),) = bars(axes.containers[2])
    assert low == pytest.approx(100 * math.expm1(0.0022))
    assert high == pytest.approx(100 * math.expm1(0.0222))


def test_without_an_interval_over_chunks_the_bar_is_of_the_standard_error():
    run = without(make_run(), delta_ln_ppl_low=None, delta_ln_ppl_high=None)
    change = plots.change_percent(run.rows[2])
    spread = 1.96 * 100 * math.exp(0.0122) * 0.003
    assert change.low == pytest.approx(change.value - spread)
    assert change.high == pytest.approx(change.value + spread)


def test_an_interval_beside_its_value_is_still_drawn():
    row = dataclasses.replace(make_row("q4_0", 4.5, 0.01, 0.03), delta_ln_ppl_high=0.009)
    assert plots.change_percent(row).bars[1] == [0.0]


def test_formats_of_the_same_bits_stand_side_by_side():
    rows = (*make_run().rows, make_row("q4_0:rotate", 4.5, 0.012, 0.037))
    got = drawn(plots.formats_figure(make_run(rows=rows)).axes[0])
    (left,), (right,) = got[2][0], got[4][0]
    assert left < 4.5 < right
    assert right / left < 1.05


def test_divergences_are_drawn_where_they_were_measured(layered):
    run = make_run()
    for axes, name in zip(layered.axes[1:3], ("by_position", "by_group_position"), strict=True):
        assert axes.get_yscale() == "log"
        profiles = [getattr(row, name) for row in run.rows[1:]]  # the base has none from itself
        assert drawn(axes) == [(list(p.at), list(p.kld)) for p in profiles]
        low, high = bars(axes.containers[0])[0]
        assert (high - low) / 2 == pytest.approx(1.96 * profiles[0].kld_stderr[0])


def test_errors_of_every_layer_are_drawn(layered):
    for axes, factor in zip(layered.axes[3:], (1, 2, 3), strict=True):  # K, V and output
        assert axes.get_yscale() == "log"
        assert drawn(axes) == [([0, 1], [factor * e, 2 * factor * e]) for e in ERRORS]


def test_divergences_of_exactly_zero_are_said_and_not_drawn():
    zero = make_row("q4_0", 4.5, 0.01, 0.0)
    figure = plots.formats_figure(make_run(rows=(make_run().rows[0], zero)))
    for axes in figure.axes[1:]:
        assert not drawn(axes)
        assert [text.get_text() for text in axes.texts] == ["0 everywhere"]
        assert axes.get_yscale() == "linear"


def test_no_two_formats_look_alike_in_grey():
    names = [f"q4_0:{i}" for i in range(30)]
    styles = plots._styles([make_run(rows=tuple(make_row(kv, 4.5, 0.0, 0.1) for kv in names))])
    looks = [(styles[kv]["marker"], styles[kv]["linestyle"]) for kv in names]
    assert len(set(looks)) == len(names)
    first = looks[:7]  # what is usual differs in both
    assert len({marker for marker, _ in first}) == len({line for _, line in first}) == 7


def test_a_format_looks_the_same_in_all_panels_and_the_legend(layered):
    looks = lambda lines: [(l.get_color(), l.get_marker(), l.get_linestyle()) for l in lines]
    legend = looks(layered.legends[0].get_lines())
    assert [text.get_text() for text in layered.legends[0].get_texts()] == [
        "f16", "q8_0", "q4_0", "delta"
    ]  # fmt: skip
    assert looks(c.lines[0] for c in layered.axes[1].containers) == legend[1:]
    assert looks(c.lines[0] for c in layered.axes[3].containers) == legend
    points = looks(c.lines[0] for c in layered.axes[0].containers)
    assert [look[:2] for look in points] == [look[:2] for look in legend]


def test_every_point_has_its_name_and_no_two_names_overlap(layered):
    axes = layered.axes[0]
    assert [text.get_text() for text in axes.texts] == ["f16", "q8_0", "q4_0", "delta"]
    layered.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    edge = axes.get_window_extent()
    assert all(edge.contains(*box.min) and edge.contains(*box.max) for box in boxes)


def test_a_name_does_not_cover_the_error_bar_beside_its_point():
    """Right of q4_0 stands delta's bar, left of delta q4_0's."""
    rows = (
        make_row("f16", 16.0, 0.0, 0.0),
        make_row("q4_0", 4.5, 0.0122, 0.04),
        make_row("delta", 5.0, 0.004, 0.04),
    )
    figure = plots.formats_figure(make_run(rows=rows))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    for text, container in itertools.product(axes.texts, series(axes)):
        ((x,), (y,)) = container.lines[0].get_data()
        at, _ = axes.transData.transform((x, y))
        low, high = (axes.transData.transform((x, end))[1] for end in bars(container)[0])
        box = text.get_window_extent()
        beside = box.x1 < at or box.x0 > at
        assert beside or box.y0 > high or box.y1 < low


def test_a_long_name_stays_inside_the_panel():
    rows = (make_row("f16/delta:interval=64:rotate", 16.0, 0.0, 0.0), make_row("q4_0", 4.5, 0, 0.1))
    figure = plots.formats_figure(make_run(rows=rows))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    edge, box = axes.get_window_extent(), axes.texts[0].get_window_extent()
    assert edge.contains(*box.min)
    assert edge.contains(*box.max)


def test_the_sweep_has_a_panel_for_each_text_and_a_line_for_each_format():
    runs = [make_run(text=text, ctx=ctx) for ctx in (128, 64) for text in ("a.txt", "b.txt")]
    figure = plots.sweep_figure(runs)
    assert [axes.get_title() for axes in figure.axes] == ["tiny on a.txt", "tiny on b.txt"]
    for axes in figure.axes:
        assert axes.get_xlabel() == "context (tokens)"
        assert axes.get_ylabel() == "change of perplexity from f16 (%)"
        assert axes.get_xscale() == "log"
        assert list(axes.get_xticks()) == [64, 128]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["64", "128"]
        assert len(axes.containers) == 4
        x, y = drawn(axes)[2]
        assert x == pytest.approx([64, 128], rel=0.06)
        assert y == pytest.approx([100 * math.expm1(0.0122)] * 2)
        assert all(len(bars(container)) == 2 for container in axes.containers)


def test_a_context_that_one_text_has_not_is_left_out_of_its_lines():
    runs = [make_run(ctx=64), make_run(ctx=128), make_run(text="short.txt", ctx=64)]
    figure = plots.sweep_figure(runs)
    assert [len(drawn(axes)[0][0]) for axes in figure.axes] == [2, 1]


def test_a_name_with_dollars_is_no_formula():
    run = make_run(text="$\\x$.txt")
    for figure in (plots.formats_figure(run), plots.sweep_figure([run])):
        figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("name", "begins"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml")]
)
def test_the_suffix_says_what_is_written(tmp_path, name, begins):
    plots.save(plots.sweep_figure([make_run()]), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.jpg", r"a\.jpg: a picture's name ends with \.png, \.pdf, \.svg"),
        ("a", "a picture's name"),
        ("absent/a.png", r"--plot .*absent/a\.png: cannot write"),
    ],
)
def test_a_picture_that_cannot_be_made_is_found_before_the_run(tmp_path, name, says):
    plots.check_plot_target(tmp_path / "a.PNG")
    with pytest.raises(UserError, match=says):
        plots.check_plot_target(tmp_path / name)


def test_matplotlib_waits_until_it_is_needed():
    script = (
        "import sys; from deltakv_jax.evaluation import plots; print('matplotlib' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False"]
