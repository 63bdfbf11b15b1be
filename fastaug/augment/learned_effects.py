"""The interface between augmentation and meta step: where learned numbers act on a batch, and what comes out.

The pipeline knows these methods and nothing of how their numbers are learned; fastaug/meta fills them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.ops.crop_mix import CropMixParams, Soften
from fastaug.seeding import Key
from fastaug.targets import SoftTarget

__all__ = ["Augmentation", "LearnedEffects", "Part", "Soften", "View"]


class View(NamedTuple):
    """The view that a learned part has of a batch of N samples on its way through the augmentation.

    `params`: flips, shifts and mixing partners of the fused op. `key`: (seed, epoch) on the stream of learned draws.
    `rows`: what `LearnedEffects.rows` gave for the batch's ids, one row a sample: name -> [N, ...]. `spared`: so many
    samples, the first, are images that no policy changes, because copies of them come beside.
    """

    batch: Batch
    params: CropMixParams
    key: Key
    rows: Mapping[str, Tensor]
    spared: int = 0

    def pairs(self, values: Tensor) -> Tensor:
        """Values [N, ...] of every sample and of its mixing partner: [N, 2, ...]."""
        return torch.stack([values, values[self.params.partner.to(values.device)]], 1)

    def without_spared(self) -> "View":
        """The view of the other samples; none of them is mixed with another."""
        if not (first := self.spared):
            return self
        params = {name: tensor[first:] for name, tensor in self.params.tensors().items()}
        params["partner"] = torch.arange(len(self.params) - first)
        batch = Batch(*(field[first:] for field in self.batch))
        rows = {name: row[first:] for name, row in self.rows.items()}
        return View(batch, replace(self.params, **params), self.key, rows)  # type: ignore[arg-type]


class LearnedEffects:
    """The places where something learned acts on a batch; here nothing does, a learned part overrides what it needs.

    In a meta step the same calls are made once more, with gradients: whatever a method returns is then on the graph of
    what is learned. Draws must be a function of `view.key` and the batch's `draws`, so that they come out the same.
    """

    acts_on_images = False  # whether `images` changes them: the pipeline then works on float images

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """Table rows: numbers kept for single images, leaves [n, ...] by table name, for `ids` [n] on the host."""
        return {}

    def images(self, images: Tensor, view: View) -> Tensor:
        """Changed float images [N,3,S,S] in [0, 1], before soft crop, mixing and normalisation."""
        return images

    def log_probability(self, view: View) -> Tensor | None:
        """Log probability [N] of the operations that each sample shows, its partner's too, if they were drawn."""
        return None

    def soften(self, soften: Soften) -> Soften:
        """Changed settings of how visibility turns into confidence."""
        return soften

    def target(self, target: SoftTarget, view: View) -> SoftTarget:
        """Changed targets of the mixed batch, before label smoothing."""
        return target

    def smoothing(self, smoothing: float | Tensor) -> float | Tensor:
        """Changed share of label smoothing, in [0, 1)."""
        return smoothing


class Part(NamedTuple):
    """A part of a batch: n of its samples as the network saw them, on the graph of what is learned.

    `images` are None where they were not asked for. `log_probability` [n] of the operations drawn for them, or None.
    `ids` (each once, on the host) and `rows`: the images whose learned numbers it depends on, and these numbers, leaves
    of the graph by table name. `view`: that of the samples and of those they are mixed with, these n first.
    """

    images: Tensor | None
    target: SoftTarget
    log_probability: Tensor | None
    ids: Tensor
    rows: dict[str, Tensor]
    view: View


class Augmentation(Protocol):
    """The augmentation as the meta step uses it; BatchAugment is one."""

    outputs: int  # of the network: classes, and the "other" class if there is one

    def part(self, batch: Batch, epoch: int, chosen: Tensor, *, with_images: bool = True) -> Part:
        """The samples at positions `chosen` [n] of a training batch once more, on the graph of what is learned."""

    def evaluation(self, batch: Batch) -> Tensor:
        """Normalised images [N,3,S,S] float32 of a batch that is not augmented."""
