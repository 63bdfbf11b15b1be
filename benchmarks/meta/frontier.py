"""How good cheap hypergradients are: along one trajectory, against the exact ones of the whole batch and meta split.

The meta-parameters stay where they are, so that one run serves all points: every observer sees the same updates, has
its own validation gradient and keeps what it would have moved by.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.meta.overhead import SHARED, STILL, point_name
from benchmarks.meta.scene import Scene, Steps
from fastaug.batch import Batch
from fastaug.meta.one_step import OneStep
from fastaug.meta.step import NoMetaStep

Point = tuple[int, float, int]  # K, f, meta images


class Observer:
    """A meta step that is taken at its points and only remembered."""

    def __init__(self, meta: OneStep, every: Sequence[int], count: int) -> None:
        self.meta, self.every, self.count = meta, set(every), count
        self.seen: dict[int, Tensor] = {}
        meta.move = self._keep  # type: ignore[method-assign]

    def due(self, step: int) -> bool:
        """Whether a point of any cadence lies here, within its first `count` meta steps."""
        return any(step % k == 0 and 0 < step // k <= self.count for k in self.every)

    def _keep(self, gradients: dict[str, Tensor], ids: Tensor, step: int) -> None:  # noqa: ARG002
        self.seen[step] = torch.cat([gradients[name].flatten().double() for name in self.meta.learned.shared()])


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
) -> dict[Point, dict[str, float]]:
    """Cosine of the mean of `count` cheap hypergradients and the mean of the exact ones at the same steps, by point."""
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

    observers: dict[Any, Observer] = {"exact": observer(1.0, whole, cadences, 0.0)}
    for every in cadences:
        for fraction in fractions:
            for images in sizes:
                observers[every, fraction, images] = observer(fraction, images, [every], half_life)
    trainer.meta = Observers(observers)
    Steps(trainer)(max(cadences) * count)
    exact = observers.pop("exact")
    return {point: cosines(one, exact) for point, one in observers.items()}


def cosines(one: Observer, exact: Observer) -> dict[str, float]:
    """Of the means over the steps of `one`: "all" numbers together, then each parameter by its name."""
    means = [torch.stack([seen[step] for step in sorted(one.seen)]).mean(0) for seen in (one.seen, exact.seen)]
    parameters = exact.meta.learned.shared()
    pieces = (mean.split([p.numel() for p in parameters.values()]) for mean in means)
    pairs = {"all": tuple(means)} | dict(zip(parameters, zip(*pieces, strict=True), strict=True))
    return {name: F.cosine_similarity(cheap, truth, dim=0).item() for name, (cheap, truth) in pairs.items()}


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
