"""The meta step: how augmentation, weights and labels learn from the meta split while the network trains.

Every K updates, after the optimizer's step w' = U(w, g): v, the gradient of the validation loss at w', is pulled back
through the step to a direction u = (dU/dg)^T v, and through the gradient g of a part of the batch to everything that
shaped it (fastaug/hypergrad). Instant weights and labels are set in the training pass instead, with v at w and u as far
as it is known before the step, and so does the engine `fused` find its derivatives.
Nothing here touches the network, its buffers, gradients, optimizer state or any generator.
"""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fastaug.augment.pipeline import BatchAugment, Part
from fastaug.batch import Batch
from fastaug.distributed import any_process, gathered, over_processes
from fastaug.errors import RecipeError
from fastaug.hypergrad import ENGINES, hypergradient
from fastaug.hypergrad.engines.difference import difference
from fastaug.hypergrad.engines.fused import training_pass
from fastaug.hypergrad.engines.implicit import implicit_direction
from fastaug.hypergrad.optimizer_jacobians.predicted import direction_ahead
from fastaug.hypergrad.optimizer_jacobians.recorded_step import RecordedStep, record_step, rule_of, through_average
from fastaug.hypergrad.problem import Cotangent, Losses, Problem, Samples, Weights, pull_back
from fastaug.meta.engine_choice import EngineChoice
from fastaug.meta.log import MetaLog
from fastaug.meta.parameters import INSTANT
from fastaug.meta.reweighting import instant_labels, instant_weights, with_rows
from fastaug.meta.validation_gradient import ValidationGradient, validated_names
from fastaug.recipe.schema import SMALLEST_BATCH, Recipe
from fastaug.targets import SoftTarget


def check_optimizer(recipe: Recipe, optimizer: torch.optim.Optimizer) -> None:
    """RecipeError unless the steps of `optimizer` can be differentiated as the recipe needs it."""
    try:
        rule = rule_of(optimizer, recipe.meta.approximate)
    except ValueError as error:
        raise RecipeError([f"optim.opt: {error} (meta.approximate=true)"]) from error
    if "optim" in recipe.meta.learn and rule.update is None:
        name = type(optimizer).__name__
        raise RecipeError([f"meta.learn: optim is not known for {name} with meta.approximate; leave one of them out"])


