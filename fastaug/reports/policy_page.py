"""Pictures of a learned policy: its numbers over time, what it draws, images before and after; a page of them all."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastaug.reports.charts import distributions, lines_chart, stack_chart
from fastaug.reports.html_page import rendered

CELL, GAP, LETTER, LINE, TEXTS = 150, 12, 12, 15, 5  # pixels of a picture, between them, of text; lines below one
PROBABILITY, MAGNITUDE, NOTHING = "policy_probability/", "policy_magnitude/", "policy_identity"


# ---- over time ----


def history(lines: Sequence[Mapping[str, Any]]) -> dict[str, Image.Image]:
    """Charts of what `lines`, those of event "learned" in metrics.jsonl, say over the epochs; by file name."""
    if not lines:
        return {}
    xs = [float(line["epoch"]) for line in lines]
    names = [name for name, value in lines[-1].items() if isinstance(value, (int, float))]
    whole = {name: [float(line[name]) for line in lines] for name in names if all(name in line for line in lines)}
    shares = _named(whole, PROBABILITY)
    charts = {}
    if shares and NOTHING in whole:
        shown = {"(nothing)": whole[NOTHING], **shares}
        charts["probability"] = stack_chart("probability of each operation, mean over the slots", xs, shown)
    if magnitudes := _named(whole, MAGNITUDE):
        charts["magnitude"] = lines_chart("magnitude of each operation", xs, magnitudes, bounds=(0.0, 1.0))
    for name, values in whole.items():
        if not name.startswith("policy_") and name not in ("step", "epoch") and "saturation" not in name:
            charts[name.replace("/", "-")] = lines_chart(name, xs, {name: values})
    return charts


def _named(series: Mapping[str, list[float]], prefix: str) -> dict[str, list[float]]:
    return {name.removeprefix(prefix): values for name, values in series.items() if name.startswith(prefix)}


# ---- what is drawn ----


def parameters(drawn: Mapping[str, Tensor]) -> Image.Image | None:
    """The distribution of each number drawn, "name, unit" -> values, NaN where it was not; None if there is none."""
    values = {name: found[~found.isnan()].tolist() for name, found in drawn.items()}
    values = {name: found for name, found in values.items() if found and "," in name}
    return distributions(values) if values else None


def sample_texts(drawn: Mapping[str, Tensor], sample: int) -> list[str]:
    """What was drawn for one sample, a line each."""
    found = [
        f"{name.partition(',')[0]} {value:.3g}" if "," in name else name
        for name, values in drawn.items()
        for value in values[sample].tolist()
        if value == value
    ]
    return found or ["nothing"]


def before_and_after(before: Tensor, after: Sequence[Tensor], texts: Sequence[Sequence[Sequence[str]]]) -> Image.Image:
    """A row for each image: as loaded, then under each draw, its parameters below it.

    before uint8 [N,H,W,3], each of `after` the same; texts[draw][image]: lines.
    """
    most = max((len(lines) for each in texts for lines in each), default=1)
    columns, step = 1 + len(after), CELL + min(most, TEXTS) * LINE + GAP
    page = Image.new("RGB", (GAP + columns * (CELL + GAP), GAP + len(before) * step), "white")
    for row in range(len(before)):
        for column, images in enumerate((before, *after)):
            corner = (GAP + column * (CELL + GAP), GAP + row * step)
            picture = Image.fromarray(images[row].numpy())
            kind = Image.Resampling.NEAREST if picture.width <= CELL else Image.Resampling.BOX
            page.paste(picture.resize((CELL, round(CELL * picture.height / picture.width)), kind), corner)
            lines = ["as loaded"] if column == 0 else texts[column - 1][row]
            _write(page, (corner[0], corner[1] + CELL + 2), lines)
    return page


def _write(page: Image.Image, corner: tuple[int, int], lines: Sequence[str]) -> None:
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(LETTER)
    shown = list(lines) if len(lines) <= TEXTS else [*lines[: TEXTS - 1], f"and {len(lines) - TEXTS + 1} more"]
    for number, text in enumerate(shown):
        while font.getlength(text) > CELL:
            text = text.removesuffix("...")[:-1] + "..."
        draw.text((corner[0], corner[1] + number * LINE), text, "#1a1a1a", font)


def as_bytes(images: Tensor) -> Tensor:
    """Float images [N,3,H,W] in [0, 1] as uint8 [N,H,W,3] in host memory."""
    return (images.detach().float().cpu() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# ---- the page ----


def page(
    title: str, summaries: Mapping[str, Mapping[str, float]], pictures: Mapping[str, bytes], notes: Sequence[str]
) -> bytes:
    """One HTML file with everything in it: pictures as PNG files by name, the values learned by part, and notes."""
    sources = [
        (name, f"data:image/png;base64,{base64.b64encode(content).decode()}") for name, content in pictures.items()
    ]
    values = [(part, list(each.items())) for part, each in summaries.items()]
    return rendered("policy.html", title=title, summaries=values, pictures=sources, notes=notes)
