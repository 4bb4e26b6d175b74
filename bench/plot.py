"""The figures as one SVG: rows a second as bars, answer times as a line from p50 to p99."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from xml.sax.saxutils import escape

from bench.series import SERVICE, UNSYNCED, Series, figure

#: Of the contenders; a peer has the last one.
_COLOURS = {SERVICE: "#1f5fa8", UNSYNCED: "#8db6e0", "limit": "#9a9a9a", "bare handler": "#9a9a9a"}
_PEER = "#d9822b"

_WIDTH = 900
_LEFT, _RIGHT = 330, 90  # pixels beside the bars, for the names and the figures
_BAR, _GAP = 16, 5
_FONT = "font-family='system-ui, sans-serif' font-size='12'"


class Drawing:
    """Elements from top to bottom."""

    def __init__(self) -> None:
        self._elements: list[str] = []
        self.y = 10

    def text(self, x: float, text: str, *, anchor: str = "start", weight: str = "normal", size: int = 12) -> None:
        """A line of text on the current height."""
        attributes = f"x='{x:.1f}' y='{self.y + 12}' text-anchor='{anchor}' font-weight='{weight}' font-size='{size}'"
        self._elements.append(f"<text {attributes}>{escape(text)}</text>")

    def bar(self, left: float, right: float, colour: str) -> None:
        self._elements.append(
            f"<rect x='{left:.1f}' y='{self.y}' width='{max(1.0, right - left):.1f}' height='{_BAR}' fill='{colour}'/>"
        )

    def span(self, left: float, right: float, colour: str) -> None:
        """A line between two dots."""
        middle = self.y + _BAR / 2
        line = f"x1='{left:.1f}' x2='{right:.1f}' y1='{middle}' y2='{middle}' stroke='{colour}' stroke-width='3'"
        self._elements.append(f"<line {line}/>")
        for x in (left, right):
            self._elements.append(f"<circle cx='{x:.1f}' cy='{middle}' r='5' fill='{colour}'/>")

    def rule(self, x: float, top: float) -> None:
        """A thin upright line from ``top`` to the current height, behind everything."""
        self._elements.insert(0, f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{top}' y2='{self.y}' stroke='#e4e4e4'/>")

    def down(self, pixels: int = _BAR + _GAP) -> None:
        self.y += pixels

    def svg(self) -> str:
        size = f"width='{_WIDTH}' height='{self.y + 10}' viewBox='0 0 {_WIDTH} {self.y + 10}'"
        background = "<rect width='100%' height='100%' fill='white'/>"
        content = "\n".join([background, *self._elements])
        return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {_FONT}>\n{content}\n</svg>\n"


def draw(series: Sequence[Series]) -> str:
    """The plot of one report."""
    drawing = Drawing()
    for title, units in (
        ("Rows or updates a second, until all are in the sink (a scale for each sink)", ("rows/s", "updates/s")),
        ("Requests of one row a second (a scale for each sink)", ("requests/s",)),
    ):
        _bars(
            drawing, title, [one for one in series if one.unit in units and one.measure in ("end to end", "answered")]
        )
    _times(drawing, [one for one in series if one.measure in ("p50", "p99")])
    return drawing.svg()


def _bars(drawing: Drawing, title: str, series: Sequence[Series]) -> None:
    if not series:
        return
    _title(drawing, title)
    # A scale for each sink: appending to a file is ten times as fast as any database.
    most = {sink: max(one.median for one in some) for sink, some in itertools.groupby(series, key=lambda one: one.sink)}
    for one in _grouped(drawing, series):
        right = _LEFT + one.median / most[one.sink] * (_WIDTH - _LEFT - _RIGHT)
        drawing.text(_LEFT - 8, one.contender, anchor="end")
        drawing.bar(_LEFT, right, _colour(one))
        drawing.text(right + 6, figure(one.median))
        drawing.down()
    drawing.down(20)


def _times(drawing: Drawing, series: Sequence[Series]) -> None:
    if not series:
        return
    _title(drawing, "Answer times, p50 to p99, in milliseconds on a logarithmic scale")
    values = [one.median for one in series]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    place = _scale(low, max(high, low + 1))
    top = drawing.y
    pairs = {(one.sink, one.workload, one.contender): one for one in series if one.measure == "p99"}
    for one in _grouped(drawing, [one for one in series if one.measure == "p50"]):
        slow = pairs[one.sink, one.workload, one.contender].median
        drawing.text(_LEFT - 8, one.contender, anchor="end")
        drawing.span(place(one.median), place(slow), _colour(one))
        drawing.text(place(slow) + 10, f"{figure(one.median)} – {figure(slow)}")
        drawing.down()
    for exponent in range(low, max(high, low + 1) + 1):
        drawing.rule(place(10.0**exponent), top)
        drawing.text(place(10.0**exponent), f"{figure(10.0**exponent)} ms", anchor="middle")
    drawing.down(30)


def _scale(low: int, high: int) -> Callable[[float], float]:
    """From a value to its place, by its logarithm."""
    return lambda value: _LEFT + (math.log10(value) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT - 40)


def _title(drawing: Drawing, title: str) -> None:
    drawing.text(10, title, weight="bold", size=15)
    drawing.down(28)


def _grouped(drawing: Drawing, series: Sequence[Series]) -> Iterator[Series]:
    """One series after the other, with the workload's name where another begins."""

    def group(name: str, members: list[Series]) -> list[Series]:
        drawing.down(6)
        drawing.text(10, name, weight="bold")
        return members

    groups = itertools.groupby(series, key=lambda one: f"{one.sink}: {one.workload}")
    return itertools.chain.from_iterable(group(name, list(members)) for name, members in groups)


def _colour(one: Series) -> str:
    return _COLOURS.get(one.contender, _PEER)
