"""A learned loss weight for every training image, kept in a table by id."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastaug.augment.learned_effects import View
from fastaug.meta.learned_part import LearnedPart, Setting
from fastaug.meta.sample_tables import RowTable, SampleTable, row_update
from fastaug.targets import SoftTarget, mixed_weight

BOUNDS = (0.0, 2.0)
FAINT = 0.2  # a mean weight below it is an alarm
MANY = 0.5  # so large a share of images without any weight is an alarm


class SampleWeights(LearnedPart):
    """A learned loss weight for every training image, 1 at the start, moved with meta.weights_lr.

    `bounded`: the weights are the numbers that move, cut off at 0 and 2: behind a logistic function a sample near a
    bound hardly moves any more, and with a small weight a wrong label is learned all the same, later (docs/meta.md).
    `softplus`: softplus(h) / ln 2 of numbers h that move freely, as AutoDO has it. A mixed sample's weight is the mean
    of both images', by their masses.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        meta = setting.recipe.meta
        self.free = meta.weights_form == "softplus"
        start = torch.full((setting.images,), 0.0 if self.free else 1.0)
        update = row_update(meta.table_optimizer, meta.weights_lr, start, levels=not self.free)
        self.table = RowTable(start, update, None if self.free else BOUNDS).to(setting.device)
        self._trained = None if setting.trained is None else setting.trained.to(setting.device)

    def tables(self) -> dict[str, SampleTable]:
        """The table of weights."""
        return {"weights": self.table}

    def weights(self, rows: Tensor) -> Tensor:
        """The loss weights that `rows` of the table stand for."""
        return F.softplus(rows) / math.log(2) if self.free else rows

    def target(self, target: SoftTarget, view: View) -> SoftTarget:
        """The target with its weight times the learned one."""
        weight = mixed_weight(target.mass, view.pairs(self.weights(view.rows["weights"])))
        return target._replace(weight=target.weight * weight)

    def summary(self) -> dict[str, float]:
        """Mean weight of the training images, and share of those without any."""
        weight = self.weights(self.table.weight if self._trained is None else self.table.weight[self._trained])
        return {"weight_mean": weight.mean().item(), "weight_zero": (weight == 0).float().mean().item()}

    def per_sample(self) -> dict[str, Tensor]:
        """The weight of every id."""
        return {"weight": self.weights(self.table.weight)}

    def alarms(self, summary: dict[str, float]) -> list[str]:
        """Weights that have all but vanished, in the mean or for half of the images."""
        raised = []
        if summary["weight_mean"] < FAINT:
            raised.append(f"the mean sample weight is {summary['weight_mean']:.3f}; lower meta.weights_lr")
        if summary["weight_zero"] >= MANY:
            raised.append(
                f"{summary['weight_zero']:.0%} of the training images have weight 0: training and meta split "
                "contradict each other, or weights move too fast; look at samples.csv, or lower meta.weights_lr"
            )
        return raised
