"""Charts as SVG for HTML pages: lines, shares, reliability, matrices. Colours are classes of frame.css, so that they
follow the reader's light or dark mode; a field is small enough to be read at a phone's width.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from fastaug.reports.charts import ticks
from fastaug.reports.html_page import as_number

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 210, 46, 10, 8, 32  # of a chart and around its field
COLOURS = 8  # classes c0 to c7
MOST_POINTS = 300  # of a line: more are thinned
MATRIX_NAME = 11  # letters of a class name beside a matrix

Point = tuple[float, float]


class Chart(NamedTuple):
    """A drawing, its title and, where it has several lines, their names with the numbers of their colours."""

    title: str
    drawing: Markup
    legend: Sequence[tuple[str, int]] = ()


class Line(NamedTuple):
    """One line of a chart: its name, number of its colour, and points with NaN where there is a gap."""

    name: str
    colour: int
    points: Sequence[Point]
    faint: bool = False


class Bin(NamedTuple):
    """Predictions of about one confidence: how many, their mean confidence, and the share that is right."""

    images: int
    confidence: float
    accuracy: float


def colour_class(number: int) -> str:
    """The classes of the colour `number`; after the last they begin anew, fainter."""
    return f"c{number % COLOURS}" + (" t1" if number // COLOURS % 2 else "")


class _Field:
    """The field of a chart: from values to places, and what has been drawn."""

    def __init__(self, across: tuple[float, float], up: tuple[float, float], names: tuple[str, str]) -> None:
        self.x, self.y = _wide(*across), _wide(*up)
        self.parts: list[str] = []
        for value in ticks(*self.y):
            y = self.at(self.x[0], value)[1]
            self.parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
        for value in ticks(*self.x):
            x = self.at(value, self.y[0])[0]
            self.parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{value:.4g}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        self.parts.append(f'<text x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(names[0])}</text>')
        self.label = f"{names[1]} over {names[0]}"

    def at(self, x: float, y: float) -> Point:
        """Where a value is."""
        right = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def path(self, points: Sequence[Point]) -> str:
        """The points as `M x,y L x,y ...`."""
        return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))

    def finished(self) -> Markup:
        """The chart."""
        return _drawing(WIDTH, HEIGHT, self.label, self.parts)


def _drawing(width: float, height: float, label: str, parts: Sequence[str]) -> Markup:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")


def _wide(low: float, high: float) -> tuple[float, float]:
    """A range that is one, also of one value alone."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    half = abs(low) / 2 or 0.5
    return low - half, low + half


