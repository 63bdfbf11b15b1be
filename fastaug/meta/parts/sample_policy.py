"""The learned part `sample_policy`: AutoDO's affine augmentation, the same for all images or each image's own."""

from typing import Any

import torch
from torch import Tensor, nn

from fastaug.augment import gated_affine
from fastaug.augment.gated_affine import BOUND, OPERATIONS, UNITS, Drawn
from fastaug.augment.learned_effects import View
from fastaug.meta.learned_part import LearnedPart, Setting
from fastaug.meta.sample_tables import RowTable, SampleTable, row_update

SHOWN = 2**14  # images at most behind the figures of the log, evenly spread: a table may have millions


class SamplePolicy(LearnedPart):
    """Probability and magnitude of seven affine operations (augment/gated_affine.py), 14 numbers.

    `shared` (AutoDO's SHA): one row of them for all images, which the meta-optimizer moves. `each` (its SEP): a row for
    every image, in a table by id. Images are transformed before they are mixed, each by its own row. All numbers are
    on the host, where draws are made.
    """

    acts_on_images = True

    def __init__(self, setting: Setting) -> None:
        meta = setting.recipe.meta
        super().__init__(meta.sample_policy_lr)
        self.table: RowTable | None = None
        if meta.sample_policy == "each":
            start = gated_affine.start().expand(setting.images, -1)
            update = row_update(meta.table_optimizer, meta.sample_policy_lr, start)
            self.table = RowTable(start, update, (-BOUND, BOUND))
        else:
            self.numbers = nn.Parameter(gated_affine.start())
        self._trained = setting.trained

    def tables(self) -> dict[str, SampleTable]:
        """The table of every image's numbers, where each has its own."""
        return {} if self.table is None else {"sample_policy": self.table}

    def images(self, images: Tensor, view: View) -> Tensor:
        """The images as drawn for them."""
        return gated_affine.apply(images, self._drawn(view))

    def _drawn(self, view: View) -> Drawn:
        numbers = self.numbers[None] if self.table is None else view.rows["sample_policy"]
        return gated_affine.drawn(numbers, gated_affine.noise(view.key, view.batch.draws, numbers.dtype))

    def drawn(self, images: Tensor, view: View) -> dict[str, Tensor]:  # noqa: ARG002
        """The amount of every operation that acts."""
        found = self._drawn(view)
        amounts = torch.where(found.opened, found.amounts.detach().double(), torch.nan)
        names = [f"{operation.name}, {unit}" for operation, unit in zip(OPERATIONS, UNITS, strict=True)]
        return dict(zip(names, amounts.split(1, 1), strict=True))

    # ---- what is told ----

    def _shown(self) -> Tensor:
        """The numbers [n,14] behind the figures of the log: the row of all, or those of some training images."""
        if self.table is None:
            return self.numbers[None]
        ids = torch.arange(len(self.table.weight)) if self._trained is None else self._trained
        return self.table.weight[ids[:: -(-len(ids) // SHOWN)]]

    def summary(self) -> dict[str, float]:
        """Probability and magnitude of every operation: the mean over images and, of `each`, their deviation."""
        numbers, found = self._shown().double(), {}
        both = {"probability": gated_affine.probabilities(numbers), "magnitude": gated_affine.magnitudes(numbers)}
        for kind, values in both.items():
            for operation, column in zip(OPERATIONS, values.unbind(1), strict=True):
                found[f"sample_policy_{kind}/{operation.name}"] = column.mean().item()
                if len(column) > 1:
                    found[f"sample_policy_{kind}_sd/{operation.name}"] = column.std().item()
        found["sample_policy_saturation"] = (numbers.abs() / BOUND).mean().item()
        return found

    def per_sample(self) -> dict[str, Tensor]:
        """How strongly each image is augmented: mean over the operations of probability times magnitude."""
        if self.table is None:
            return {}
        numbers = self.table.weight
        return {"augmented": (gated_affine.probabilities(numbers) * gated_affine.magnitudes(numbers)).mean(1)}

    def settings(self) -> dict[str, Any]:
        """The operations, in the order of the numbers, and their reach."""
        return {"operations": [[operation.name, operation.reach[0]] for operation in OPERATIONS]}