class MetaStep:
    """The meta step of one process of a run.

    `model`: the network as training calls it; `average`: its moving average if that is validated.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        network: nn.Module,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        augment: BatchAugment,
        validation: ValidationGradient,
        losses: Losses,
        *,
        steps_per_epoch: int,
        average: nn.Module | None,
        say: Callable[[str], None],
    ) -> None:
        assert augment.learned is not None
        check_optimizer(recipe, optimizer)
        self.recipe, self.accelerator, self.optimizer = recipe, accelerator, optimizer
        self.network, self.model = network, model
        self.augment, self.learned, self.validation, self.losses = augment, augment.learned, validation, losses
        self.steps_per_epoch, self.average = steps_per_epoch, average
        self.first_step = round(recipe.meta.start_epochs * steps_per_epoch)
        self.instant = INSTANT & set(recipe.meta.learn)
        groups = self.learned.groups(recipe)
        self.shared: list[Tensor] = [p for group in groups for p in group["params"]]
        self.meta_optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99)) if groups else None
        self.engine = EngineChoice(recipe, say)
        self.names = validated_names(network, recipe.meta.layers) if self.engine.fused else None
        self.log = MetaLog()
        self._recorded: RecordedStep | None = None
        self._renewed: int | None = None  # the last update that renewed v
        self._cotangent: Cotangent | None = None  # of the last training pass, engine fused

    # ---- when ----

    def _on(self, step: int) -> bool:
        return step >= self.first_step and (step - self.first_step) % self.recipe.meta.every == 0

    def due(self, step: int) -> bool:
        """Whether a meta step follows update `step` (from 0)."""
        return not self.instant and self._on(step)

    def joins_pass(self, step: int) -> bool:
        """Whether `forward` takes the training pass of update `step`."""
        return (bool(self.instant) or self.engine.fused) and self._on(step)

    def _renew(self, step: int) -> None:
        """Renews v where update `step` does; in its first micro-batch."""
        number = (step - self.first_step) // self.recipe.meta.every
        first = self.validation.renewals == 0  # that of `number` 0 may have been left out
        if step != self._renewed and (first or number % self.recipe.meta.renew == 0):
            self.validation.renew(self._weights(self._validated()), self.names)
            self._renewed = step

    # ---- in the training pass: instant weights and labels, and the engine fused ----

    def forward(self, images: Tensor, target: SoftTarget, step: int, seed: int) -> tuple[Tensor | None, SoftTarget]:
        """A micro-batch's target with this update's own weights or labels; its logits if the engine is `fused`."""
        self._renew(step)
        u = direction_ahead(
            self.optimizer,
            self.network.named_parameters(),
            self.validation.value(),
            approximate=self.recipe.meta.approximate,
        )
        written = with_rows(target, self.augment.outputs) if self.instant else target
        problem = self._problem(self._weights(self.network), Samples(images, written), seed)
        engine = self.engine(problem)
        if engine == "fused":
            logits, self._cotangent = training_pass(problem, u, self.model)
        else:
            logits, self._cotangent = None, ENGINES[engine](problem, u, images=False)
        if self.instant:
            target = self._instant(self._cotangent, written, target, step)
        return logits, target

    def _instant(self, cotangent: Cotangent, written: SoftTarget, target: SoftTarget, step: int) -> SoftTarget:
        """What the cotangent in `written`, which is `target` with its rows written out, makes of it."""
        meta, harm = self.recipe.meta, cotangent.weight
        if "instant_labels" in self.instant:
            target, harm = instant_labels(
                cotangent,
                written,
                temperature=meta.labels_temperature,
                trust=meta.labels_trust,
                total=over_processes,
            )
        weights = None
        if "instant_weights" in self.instant:
            weights = instant_weights(harm, over_processes, even="instant_labels" in self.instant)
            target = target._replace(weight=target.weight * weights)
        self.log.add(step, [], cotangent.weight, weights)
        return target

    # ---- around the update: everything else ----

    def record(self, norm: Tensor) -> None:
        """Keeps what is needed of the update that is about to happen; `norm` of its gradient before clipping."""
        if self.engine.fused:
            return  # its derivatives are known already
        self._recorded = record_step(
            self.optimizer,
            self.network.named_parameters(),
            norm=norm,
            max_norm=self.recipe.optim.clip_grad,
            hyperparameters=self.learned.optim is not None,
            approximate=self.recipe.meta.approximate,
        )

    def step(self, batch: Batch, logits: Tensor, step: int, seed: int) -> None:
        """The meta step after update `step`, on the first images of its last micro-batch, whose `logits` are known."""
        recorded, self._recorded = self._recorded, None
        n = min(len(batch.ids), max(SMALLEST_BATCH, round(self.recipe.meta.fraction * len(batch.ids))))
        if self.accelerator.optimizer_step_was_skipped or any_process(self.accelerator, n < SMALLEST_BATCH):
            return  # the network did not learn in this update, or damage has left too few images
        part = self.augment.part(batch, step // self.steps_per_epoch, n)
        if recorded is not None:
            shared, rows = self._through_update(recorded, part, logits if n == len(logits) else None, step, seed)
        else:
            assert self._cotangent is not None
            shared, rows = self._split(part, pull_back(part.samples, self._cotangent, self._leaves(part)))
        self._move(shared, part.ids, rows, step)

    def _through_update(
        self, recorded: RecordedStep, part: Part, logits: Tensor | None, step: int, seed: int
    ) -> tuple[list[Tensor], Tensor | None]:
        """The hypergradient in the shared parameters, over all processes, and in this part's rows.

        `logits`: those of the update if the part is the whole batch; training has done half of a difference then.
        """
        self._renew(step)
        v = self.validation.value()
        if self.average is not None:
            v = through_average(v, self.recipe.model.ema_decay)
        problem = self._problem(recorded.weights, part.samples, seed)
        u = self._implicit(problem, v) if self.recipe.meta.engine == "implicit" else recorded.direction(v)
        shared, rows = self._split(part, self._gradients(problem, u, self._leaves(part), logits))
        if self.learned.optim is not None:
            shared += self.learned.optim.gradients(self.optimizer, recorded.hyperparameter_gradients(v))
        return shared, rows

    def _leaves(self, part: Part) -> dict[str, Tensor]:
        """What acts on the losses of `part`: the shared parameters but the optimizer's, and the part's rows."""
        shared = self.shared[: len(self.shared) - self.learned.optimizer_numbers()]
        leaves = {f"shared {number}": parameter for number, parameter in enumerate(shared)}
        return leaves if part.rows is None else leaves | {"rows": part.rows}

    def _split(self, part: Part, found: dict[str, Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Derivatives in `_leaves`, summed over all processes where these are shared; those in the rows."""
        rows = None if part.rows is None else found.pop("rows")
        return [over_processes(g) for g in found.values()], rows

    def _gradients(
        self, problem: Problem, u: Weights, leaves: dict[str, Tensor], logits: Tensor | None
    ) -> dict[str, Tensor]:
        """This process's term of the hypergradient in `leaves`."""
        if not leaves:
            return {}
        engine = self.engine(problem)
        if engine == "difference":
            logits = None if self.recipe.model.compile else logits  # compiled code draws other dropout masks
            cotangent = difference(problem, u, images=problem.samples.images.requires_grad, logits=logits)
            return pull_back(problem.samples, cotangent, leaves, over_processes)
        return hypergradient(problem, u, leaves, engine, over_processes)

    def _implicit(self, problem: Problem, v: Weights) -> Weights:
        """-H^-1 v on the classifier or meta.layers, in place of the optimizer's own step.

        RecipeError where that fails in the first meta step; later, or with a v that is not finite, the direction is not
        finite, and the step left out.
        """
        meta, first = self.recipe.meta, self.engine.chosen is None
        first = first and all(bool(value.isfinite().all()) for value in v.values())
        try:
            return implicit_direction(
                problem,
                v,
                solver=meta.solver,  # type: ignore[arg-type]
                alpha=meta.alpha,
                terms=meta.terms,
                damping=meta.damping,
                parameters=[f"{layer}.*" for layer in meta.layers] or None,
                over_processes=over_processes,
            )
        except ValueError as error:
            if first:
                raise RecipeError([f"meta.engine: implicit: {error}"]) from error
            return {name: torch.full_like(value, torch.nan) for name, value in v.items()}

    def _move(self, shared: list[Tensor], ids: Tensor, rows: Tensor | None, step: int) -> None:
        """One step of the meta-optimizer, and of the rows of the table that belong to `ids`."""
        self.log.add(step, shared, rows)
        if shared and bool(torch.stack([g.isfinite().all() for g in shared]).all()):  # host sync
            assert self.meta_optimizer is not None
            for parameter, gradient in zip(self.shared, shared, strict=True):
                parameter.grad = gradient
            self.meta_optimizer.step()
            self.meta_optimizer.zero_grad()
        if rows is not None:
            assert self.learned.weights is not None
            self.learned.weights.move(*gathered(self.accelerator, ids, rows), self.recipe.meta.weights_lr)

    # ---- shared by both ----

    def _validated(self) -> nn.Module:
        """The network whose validation loss is to fall."""
        return self.network if self.average is None else self.average

    def _weights(self, network: nn.Module) -> Weights:
        """The weights of `network` by name, those that are trained."""
        trained = {name for name, weight in self.network.named_parameters() if weight.requires_grad}
        return {name: weight.detach() for name, weight in network.named_parameters() if name in trained}

    def _problem(self, weights: Weights, samples: Samples, seed: int) -> Problem:
        count = len(samples.images)
        if self.accelerator.num_processes > 1:
            count = int(over_processes(torch.tensor(count, device=samples.images.device)).item())
        return Problem(self.network, weights, samples, self.losses, count, seed, self.accelerator.autocast)

    def state_dict(self) -> dict[str, Any]:
        """All that continuing needs."""
        return {
            "learned": self.learned.state_dict(),
            "optimizer": None if self.meta_optimizer is None else self.meta_optimizer.state_dict(),
            "validation": self.validation.state_dict(),
            "engine": self.engine.chosen,
            "log": self.log.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`."""
        self.learned.load_state_dict(state["learned"])
        if self.meta_optimizer is not None:
            self.meta_optimizer.load_state_dict(state["optimizer"])
        self.validation.load_state_dict(state["validation"])
        self.engine.chosen = state["engine"]
        self.log.load_state_dict(state["log"])
