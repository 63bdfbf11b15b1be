"""Pictures of a replayed update: an image on its way from its source to the network, and all images of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from fastaug.batch import Batch
from fastaug.reports.batch_grid import WIDTH, displayed, in_colour

COLUMNS = 6  # images of a batch beside each other
FRAME = (214, 40, 40)  # of the crop window

Cell = tuple[Tensor | None, Sequence[str]]
Facts = Mapping[str, Any]  # as `training.replay.Replay.facts` gives them


def source_picture(whole: Tensor, facts: Facts) -> Tensor:
    """The source `whole` uint8 [S, S, 3], squeezed to a square, in its own shape with its window: uint8 [WIDTH]^2.

    `facts` have the size of the file and the window that was cut, both in its pixels.
    """
    height, width = facts["size"] or whole.shape[:2]
    scale = WIDTH / max(height, width)
    shown = Image.fromarray(in_colour(whole).contiguous().numpy()).resize(
        (max(1, round(width * scale)), max(1, round(height * scale)))
    )
    page = Image.new("RGB", (WIDTH, WIDTH), "white")
    page.paste(shown, (0, 0))
    if facts["window"] is not None:
        top, left, tall, wide = (round(value * scale) for value in facts["window"])
        ImageDraw.Draw(page).rectangle((left, top, left + wide - 1, top + tall - 1), outline=FRAME, width=2)
    return torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).view(WIDTH, WIDTH, 3)


def enlarged(image: Tensor) -> Tensor:
    """uint8 [H, W, C] as [WIDTH, WIDTH, 3], small ones in whole pixels as far as they fit."""
    side = image.shape[0]
    colour = in_colour(image.cpu())
    if side > WIDTH:
        small = Image.fromarray(colour.contiguous().numpy()).resize((WIDTH, WIDTH), Image.Resampling.BOX)
        return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(WIDTH, WIDTH, 3)
    big = F.interpolate(colour.permute(2, 0, 1)[None].float(), WIDTH, mode="nearest-exact")
    return big[0].permute(1, 2, 0).to(torch.uint8)


def image_cells(whole: Tensor | None, batch: Batch, result: Tensor, row: int, facts: Facts) -> list[Cell]:
    """Source, loaded, partner and what the network got of sample `row`; `result` uint8 [H, W, 3], its input."""
    partner = facts["partner"]["row"]
    shift = f"shift {facts['shift'][0]}, {facts['shift'][1]}" + (", flipped" if facts["flip"] else "")
    mixing = f"own share {facts['blend']:.2f}" if facts["blend"] is not None else "in a hidden layer"
    mixing = f"box {facts['box']}" if facts["box"] else mixing
    other: Cell = (None, ["not mixed"])
    if facts["mixed"]:
        names = [facts["partner"]["class"], f"id {facts['partner']['id']}", mixing]
        other = (enlarged(batch.images[partner]), names)
    source = None if whole is None else source_picture(whole, facts)
    return [
        (source, [facts["class"], f"id {facts['id']}", f"{facts['size']}"]),
        (enlarged(batch.images[row]), [f"window {facts['window']}", facts["policy"] or "no fixed policy"]),
        other,
        (enlarged(result), [shift, _target(facts), _numbers(facts)]),
    ]


def batch_cells(inputs: Tensor, facts: Sequence[Facts], mean: Sequence[float], std: Sequence[float]) -> list[Cell]:
    """What the network got of every sample: normalised `inputs` [N, C, S, S] with `facts` [N]."""
    images = displayed(inputs, mean, std)
    return [
        (enlarged(image), [f"id {one['id']}  {one['class']}", _target(one), _numbers(one)])
        for image, one in zip(images, facts, strict=True)
    ]


def _target(facts: Facts) -> str:
    return " + ".join(f"{mass:.2f} {name}" for name, mass in facts["target"].items()) or "all classes alike"


def _numbers(facts: Facts) -> str:
    loss = "" if facts["loss"] is None else f", loss {facts['loss']:.3g}"
    return f"weight {facts['weight']:.2f}{loss}"
