"""Plain charts, drawn with Pillow: lines and shares over time, and distributions of numbers."""

import colorsys
import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 340, 60, 190, 34, 30  # pixels, of a chart and around its field
FINE = 2  # drawn so many times larger, for smooth lines
PAPER, INK, FAINT = "white", "#1a1a1a", "#dddddd"
LETTER, LINE = 13, 16
BINS = 41  # of a distribution
SMALL = (280, 130)  # pixels of one distribution

Series = Mapping[str, Sequence[float]]  # name -> a value for each x


def palette(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: hues around the wheel, in two turns of different lightness."""
    found = {}
    for number, name in enumerate(names):
        hue, dark = number / max(len(names), 1), number % 2
        red, green, blue = colorsys.hls_to_rgb(hue, 0.38 if dark else 0.55, 0.65)
        found[name] = f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
    return found


class _Field:
    """The field of a chart: from values to pixels."""

    def __init__(self, title: str, xs: Sequence[float], low: float, high: float, across: str = "epoch") -> None:
        self.page = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), PAPER)
        self.draw = ImageDraw.Draw(self.page)
        self.low, self.high = low, high if high > low else low + 1
        self.first, self.last = xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] + 1
        self.write((LEFT, 8), title)
        for value in ticks(self.low, self.high):
            y = self.at(self.first, value)[1]
            self.draw.line([(LEFT * FINE, y), ((WIDTH - RIGHT) * FINE, y)], FAINT, FINE)
            self.write((LEFT - 8, y / FINE), f"{value:g}", anchor="rm")
        for value in ticks(self.first, self.last):
            self.write((self.at(value, self.low)[0] / FINE, HEIGHT - BOTTOM + 6), f"{value:g}", anchor="ma")
        self.write((WIDTH - RIGHT - 24, HEIGHT - BOTTOM - 20), across, "#777777", "ra")

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a value is on the page."""
        across = (x - self.first) / (self.last - self.first)
        up = (y - self.low) / (self.high - self.low)
        field = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
        return (LEFT + across * field[0]) * FINE, (HEIGHT - BOTTOM - up * field[1]) * FINE

    def write(self, corner: tuple[float, float], text: str, colour: str = INK, anchor: str = "la") -> None:
        """Text at a place of the finished chart."""
        font = ImageFont.load_default(LETTER * FINE)
        self.draw.text((corner[0] * FINE, corner[1] * FINE), text, colour, font, anchor=anchor)

    def names(self, ends: Mapping[str, float], colours: Mapping[str, str]) -> None:
        """Names beside the right ends of what they name, pushed apart where they would overlap."""
        order = sorted(ends, key=ends.__getitem__)
        space = min(LINE, (HEIGHT - TOP - BOTTOM + LINE) / max(len(ends), 1))
        places = [ends[name] / FINE for name in order]
        for number in range(1, len(places)):  # down, and then up where that ends below the field
            places[number] = max(places[number], places[number - 1] + space)
        bottom = float(HEIGHT - BOTTOM)
        for number in reversed(range(len(places))):
            bottom = places[number] = min(places[number], bottom)
            bottom -= space
        for name, y in zip(order, places, strict=True):
            self.write((WIDTH - RIGHT + 8, y), name[:26], colours[name], anchor="lm")

    def finished(self) -> Image.Image:
        """The chart at its size."""
        return self.page.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def ticks(low: float, high: float) -> list[float]:
    """A few round numbers between `low` and `high`."""
    step = 10 ** math.floor(math.log10((high - low) / 2))
    step = next(step * k for k in (1, 2, 5, 10) if (high - low) / (step * k) <= 6)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def lines_chart(
    title: str,
    xs: Sequence[float],
    series: Series,
    *,
    bounds: tuple[float, float] | None = None,
    across: str = "epoch",
) -> Image.Image:
    """Values over time, or over what `across` says, a line for each name."""
    every = [value for values in series.values() for value in values]
    low, high = bounds or (min(every), max(every))
    field, colours, ends = _Field(title, xs, low, high, across), palette(list(series)), {}
    for name, values in series.items():
        points = [field.at(x, y) for x, y in zip(xs, values, strict=True)]
        field.draw.line([*points, points[-1]], colours[name], 2 * FINE, joint="curve")
        ends[name] = points[-1][1]
    field.names(ends, colours)
    return field.finished()


def stack_chart(title: str, xs: Sequence[float], series: Series) -> Image.Image:
    """Shares of 1 over time, one above the other."""
    field, colours, ends = _Field(title, xs, 0.0, 1.0), palette(list(series)), {}
    below = [0.0] * len(xs)
    across = xs if len(xs) > 1 else [field.first, field.last]
    for name, values in series.items():
        above = [b + v for b, v in zip(below, values, strict=True)]
        one, two = (line if len(xs) > 1 else line * 2 for line in (above, below))
        outline = [field.at(x, y) for x, y in zip(across, one, strict=True)]
        outline += [field.at(x, y) for x, y in reversed(list(zip(across, two, strict=True)))]
        field.draw.polygon(outline, colours[name])
        ends[name] = field.at(xs[-1], (above[-1] + below[-1]) / 2)[1]
        below = above
    field.names(ends, colours)
    return field.finished()


def distributions(values: Mapping[str, Sequence[float]], columns: int = 3) -> Image.Image:
    """A histogram for each name, with its range, mean and standard deviation."""
    width, height = SMALL
    rows = -(-len(values) // columns)
    page = Image.new("RGB", (columns * width, max(1, rows) * height), PAPER)
    colours = palette(list(values))
    for number, (name, given) in enumerate(values.items()):
        corner = (number % columns * width, number // columns * height)
        _histogram(page, corner, name, given, colours[name])
    return page


def _histogram(page: Image.Image, corner: tuple[int, int], name: str, given: Sequence[float], colour: str) -> None:
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(LETTER - 1)
    left, top = corner[0] + 10, corner[1] + LINE
    width, height = SMALL[0] - 20, SMALL[1] - 3 * LINE - 8
    draw.text((left, corner[1]), name[:40], INK, font)
    low, high = min(given), max(given)
    span = high - low or 1.0
    counts = [0] * BINS
    for value in given:
        counts[min(BINS - 1, int((value - low) / span * BINS))] += 1
    for number, count in enumerate(counts):
        x, tall = left + number * width / BINS, height * count / max(counts)
        if count:
            draw.rectangle((x, top + height - tall, x + width / BINS - 1, top + height), colour)
    mean = sum(given) / len(given)
    spread = math.sqrt(sum((value - mean) ** 2 for value in given) / len(given))
    draw.line((left, top + height + 1, left + width, top + height + 1), INK)
    draw.text((left, top + height + 3), f"{low:.3g}", INK, font)
    draw.text((left + width, top + height + 3), f"{high:.3g}", INK, font, anchor="ra")
    draw.text((left, top + height + 3 + LINE), f"mean {mean:.3g}, sd {spread:.3g}, {len(given)} draws", INK, font)
