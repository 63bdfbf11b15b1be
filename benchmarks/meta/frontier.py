"""How good cheap hypergradients are: along one trajectory, against the exact ones of the whole batch and meta split.

The meta-parameters stay where they are, so that one run serves all points: every observer sees the same updates, has
its own validation gradient and keeps what it would have moved by.

The exact hypergradient of an update is itself one draw of that update's operations, and a point that differentiates a
share f of the batch holds a share f of the same draws: where there is nothing but noise the two still have a cosine of
sqrt(f). So each is also compared with exact ones whose augmentation is drawn anew: their mean over draws is what
learning follows in the mean.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.meta.overhead import SHARED, STILL, point_name
from benchmarks.meta.scene import Scene, Steps
from fastaug.augment.learned_effects import Augmentation, Part
from fastaug.batch import Batch
from fastaug.meta.one_step import OneStep
from fastaug.meta.step import NoMetaStep, ignored

Point = tuple[int, float, int]  # K, f, meta images
APART = 100  # epochs between the draws of training and each further set of draws


class Observer:
    """A meta step that is taken at its points and only remembered."""

    def __init__(self, meta: OneStep, every: Sequence[int], count: int) -> None:
        self.meta, self.every, self.count = meta, set(every), count
        self.seen: dict[int, Tensor] = {}
        meta.training = replace(meta.training, see_harm=ignored)  # its own trainer has no micro-batch that this is of
        meta.move = self._keep  # type: ignore[method-assign]

    def due(self, step: int) -> bool:
        """Whether a point of any cadence lies here, within its first `count` meta steps."""
        return any(step % k == 0 and 0 < step // k <= self.count for k in self.every)

    def _keep(self, gradients: dict[str, Tensor], ids: Tensor, step: int) -> None:  # noqa: ARG002
        self.seen[step] = torch.cat([gradients[name].flatten().double() for name in self.meta.learned.shared()])


class Redrawn:
    """An augmentation that draws anew when a part of a batch is made again; `number`, from 1: which draws."""

    def __init__(self, augment: Augmentation, number: int) -> None:
        self.augment, self.number, self.outputs = augment, number, augment.outputs

    def part(self, batch: Batch, epoch: int, chosen: Tensor, *, with_images: bool = True) -> Part:
        """The samples at positions `chosen` under other draws than those they were trained with."""
        return self.augment.part(batch, epoch + APART * self.number, chosen, with_images=with_images)

    def evaluation(self, batch: Batch) -> Tensor:
        """As the augmentation's own."""
        return self.augment.evaluation(batch)


class Observers(NoMetaStep):
    """All observers in place of a trainer's one meta step."""

    def __init__(self, observers: dict[Any, Observer]) -> None:
        self.observers = observers

    def before_update(self, step: int, norm: Tensor) -> None:
        """Records the update once for all."""
        due = [observer.meta for observer in self.observers.values() if observer.due(step)]
        if due:
            recorded = due[0].record(norm)
            for meta in due:
                meta.recorded = recorded

    def after_update(self, batch: Batch, logits: Tensor, step: int, seed: int) -> None:
        """Takes the meta steps that are due."""
        for observer in self.observers.values():
            observer.meta.after_update(batch, logits, step, seed)


