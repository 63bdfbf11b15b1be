"""Pictures of what augmentation does: a grid of a batch sample by sample, and the softening curve over one image."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastaug.augment.pipeline import BatchAugment
from fastaug.batch import Batch
from fastaug.ops.crop_mix import CropMixParams, crop_mix, identity_params, some_samples
from fastaug.ops.crop_mix.masses import visible_counts
from fastaug.targets import SoftTarget, confidence, merge_equal, rest, softness

COLUMNS = ("loaded", "partner", "result", "|result - loaded|")
WIDTH, GAP, LETTER, LINE, LINES = 192, 16, 14, 19, 3  # pixels: of a cell, between cells, of text; lines below an image
PAPER, INK, FAINT, BAR = "white", "#1a1a1a", "#d8d8d8", "#bcd7f2"
SHIFTS, EXPONENTS = tuple(i / 8 for i in range(8)), (1, 2, 3, 4)  # of the softening curve

Texts = Sequence[Sequence[str]]  # lines of each cell of a row


def batch_grid(
    originals: Tensor,
    results: Tensor,
    params: CropMixParams,
    target: SoftTarget,
    class_names: Sequence[str],
    ids: Tensor,
) -> Image.Image:
    """A row for each of the first M samples: as loaded, partner, result, difference, and below them the numbers.

    originals uint8 [N,H,W,3], results uint8 [M,H,W,3]; params, target, ids [N] of all N samples, as partners may be any
    of them; all in host memory. class_names: one for each output of the network. ValueError for other shapes.
    """
    fits = originals.ndim == 4 and originals.shape[1:] == results.shape[1:] and len(originals) >= len(results)
    if not fits or originals.dtype != torch.uint8 or results.dtype != torch.uint8:
        found = f"{originals.dtype} {tuple(originals.shape)} and {results.dtype} {tuple(results.shape)}"
        raise ValueError(f"originals must be uint8 [N,H,W,3] and results the first of them, augmented, found {found}")
    rows, size = grid_cells(originals, results, params, target, class_names, ids), _shown_size(originals)
    step, top = size[1] + LINES * LINE + GAP, LINE + 2 * GAP
    page = Image.new("RGB", (GAP + len(COLUMNS) * (WIDTH + GAP), top + len(results) * step), PAPER)
    lefts = [GAP + column * (WIDTH + GAP) for column in range(len(COLUMNS))]
    for left, title in zip(lefts, COLUMNS, strict=True):
        _write(page, (left, GAP), [title])
    for i, row in enumerate(rows):
        for left, cell in zip(lefts, row, strict=True):
            _paste(page, (left, top + i * step), size, cell.image)
            _write(page, (left, top + i * step + size[1] + 2), cell.text)
    return page


class Cell(NamedTuple):
    """An image uint8 [H,W,3] of the grid, None where there is no partner, and the lines below it."""

    image: Tensor | None
    text: Sequence[str]


def grid_cells(
    originals: Tensor,
    results: Tensor,
    params: CropMixParams,
    target: SoftTarget,
    class_names: Sequence[str],
    ids: Tensor,
) -> list[list[Cell]]:
    """The cells of `batch_grid`, a row of COLUMNS for each of the results."""
    texts = batch_texts(params, target, class_names, ids, (originals.shape[1], originals.shape[2]))
    mixed, rows = is_mixed(params, target), []
    for i in range(len(results)):
        partner = originals[params.partner[i]] if mixed[i] else None
        difference = (results[i].short() - originals[i].short()).abs().byte()
        shown = (originals[i], partner, results[i], difference)
        rows.append([Cell(image, text) for image, text in zip(shown, texts[i], strict=True)])
    return rows


def is_mixed(params: CropMixParams, target: SoftTarget) -> Tensor:
    """Whether a sample takes something of its partner, in its pixels or (by its target) in a hidden layer: [N] bool."""
    named = (target.mass[:, 1] > 0) & (target.classes[:, 1] == target.classes[params.partner, 0])
    return (params.pasted() > 0) | (params.own_share() < 1) | named


def batch_texts(
    params: CropMixParams, target: SoftTarget, class_names: Sequence[str], ids: Tensor, size: tuple[int, int]
) -> list[Texts]:
    """What stands below the four images of each of N samples, images of `size` (height, width).

    "visible" is the share of the image's area that shows the sample, the partner and, below the difference, either.
    """
    pixels = size[0] * size[1]
    parts, whole = (counts / pixels for counts in visible_counts(params, size))
    box, share, mixed = params.pasted() / pixels, params.own_share(), is_mixed(params, target)
    each = torch.where((share < 1)[:, None], whole, parts)
    seen = torch.where(share < 1, whole[:, 0] * share + whole[:, 1] * (1 - share), parts.sum(1))
    sure = confidence(target, len(class_names))
    names = [class_names[label] for label in target.classes[:, 0].tolist()]
    texts: list[Texts] = []
    for i, partner in enumerate(params.partner.tolist()):
        own = [names[i], f"id {int(ids[i])}", f"visible {each[i, 0]:.2f}"]
        other = [names[partner], *_mixing_text(float(box[i]), float(share[i]), float(each[i, 1]))]
        numbers = [f"visible {seen[i]:.2f}", f"confidence {sure[i]:.2f}", f"loss weight {target.weight[i]:.2f}"]
        texts.append((own, other if mixed[i] else ["not mixed"], [mass_text(target, class_names, i)], numbers))
    return texts


def _mixing_text(box: float, share: float, visible: float) -> list[str]:
    """How a partner comes in: area of its box, the base's share in a blend, how much of it is visible."""
    if not box and share == 1:
        return ["in a hidden layer"]
    return [f"box {box:.2f} of the area" if box else f"blend {1 - share:.2f}", f"visible {visible:.2f}"]


