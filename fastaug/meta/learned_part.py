"""Learned parts: one class for each thing learned, with tensors and bounds, effect, meta-optimizer group and alarms.

A part from outside of the package is a subclass of LearnedPart, named as `module:Class` in meta.learn
(docs/learned_parts.md).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastaug.augment.learned_effects import LearnedEffects, View
from fastaug.augment.plain_values import load_plain_values, plain_values
from fastaug.hypergrad.problem import Cotangent
from fastaug.meta.evidence import Observation
from fastaug.meta.sample_tables import SampleTable
from fastaug.recipe.schema import Recipe
from fastaug.targets import SoftTarget

SATURATED = 0.98  # from here on a bounded number counts as being at its bound


class Setting(NamedTuple):
    """What a learned part is built from.

    `images`: ids in the index; `device`: where tables by id belong; `trained`: ids [N] of the training split, all if
    None; `labels`: the given class of every id [images], None where there are no images of any.
    """

    recipe: Recipe
    images: int
    classes: int
    optimizer: torch.optim.Optimizer
    device: torch.device
    trained: Tensor | None = None
    labels: Tensor | None = None


class Revision(NamedTuple):
    """A micro-batch's target on its way through instant reweighting in the training pass.

    `written`: the target with a row of probabilities per sample. `cotangent`: the hypergradient in it. `harm` [n]:
    derivative of the validation loss in each sample's weight, under the labels so far. `weights` [n]: factors that were
    set on the samples' weights, for the log.
    """

    target: SoftTarget
    written: SoftTarget
    cotangent: Cotangent
    harm: Tensor
    weights: Tensor | None = None


class LearnedPart(LearnedEffects, nn.Module):
    """One thing that the meta step learns. Every method does nothing here; a part overrides those that concern it.

    Its nn.Parameters are shared by all samples: a few numbers, best left on the host, where draws are made; the
    meta-optimizer moves them with the learning rate `lr`. Numbers of single images are kept in `tables`. State is what
    nn.Module saves: parameters and buffers.
    """

    on_batch = True  # whether it acts on the training loss; else on the update itself (`set_rates`)
    observes = False  # whether it is told what the training pass of the engine `fused` shows (`observe`)
    instant = False  # whether it is set anew in every training pass (`revise`) and nothing is kept

    def __init__(self, lr: float | None = None) -> None:
        super().__init__()
        self.lr = lr  # None: a part without parameters of its own
        # Whether anything that it learns acts through the images, as probabilities of what is drawn do not.
        self.through_images = self.acts_on_images

    # ---- numbers of single images ----

    def tables(self) -> dict[str, SampleTable]:
        """Tables by name; `rows` hands their rows to the batch under the same names."""
        return {}

    def rows(self, ids: Tensor) -> dict[str, Tensor]:
        """The rows [n, ...] of `ids` [n] in all tables, by table name."""
        return {name: table.rows(ids) for name, table in self.tables().items()}

    # ---- effect on the update and in the training pass; that on the batch is in LearnedEffects ----

    def begin(self, *, looked_at: bool) -> None:
        """Told before every update, and after it with False, whether a meta step looks at its samples."""

    def set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Changes the optimizer's settings, whose "lr" was just set by the schedule."""

    def rates_on_graph(self, settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The settings of each of the optimizer's groups, as `set_rates` made them, with learned ones on the graph."""
        return settings

    def revise(self, revision: Revision) -> Revision:
        """Revises the target of a micro-batch (instant parts only)."""
        return revision

    def observe(self, view: View, seen: Observation, over_processes: Callable[[Tensor], Tensor]) -> None:
        """Told of the first n samples of `view` what an update has shown of them; by the engine `fused` only."""

    # ---- taking it elsewhere: policy.json, meta.reuse ----

    def settings(self) -> dict[str, Any]:
        """What its values mean nothing without, in plain numbers, texts, lists and mappings (JSON)."""
        return {}

    def export(self) -> dict[str, Any] | None:
        """Its settings and the values of its parameters by name, as JSON has them; None where it has none.

        Numbers of single images are not among them: they stay in checkpoints.
        """
        values = plain_values(self)
        return {"settings": self.settings(), "values": values} if values else None

    def start(self) -> dict[str, Tensor]:
        """Where the parameters began, by name, that move without the meta-optimizer."""
        return {}

    def load_export(self, piece: Mapping[str, Any]) -> None:
        """Takes back what `export` gave, of this part or of another run's; ValueError names what does not fit."""
        for key, value in self.settings().items():
            if piece["settings"].get(key) != value:
                raise ValueError(f"settings.{key}: is {piece['settings'].get(key)!r:.100}, and {value!r:.100} here")
        load_plain_values(self, piece["values"])

    # ---- regularisation, log, alarms ----

    def penalty(self, kind: str) -> Tensor | None:
        """What meta.regulariser `kind` adds to the validation loss, on the graph; None where it does not apply."""
        return None

    def summary(self) -> dict[str, float]:
        """Learned values for the log; host sync."""
        return {}

    def drawn(self, images: Tensor, view: View) -> dict[str, Tensor]:
        """What `images` draws, for pictures: "name, unit" -> numbers [N,k], NaN where it is not drawn.

        A name without a unit is of what happens or not.
        """
        return {}

    def per_sample(self) -> dict[str, Tensor]:
        """Learned numbers of all ids by name, [images] each, for the table of samples."""
        return {}

    def alarms(self, summary: dict[str, float]) -> list[str]:
        """What looks wrong in `summary`, its own, each with what to try. Names that end in "saturation" are checked."""
        return [
            f"{name} is {value:.3f}: at the bound of what it may be; lower its learning rate"
            for name, value in summary.items()
            if name.endswith("saturation") and value > SATURATED
        ]