def quality(
    scene: Scene,
    cadences: Sequence[int],
    fractions: Sequence[float],
    sizes: Sequence[int],
    *,
    half_life: float,
    count: int,
    redraws: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """Cosines of the mean of `count` cheap hypergradients and the mean of the exact ones at the same steps, by point.

    "this draw": the exact ones of the same updates. With `redraws`, an even number up to 8, "other draws" too: the mean
    of exact ones under so many other draws; and two rows more for each K, the exact ones themselves, and one half of
    the other draws beside their other half, which says how far these are to be believed.
    """
    trainer = scene.trainer(*SHARED, *STILL)
    whole, given = len(trainer.parts.splits.meta), trainer.meta
    assert isinstance(given, OneStep)

    def observer(fraction: float, images: int, every: Sequence[int], life: float) -> Observer:
        keys = [f"meta.fraction={fraction}", f"meta.batch_size={images}", f"meta.half_life={life}"]
        other, meta = scene.trainer(*SHARED, *STILL, f"meta.every={min(every)}", *keys).meta, given
        assert isinstance(other, OneStep)
        other.network, other.optimizer, other.validation._network = meta.network, meta.optimizer, meta.network
        other.augment, other.learned = meta.augment, meta.learned
        return Observer(other, every, count)

    exact, others = observer(1.0, whole, cadences, 0.0), [observer(1.0, whole, cadences, 0.0) for _ in range(redraws)]
    for number, other in enumerate(others, 1):  # v is that of the exact one, which comes before them
        other.meta.augment, other.meta.validation = Redrawn(given.augment, number), exact.meta.validation
        other.meta.renew = lambda step: None  # type: ignore[method-assign]  # noqa: ARG005
    grid = itertools.product(cadences, fractions, sizes)
    points = {point: observer(*point[1:], [point[0]], half_life) for point in grid}
    trainer.meta = Observers({"exact": exact, **dict(enumerate(others)), **points})
    Steps(trainer)(max(cadences) * count)

    def cosines(some: Sequence[Observer], truth: Sequence[Observer], every: int) -> dict[str, float]:
        """Of the means over the steps of K = `every`: "all" numbers together, then each parameter by its name."""
        a, b = (mean(observers, [every * number for number in range(1, count + 1)]) for observers in (some, truth))
        parameters = given.learned.shared()
        pieces = (one.split([p.numel() for p in parameters.values()]) for one in (a, b))
        pairs = {"all": (a, b)} | dict(zip(parameters, zip(*pieces, strict=True), strict=True))
        return {name: F.cosine_similarity(one, other, dim=0).item() for name, (one, other) in pairs.items()}

    found = {point_name(*point): {"this draw": cosines([one], [exact], point[0])} for point, one in points.items()}
    if redraws:
        for point, one in points.items():
            found[point_name(*point)]["other draws"] = cosines([one], others, point[0])
        for every in cadences:
            found[f"K={every} exact"] = {"other draws": cosines([exact], others, every)}
            found[f"K={every} half of the draws"] = {"other half": cosines(others[::2], others[1::2], every)}
    return found


def mean(observers: Sequence[Observer], steps: Sequence[int]) -> Tensor:
    """The mean hypergradient of some observers over some steps."""
    return torch.stack([observer.seen[step] for observer in observers for step in steps]).mean(0)


def picture(points: Sequence[tuple[Point, float, float]], file: str) -> None:
    """Overhead to the right, cosine upwards, a mark per point, drawn with Pillow."""
    from PIL import Image, ImageDraw

    width, height, margin = 900, 560, 60
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    right = max(overhead for _, overhead, _ in points) * 1.15
    colours = ["#1b6ca8", "#c8553d", "#3c8d40", "#7b4fa3"]
    cadences = sorted({point[0] for point, _, _ in points})

    def place(overhead: float, cosine: float) -> tuple[float, float]:
        x = margin + (width - 2 * margin) * overhead / right
        return x, height - margin - (height - 2 * margin) * max(cosine, 0)

    draw.line([place(0, 1), place(0, 0), place(right, 0)], fill="black")
    for tick in range(6):
        draw.text((place(0, tick / 5)[0] - 30, place(0, tick / 5)[1] - 6), f"{tick / 5:.1f}", fill="black")
        draw.text((place(right * tick / 5, 0)[0] - 12, height - margin + 8), f"{right * tick / 5:.1f}", fill="black")
    draw.line([place(0, 0.9), place(right, 0.9)], fill="#bbbbbb")
    draw.text((width // 2 - 120, height - 25), "meta step, % of a plain training step", fill="black")
    draw.text((10, 10), "cosine of 20 averaged hypergradients with the exact ones", fill="black")
    for (every, fraction, images), overhead, cosine in points:
        x, y = place(overhead, cosine)
        colour = colours[cadences.index(every) % len(colours)]
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
        draw.text((x + 6, y - 6), point_name(every, fraction, images), fill=colour)
    page.save(file)
