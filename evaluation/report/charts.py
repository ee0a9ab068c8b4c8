"""Line charts as inline SVG: no library, no script, colours from the page's style sheet (light and dark).

Takes plain points, gives markup that is safe to put into the page: every text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup, escape

from evaluation.report.measures import plain

_WIDTH, _HEIGHT = 420, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 20, 12, 40
_BUCKETS = 300
MARKED = 24
"""A line of up to this many points shows each of them as a dot."""
_DENSE = 300
"""A line of more points than this is drawn lightly where another one crosses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: points (x, y) in the order drawn, under a label that the legend shows. `style` is its CSS class."""

    label: str
    style: str
    points: tuple[tuple[float, float], ...]
    hints: tuple[str, ...] = ()
    """What each point says when it is pointed at; points with hints are always drawn as dots."""
    joined: bool = True
    """Whether a line joins the points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """An interval around a line: points (x, low, high), in the colour of its style, drawn below everything else."""

    style: str
    points: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A ring around a point, with words beside it."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A range, its ticks and what it counts."""

    low: float
    high: float
    ticks: tuple[float, ...]
    label: str


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    steps: bool = True,
    x_range: Sequence[float] = (),
    y_range: Sequence[float] = (),
    marks: Sequence[Mark] = (),
    bands: Sequence[Band] = (),
) -> Markup:
    """An SVG chart of `series`; its description for screen readers gives first and last value of each line.

    Args:
        title: what it shows.
        series: lines; those without points are left out.
        x_label, y_label: what the axes count.
        steps: whether x counts steps, which fill the width.
        x_range, y_range: values that the axes reach in any case.
        marks: points to point out.
        bands: intervals around lines.
    """
    drawn = [replace(s, points=thin(s.points)) for s in series if s.points]
    if not drawn:
        return Markup("")
    ends = [value for band in bands for _, low, high in band.points for value in (low, high)]
    x_axis = _axis([*x_range, *(x for s in drawn for x, _ in s.points)], x_label, count=5, steps=steps)
    y_axis = _axis([*y_range, *ends, *(y for s in drawn for _, y in s.points)], y_label, count=5)
    told = "; ".join(f"{s.label} from {plain(s.points[0][1])} to {plain(s.points[-1][1])}" for s in series if s.points)
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{title}: {told}")}">',
        *_grid(x_axis, y_axis),
        *(_band(band, x_axis, y_axis) for band in bands if band.points),
        *(_line(s, x_axis, y_axis, alone=len(drawn) == 1) for s in drawn),
        *(_mark(mark, x_axis, y_axis) for mark in marks),
        "</svg>",
    ]
    return Markup("\n".join(parts))  # every text in parts was escaped above or in the functions called


def thin(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """At most four points per bucket of a long line: first, lowest, highest, last, so that no spike is lost."""
    if len(points) <= 4 * _BUCKETS:
        return tuple(points)
    size = math.ceil(len(points) / _BUCKETS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        bucket = range(start, min(start + size, len(points)))
        extremes = {
            bucket[0],
            bucket[-1],
            min(bucket, key=lambda i: points[i][1]),
            max(bucket, key=lambda i: points[i][1]),
        }
        kept.extend(points[i] for i in sorted(extremes))
    return tuple(kept)


def nice_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose `low` to `high`, low < high."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(i * step for i in range(first, last + 1))


def _axis(values: Sequence[float], label: str, *, count: int, steps: bool = False) -> Axis:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):  # one value only: give it room on both sides
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    # A hair over a round number, such as a divergence estimated as -0.002, is not worth a tick of its own.
    slack = 0.01 * (high - low)
    ticks = nice_ticks(low + slack, high - slack, count)
    if steps:  # steps fill the width, and a fraction of a step is no place
        whole = tuple(t for t in ticks if low - 1e-9 <= t <= high + 1e-9 and t == int(t))
        return Axis(low, high, whole, label)
    return Axis(ticks[0], ticks[-1], ticks, label)


def _x(value: float, axis: Axis) -> float:
    return _LEFT + (value - axis.low) / (axis.high - axis.low) * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, axis: Axis) -> float:
    return _HEIGHT - _BOTTOM - (value - axis.low) / (axis.high - axis.low) * (_HEIGHT - _TOP - _BOTTOM)


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in y_axis.ticks:
        y = _y(tick, y_axis)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(tick, y_axis)}</text>')
    for tick in x_axis.ticks:
        x = _x(tick, x_axis)
        parts.append(f'<line class="tick" x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{_tick(tick, x_axis)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="axis" x="{middle:.1f}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(x_axis.label)}</text>'
    )
    centre = (_TOP + bottom) / 2
    turn = f'transform="rotate(-90 11 {centre:.1f})"'
    parts.append(
        f'<text class="axis" x="11" y="{centre:.1f}" text-anchor="middle" {turn}>{escape(y_axis.label)}</text>'
    )
    return parts


def _tick(value: float, axis: Axis) -> str:
    """A tick with as many decimals as its neighbours need to differ, short enough for the margin: 15k, 2e-4."""
    span = axis.ticks[1] - axis.ticks[0] if len(axis.ticks) > 1 else abs(value) or 1.0
    if abs(value) < span * 1e-6:
        return "0"
    if 10_000 <= max(map(abs, axis.ticks)) < 1e7 and span >= 100:
        return f"{value / 1000:,.{0 if span >= 1000 else 1}f}k"
    if abs(value) >= 1e7 or (span < 0.001 and max(map(abs, axis.ticks)) < 0.01):
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.{max(0, -math.floor(math.log10(span) + 1e-9))}f}"


def _band(band: Band, x_axis: Axis, y_axis: Axis) -> str:
    upper = [f"{_x(x, x_axis):.1f},{_y(high, y_axis):.1f}" for x, _, high in band.points]
    lower = [f"{_x(x, x_axis):.1f},{_y(low, y_axis):.1f}" for x, low, _ in reversed(band.points)]
    return f'<polygon class="band {escape(band.style)}" points="{" ".join(upper + lower)}"/>'


def _line(series: Series, x_axis: Axis, y_axis: Axis, *, alone: bool) -> str:
    places = [(f"{_x(x, x_axis):.1f}", f"{_y(y, y_axis):.1f}") for x, y in series.points]
    style = escape(f"{series.style} dense" if len(places) > _DENSE and not alone else series.style)
    joined = " ".join(map(",".join, places))
    line = f'<polyline class="line {style}" points="{joined}"/>' if series.joined and len(places) > 1 else ""
    if len(series.hints) == len(places):
        hints = [f"<title>{escape(hint)}</title>" for hint in series.hints]
    elif len(places) <= MARKED:
        hints = [""] * len(places)
    else:
        return line
    dots = (
        f'<circle class="dot {style}" cx="{x}" cy="{y}" r="2.6">{hint}</circle>'
        for (x, y), hint in zip(places, hints, strict=True)
    )
    return line + "".join(dots)


def _mark(mark: Mark, x_axis: Axis, y_axis: Axis) -> str:
    x, y = _x(mark.x, x_axis), _y(mark.y, y_axis)
    # Words stand below, where lines that rise leave room, and on the side where they fit.
    anchor, at = ("end", x - 4) if x > _WIDTH - _RIGHT - 5.6 * len(mark.text) else ("start", x + 4)
    beside = y + 19 if y < _HEIGHT - _BOTTOM - 24 else y - 10
    return (
        f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'
        f'<text class="told" x="{at:.1f}" y="{beside:.1f}" text-anchor="{anchor}">{escape(mark.text)}</text>'
    )