def _known(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1]) and max(map(abs, point)) < 1e300


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` of the points: of each stretch the lowest and the highest, so that a spike stays."""
    if len(points) <= most:
        return list(points)
    size = -(-2 * len(points) // most)
    found: list[Point] = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        values = [(y if math.isfinite(y) else -math.inf, i) for i, (_, y) in enumerate(stretch)]
        found += [stretch[i] for i in sorted({min(values)[1], max(values)[1]})]
    return found


def lines(lines: Sequence[Line], names: tuple[str, str], bounds: tuple[float, float] | None = None) -> Markup | None:
    """Values over time; None where not one is known. `names`: of what goes across, and up."""
    each = [(line, thinned(line.points)) for line in lines]
    known = [point for _, points in each for point in points if _known(point)]
    if not known:
        return None
    xs, ys = zip(*known, strict=True)
    field = _Field((min(xs), max(xs)), bounds or (min(ys), max(ys)), names)
    for line, points in each:
        title = f"<title>{escape(line.name)}</title>"
        faint = ' opacity=".55"' if line.faint else ""
        parts = [field.path(stretch) for stretch in _stretches(points) if len(stretch) > 1]
        colour = colour_class(line.colour)
        if parts:
            field.parts.append(f'<path class="curve {colour}" d="{"".join(parts)}"{faint}>{title}</path>')
        if sum(map(_known, points)) <= 30:
            for x, y in (field.at(*point) for point in points if _known(point)):
                dot = f'class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.4"'
                field.parts.append(f"<circle {dot}{faint}>{title}</circle>")
    return field.finished()


def _stretches(points: Sequence[Point]) -> list[list[Point]]:
    """The points between gaps."""
    found: list[list[Point]] = [[]]
    for point in points:
        if _known(point):
            found[-1].append(point)
        elif found[-1]:
            found.append([])
    return found


def shares(lines: Sequence[Line], names: tuple[str, str]) -> Markup | None:
    """Shares of 1 over time, one above the other; None where a value of one is not known, or there is no time."""
    if not lines or not lines[0].points or not all(_known(point) for line in lines for point in line.points):
        return None
    every = [thinned_together(line.points) for line in lines]
    xs = [x for x, _ in every[0]]
    if len(xs) < 2 or xs[-1] <= xs[0]:
        return None
    field = _Field((xs[0], xs[-1]), (0.0, 1.0), names)
    below = [0.0] * len(xs)
    for line, points in zip(lines, every, strict=True):
        above = [low + y for low, (_, y) in zip(below, points, strict=True)]
        outline = [*zip(xs, above, strict=True), *reversed(list(zip(xs, below, strict=True)))]
        title = f"<title>{escape(line.name)}</title>"
        field.parts.append(f'<path class="area {colour_class(line.colour)}" d="{field.path(outline)}Z">{title}</path>')
        below = above
    return field.finished()


def thinned_together(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Every k-th of the points and the last, the same ones of all lines that are equally long."""
    step = -(-len(points) // most)
    kept = list(points[::step])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def reliability(bins: Sequence[Bin], ece: str) -> Markup:
    """The share of right predictions over their confidence, beside what a calibrated network has (the dashed line).

    Bars of bins with more images are stronger.
    """
    field = _Field((0.0, 1.0), (0.0, 1.0), ("confidence", "share that is right"))
    most = max((each.images for each in bins), default=0) or 1
    for number, each in enumerate(bins):
        left, right = number / len(bins), (number + 1) / len(bins)
        said = (
            f"confidence {left:.2f} to {right:.2f}: {each.images:,} images, mean confidence {each.confidence:.3f}, "
            f"right {each.accuracy:.3f}"
        )
        if each.images:
            opacity = 0.25 + 0.75 * each.images / most
            field.parts.append(
                _box(field, (left, right), each.accuracy, f'class="bar c0" opacity="{opacity:.2f}"', said)
            )
    start, end = field.at(0, 0), field.at(1, 1)
    field.parts.append(
        f'<line class="mark" x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}"/>'
        f'<text x="{LEFT + 8}" y="{TOP + 14}">ECE {escape(ece)}</text>'
    )
    for each in bins:
        if each.images:
            x, y = field.at(each.confidence, each.accuracy)
            field.parts.append(f'<circle class="wrong" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>')
    return field.finished()


def _box(field: _Field, across: tuple[float, float], up: float, kind: str, said: str) -> str:
    """A bar from 0 up, `kind` its attributes."""
    (x, y), (right, bottom) = field.at(across[0], up), field.at(across[1], 0.0)
    place = f'x="{x + 0.5:.1f}" y="{y:.1f}" width="{right - x - 1:.1f}" height="{max(bottom - y, 0):.1f}"'
    return f"<rect {kind} {place}><title>{escape(said)}</title></rect>"


def matrix(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Images of a class (row) taken for a class (column): right ones in one hue, wrong ones in the other."""
    size = len(names)
    left = 12 + 6 * max((len(_short(name)) for name in names), default=0)  # about the width of a letter
    cell = (WIDTH - left) / size
    parts = []
    for row, (values, name) in enumerate(zip(counts, names, strict=True)):
        total, short = sum(values) or 1, _short(name)
        middle = left + (row + 0.5) * cell
        parts.append(f'<text x="{left - 5}" y="{middle + 4:.1f}" text-anchor="end">{escape(short)}</text>')
        parts.append(f'<text transform="translate({middle + 4:.1f} {left - 5}) rotate(-90)">{escape(short)}</text>')
        for column, value in enumerate(values):
            corner = (
                f'x="{left + column * cell:.1f}" y="{left + row * cell:.1f}" width="{cell:.1f}" height="{cell:.1f}"'
            )
            if not value:
                parts.append(f'<rect class="cell" fill="none" {corner}/>')
                continue
            kind, share = "right" if row == column else "wrong", value / total
            said = escape(f"{name} taken for {names[column]}: {as_number(value)} images, {share:.1%}")
            parts.append(
                f'<rect class="cell {kind}" fill-opacity="{0.12 + 0.88 * share**0.6:.2f}" {corner}>'
                f"<title>{said}</title></rect>"
            )
            if cell >= 22:
                place = f'x="{left + (column + 0.5) * cell:.1f}" y="{middle + 4:.1f}"'
                inside = "inside on" if share > 0.5 else "inside"
                parts.append(
                    f'<text class="{inside}" {place} text-anchor="middle" pointer-events="none">{value}</text>'
                )
    return _drawing(WIDTH, WIDTH, f"confusion of {size} classes, rows true, columns predicted", parts)


def _short(name: str) -> str:
    return name if len(name) <= MATRIX_NAME else name[: MATRIX_NAME - 1] + "…"
