"""Pictures of what a network makes of a split: its features on a plane, class by class, and its confusions."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont

from fastaug.reports.charts import FAINT, INK, LETTER, LINE, PAPER, palette

SIDE, MARGIN, NAMES = 720, 24, 200  # pixels: of the plane, around it, for names beside it
SMOOTH = 14.0  # pixels, standard deviation of the density's kernel
RIGHT, WRONG = 2, 5  # pixels, radius of a dot
CELL, MOST_NUMBERS = 34, 20  # pixels of a cell of the matrix; more classes than that have no numbers and small cells

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def feature_map(points: Floats, labels: Ints, wrong: npt.NDArray[np.bool_], names: Sequence[str]) -> Image.Image:
    """Images as dots at `points` [N, 2], in the colour of their class, wrong ones larger; below them its density."""
    spots = _on_page(points)
    colours = [ImageColor.getrgb(colour) for colour in palette([str(i) for i in range(len(names))]).values()]
    page = Image.fromarray(_density(spots, labels, colours))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(LETTER)
    for only, radius, edge in ((~wrong, RIGHT, None), (wrong, WRONG, INK)):  # wrong ones on top
        for (x, y), label in zip(spots[only].tolist(), labels[only].tolist(), strict=True):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colours[label], edge)
    for row, name in enumerate(names[: SIDE // LINE]):
        draw.text((SIDE + 2 * MARGIN, MARGIN + row * LINE), name[:26], colours[row], font)
    text = f"{len(points)} images, the {int(wrong.sum())} wrong ones larger"
    draw.text((MARGIN, SIDE + MARGIN + 4), text, INK, font)
    return page


def _on_page(points: Floats) -> Floats:
    low, high = points.min(0), points.max(0)
    return MARGIN + (points - low) / np.maximum(high - low, 1e-9) * SIDE


def _density(spots: Floats, labels: Ints, colours: Sequence[tuple[int, ...]]) -> npt.NDArray[np.uint8]:
    """White paper, shaded where images of a class are, each class in its colour."""
    from scipy.ndimage import gaussian_filter

    height, width = SIDE + 2 * MARGIN + LINE, SIDE + 2 * MARGIN + NAMES
    page = np.full((height, width, 3), 255.0)
    for label in np.unique(labels).tolist():
        own = spots[labels == label]
        counts, _, _ = np.histogram2d(own[:, 1], own[:, 0], bins=(height, width), range=((0, height), (0, width)))
        smooth = gaussian_filter(counts, SMOOTH)
        share = 0.55 * np.sqrt(smooth / smooth.max())[..., None]
        page = page * (1 - share) + share * np.array(colours[label][:3])
    return page.round().astype(np.uint8)


def confusion_picture(matrix: Floats, names: Sequence[str]) -> Image.Image:
    """A cell for each true class (row) and predicted one (column), dark by its share of the row, in percent."""
    size = len(names)
    cell = CELL if size <= MOST_NUMBERS else max(2, SIDE // size)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    edge = NAMES if size <= MOST_NUMBERS else MARGIN
    page = Image.new("RGB", (edge + size * cell + MARGIN, edge + size * cell + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(LETTER - 2)
    for row in range(size):
        for column in range(size):
            x, y, part = edge + column * cell, edge + row * cell, float(share[row, column])
            grey = round(255 * (1 - part))
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), (grey, grey, 255 if row != column else grey))
            if size <= MOST_NUMBERS and part >= 0.005:
                draw.text((x + cell / 2, y + cell / 2), f"{100 * part:.0f}", PAPER if part > 0.5 else INK, font, "mm")
    if size <= MOST_NUMBERS:
        _names(page, names, cell)
    draw.rectangle((edge - 1, edge - 1, edge + size * cell, edge + size * cell), outline=FAINT)
    return page


def _names(page: Image.Image, names: Sequence[str], cell: int) -> None:
    """Rows by name at the left; columns by name above, turned."""
    font, size = ImageFont.load_default(LETTER - 2), len(names)
    draw = ImageDraw.Draw(page)
    for row, name in enumerate(names):
        draw.text((NAMES - 6, NAMES + row * cell + cell / 2), name[:26], INK, font, "rm")
    above = Image.new("RGB", (NAMES, size * cell), PAPER)
    draw = ImageDraw.Draw(above)
    for column, name in enumerate(names):
        draw.text((6, column * cell + cell / 2), name[:26], INK, font, "lm")
    page.paste(above.transpose(Image.Transpose.ROTATE_90), (NAMES, 0))