def mass_text(target: SoftTarget, class_names: Sequence[str], sample: int) -> str:
    """A target in words, as in "0.61 cat + 0.27 dog, rest 0.12"; what rounds to 0.00 is left out."""
    merged = merge_equal(target)
    pairs = zip(merged.classes[sample].tolist(), merged.mass[sample].tolist(), strict=True)
    named = " + ".join(f"{mass:.2f} {class_names[label]}" for label, mass in pairs if mass >= 0.005)
    left = float(rest(target)[sample])
    return ", ".join(([named] if named else []) + ([f"rest {left:.2f}"] if left >= 0.005 else []))


# ---- the softening curve ----


def softening_curve(image: Tensor, fill: Tensor) -> Image.Image:
    """An image uint8 [H,W,C] shifted down and right by eighths of its sides, and s(v) for k = 1 to 4 below each.

    fill [C], 0 to 255: the colour outside of the image. Soft Augmentation (Liu et al. 2023), section 3.
    """
    n, (height, width, channels) = len(SHIFTS), image.shape
    shift = torch.tensor(SHIFTS)
    still = identity_params(n, fill.float())
    params = replace(still, dy=-(shift * height).long(), dx=-(shift * width).long())
    zero, one = (0.0,) * channels, (1.0,) * channels
    images, _ = crop_mix(image.expand(n, -1, -1, -1), still.partner, params, classes=n, mean=zero, std=one)
    shown = displayed(images, zero, one)
    visible = visible_counts(params, (height, width))[1][:, 0] / (height * width)
    size, lines = _shown_size(shown), len(EXPONENTS) + 1
    page = Image.new("RGB", (GAP + n * (size[0] + GAP), 2 * GAP + LINE + size[1] + lines * LINE), PAPER)
    for i, v in enumerate(visible.tolist()):
        left, top = GAP + i * (size[0] + GAP), LINE // 2 + GAP
        _write(page, (left, GAP // 2), [f"shift {SHIFTS[i]:.3f}"])
        _paste(page, (left, top + GAP // 2), size, shown[i])
        numbers = [("visible v", v), *((f"s(v), k = {k}", float(softness(visible[i], k))) for k in EXPONENTS)]
        _bars(page, (left, top + GAP + size[1]), size[0], numbers)
    return page


# ---- from a run ----


def displayed(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images [N,C,H,W] as uint8 [N,H,W,3] in host memory; values beyond black and white are cut."""
    values = images.detach().float().cpu().permute(0, 2, 3, 1) * torch.tensor(std) + torch.tensor(mean)
    return in_colour((values * 255).round().clamp(0, 255).to(torch.uint8))


def in_colour(images: Tensor) -> Tensor:
    """Images [...,C] as [...,3]: the first three channels as red, green and blue; of one or two the first as grey."""
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].expand(*images.shape[:-1], 3)


class Shown(NamedTuple):
    """The arguments of `batch_grid` and `grid_cells`."""

    originals: Tensor
    results: Tensor
    params: CropMixParams
    target: SoftTarget
    class_names: Sequence[str]
    ids: Tensor


def shown_batch(
    augment: BatchAugment,
    classes: Sequence[str],
    batch: Batch,
    augmented: tuple[Tensor, SoftTarget],
    epoch: int,
    images: int = 8,
) -> Shown:
    """A batch's first images and what `augment.training(batch, epoch)` made of them.

    They are shown as the loader gave them: cropped, and under the fixed policy if there is one. The copies of an image
    follow it.
    """
    inputs, target = augmented
    data = augment.recipe.data
    names = [f"class {name}" if name.isdecimal() else name for name in classes]  # "0.6 7" reads badly
    names += ["(other)"] * (augment.outputs - len(classes))
    together = torch.arange(len(batch.ids)).view(augment.views, -1).T.flatten()
    rows, params = some_samples(augment.sample(batch, epoch), together)
    parts = (None if part is None else part.detach().cpu()[rows] for part in target)
    results = displayed(inputs[rows[:images].to(inputs.device)], data.mean, data.std)
    on_host = SoftTarget(*parts)  # type: ignore[arg-type]
    return Shown(in_colour(batch.images.cpu()[rows]), results, params, on_host, names, batch.ids[rows])


# ---- drawing ----


def _shown_size(images: Tensor) -> tuple[int, int]:
    """Width and height at which images [N,H,W,3] are drawn: small ones enlarged by a whole factor."""
    height, width = images.shape[1:3]
    shown = WIDTH // width * width if width <= WIDTH else WIDTH
    return shown, max(1, round(shown * height / width))


def _paste(page: Image.Image, corner: tuple[int, int], size: tuple[int, int], image: Tensor | None) -> None:
    """Draws an image uint8 [H,W,3], or an empty frame."""
    if image is None:
        right, bottom = corner[0] + size[0] - 1, corner[1] + size[1] - 1
        ImageDraw.Draw(page).rectangle((*corner, right, bottom), outline=FAINT)
        return
    kind = Image.Resampling.NEAREST if image.shape[1] <= size[0] else Image.Resampling.BOX
    page.paste(Image.fromarray(image.numpy()).resize(size, kind), corner)


def _write(page: Image.Image, corner: tuple[int, int], lines: Sequence[str]) -> None:
    """Writes lines, the last one wrapped into what is left of LINES, each cut to the width of a cell."""
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(LETTER)
    fitted = [*lines[:-1], *_wrapped(lines[-1], font)][:LINES]
    for number, text in enumerate(fitted):
        while font.getlength(text) > WIDTH:
            text = text.removesuffix("...")[:-1] + "..."
        draw.text((corner[0], corner[1] + number * LINE), text, INK, font)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """`text` in lines that fit a cell, not broken before a number; a longer word stays whole."""
    lines = [""]
    for word in re.split(r" (?!\d)", text):
        longer = f"{lines[-1]} {word}".lstrip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= WIDTH else [*lines, word]
    return [line for line in lines if line]


def _bars(page: Image.Image, corner: tuple[int, int], width: int, rows: Sequence[tuple[str, float]]) -> None:
    """Named numbers in [0, 1], each on a bar of its length."""
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(LETTER)
    for number, (name, value) in enumerate(rows):
        left, top = corner[0], corner[1] + number * LINE
        draw.rectangle((left, top, left + width - 1, top + LINE - 3), fill="#f2f2f2")
        draw.rectangle((left, top, left + round(value * (width - 1)), top + LINE - 3), fill=BAR)
        draw.text((left + 3, top), name, INK, font)
        draw.text((left + width - 4, top), f"{value:.2f}", INK, font, anchor="ra")


def sheet(rows: Sequence[Sequence[tuple[Tensor | None, Sequence[str]]]], titles: Sequence[str]) -> Image.Image:
    """A page of images uint8 [H,W,3], None for an empty frame, with lines of text below each; a title a column.

    All are drawn at the size of the last image of the first row. ValueError where a row has more cells than `titles`.
    """
    if any(len(row) > len(titles) for row in rows):
        raise ValueError(f"rows of up to {max(map(len, rows))} cells have {len(titles)} titles; give one for each")
    last = rows[0][-1][0]
    size = (WIDTH, WIDTH) if last is None else _shown_size(last[None])
    step, top = size[1] + LINES * LINE + GAP, LINE + 2 * GAP
    page = Image.new("RGB", (GAP + len(titles) * (WIDTH + GAP), top + len(rows) * step), PAPER)
    lefts = [GAP + column * (WIDTH + GAP) for column in range(len(titles))]
    for left, title in zip(lefts, titles, strict=True):
        _write(page, (left, GAP), [title])
    for number, row in enumerate(rows):
        for left, (image, text) in zip(lefts, row, strict=False):
            _paste(page, (left, top + number * step), size, image)
            _write(page, (left, top + number * step + size[1] + 2), text)
    return page
