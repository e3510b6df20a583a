"""Names beside the points of a picture, where they cover nothing.

Each name goes to the first place around its point where it overlaps neither a marker, an error bar,
another name nor the edge; where there is none, to the place where it overlaps least.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

GAP = 5  # points from the middle of a marker to a name beside it
HALF_MARKER = 3
POINTS_AN_INCH = 72


class Point(NamedTuple):
    """A marker with an error bar from `low` to `high` through it, in the axes' coordinates."""

    name: str
    x: float
    y: float
    low: float
    high: float


class _Box(NamedTuple):
    """In points from the lower left corner of the figure."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "_Box") -> float:
        """The area of what both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)


def place(axes: "Axes", points: Sequence[Point], size: float) -> "list[Annotation]":
    """Writes the names into axes whose limits and scales are final, `size` points high."""
    _figure_of(axes).draw_without_rendering()  # only now it is known where the axes are
    taken = [box for point in points for box in _obstacles(axes, point)]
    inside = _in_points(axes, axes.get_window_extent().extents)
    made = []
    for point in points:
        text = axes.annotate(
            point.name, (point.x, point.y), (0, 0), textcoords="offset points", fontsize=size
        )
        text.set_in_layout(False)
        taken.append(_move(axes, point, text, taken, inside))
        made.append(text)
    return made


def _move(
    axes: "Axes", point: Point, text: "Annotation", taken: Sequence[_Box], inside: _Box
) -> _Box:
    """Moves a name from its point to where it covers least, and returns its box there."""
    there = _in_points(axes, text.get_window_extent().extents)
    width, height = there.right - there.left, there.top - there.bottom
    x, y = _at(axes, point.x, point.y)

    def badness(box: _Box) -> float:
        covered = sum(box.overlap(other) for other in taken)
        return covered + width * height - box.overlap(inside)

    low, high = (_at(axes, point.x, end)[1] - y for end in (point.low, point.high))
    corners = [(x + dx, y + dy) for dx, dy in _offsets(width, height, low, high)]
    best = min((_Box(a, b, a + width, b + height) for a, b in corners), key=badness)
    # moved by as much as the box is: a text's own position is its baseline, not its lower edge
    text.set_position((best.left - there.left, best.bottom - there.bottom))
    return best


def _offsets(width: float, height: float, low: float, high: float) -> list[tuple[float, float]]:
    """Where the lower left corner of a name may go: beside its point, at the ends of its bar."""
    right, left = GAP, -GAP - width
    lifts = [(step - 0.5) * height for step in (0, 0.6, -0.6, 1.2, -1.2)]
    beside = [(x, lift) for lift in lifts for x in (right, left)]
    above, below = max(GAP, high + 1), min(-GAP, low - 1) - height
    return [*beside, (-width / 2, above), (-width / 2, below)]


def _obstacles(axes: "Axes", point: Point) -> tuple[_Box, _Box]:
    """The marker and the error bar."""
    x, y = _at(axes, point.x, point.y)
    low, high = (_at(axes, point.x, end)[1] for end in (point.low, point.high))
    marker = _Box(x - HALF_MARKER, y - HALF_MARKER, x + HALF_MARKER, y + HALF_MARKER)
    return marker, _Box(x - 1, low, x + 1, high)


def _at(axes: "Axes", x: float, y: float) -> tuple[float, float]:
    """The axes' coordinates in points from the corner of the figure."""
    scale = POINTS_AN_INCH / _figure_of(axes).dpi
    pixels = axes.transData.transform((x, y))
    return float(pixels[0] * scale), float(pixels[1] * scale)


def _in_points(axes: "Axes", pixels: Iterable[float]) -> _Box:
    scale = POINTS_AN_INCH / _figure_of(axes).dpi
    return _Box(*(float(edge * scale) for edge in pixels))


def _figure_of(axes: "Axes") -> "Figure":
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes of a picture"
    return figure
