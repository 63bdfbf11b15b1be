"""One-step meta steps: the exact hypergradient of one update, taken after it on a part of the batch.

With v the gradient of the validation loss at w' = U(w, g), u = (dU/dg)^T v leads back through the optimizer's step, and
an engine of fastaug/hypergrad through the gradient g of the training loss.
"""

from typing import Any

import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.distributed import over_processes
from fastaug.errors import RecipeError
from fastaug.hypergrad import checked_cotangent
from fastaug.hypergrad.engines.difference import difference
from fastaug.hypergrad.engines.implicit import implicit_direction, solved_names
from fastaug.hypergrad.engines.unroll import present_settings
from fastaug.hypergrad.optimizer_jacobians.recorded_step import RecordedStep, record_step, through_average
from fastaug.hypergrad.problem import Cotangent, Problem, Weights, pull_back
from fastaug.hypergrad.recording import recorded_forward
from fastaug.meta.step import MetaStep, samples_of
from fastaug.meta.validation_gradient import told_of_recording


class OneStep(MetaStep):
    """The one-step meta step: records an update, then differentiates it."""

    recorded: RecordedStep | None = None  # the update that is differentiated next
    _harm: Tensor | None = None  # of the samples differentiated last

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.meta.engine == "implicit" and not self.learned.acts_on_updates:
            self.names = self._solved()

    def before_update(self, step: int, norm: Tensor) -> None:
        """Keeps what is needed of the update that is about to happen, if a meta step belongs to it."""
        if self.due(step):
            self.recorded = self.record(norm)

    def record(self, norm: Tensor) -> RecordedStep:
        """A record of the coming update; `norm` of its gradient before clipping."""
        return record_step(
            self.optimizer,
            self.network.named_parameters(),
            norm=norm,
            max_norm=self.training.recipe.optim.clip_grad,
            hyperparameters=self.learned.acts_on_updates,
            approximate=self.meta.approximate,
        )

    def learn_from(self, batch: Batch, logits: Tensor, step: int, seed: int) -> None:
        """The meta step after update `step`, on some images of its last micro-batch."""
        recorded, self.recorded = self.recorded, None
        if recorded is None or (chosen := self.chosen(batch, step)) is None:
            return
        part = self.augment.part(batch, step // self.training.steps_per_epoch, chosen)
        self.renew(step)
        v = self.validation.value()
        if self.training.average is not None:
            v = through_average(v, self.training.average_decay(step))
        problem = self.problem(recorded.weights, samples_of(part), seed)
        u = self._implicit(problem, v) if self.meta.engine == "implicit" else recorded.direction(v)
        gradients = self.gradients(problem, u, self.leaves(part.rows), logits if len(chosen) == len(logits) else None)
        harm, self._harm = self._harm, None
        if harm is not None:
            self.training.see_harm(chosen, harm)
        shared = self.learned.shared()
        gradients = {name: over_processes(g) if name in shared else g for name, g in gradients.items()}
        if self.learned.acts_on_updates:
            gradients |= self._through_settings(recorded.hyperparameter_gradients(v))
        self.move(gradients, part.ids, step)

    def gradients(
        self, problem: Problem, u: Weights, leaves: dict[str, Tensor], logits: Tensor | None
    ) -> dict[str, Tensor]:
        """This process's term of the hypergradient in `leaves`.

        `logits`: those of the update if the samples are the whole batch; training has done half of a difference then.
        """
        if not leaves:
            return {}
        cotangent = self.cotangent(problem, u, logits)
        self._harm = cotangent.weight
        return pull_back(problem.samples, cotangent, leaves, over_processes)

    def cotangent(self, problem: Problem, u: Weights, logits: Tensor | None) -> Cotangent:
        """The cotangent in this process's samples, by the engine of the run."""
        engine = self.engine(problem)
        if engine == "difference" and problem.samples.images.requires_grad:
            learned = ", ".join(self.learned.each())
            raise RecipeError(
                [f"meta.engine: difference is wrong for learned images ({learned}); choose another engine"]
            )
        if engine == "difference":
            logits = None if self.training.recipe.model.compile else logits  # compiled code draws other dropout masks
            return difference(problem, u, images=False, logits=logits)
        if engine == "forward" and self.recording is not None:
            with told_of_recording():
                return recorded_forward(self.recording, problem, u)
        return checked_cotangent(problem, u, engine)

    def _through_settings(self, slopes: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The hypergradient in parts that act on the optimizer's settings, from <v, dU/dh> of each of its groups."""
        settings = self.learned.rates_on_graph(present_settings(self.optimizer))
        on_batch = self.learned.shared(on_batch=True)
        parameters = {name: p for name, p in self.learned.shared().items() if name not in on_batch}
        pairs = [
            (value, slope[name].to(value))
            for group, slope in zip(settings, slopes, strict=True)
            for name, value in numbers_of(group).items()
            if isinstance(value, Tensor) and value.requires_grad and name in slope
        ]
        if not pairs:
            return {}
        outputs, gradients = zip(*pairs, strict=True)
        found = torch.autograd.grad(
            outputs, list(parameters.values()), gradients, materialize_grads=True, allow_unused=True
        )
        return dict(zip(parameters, found, strict=True))

    def _solved(self) -> list[str]:
        """The weights of the classifier or of meta.layers; RecipeError where there are none."""
        patterns = [f"{layer}.*" for layer in self.meta.layers] or None
        try:
            return solved_names(self.network, self.weights(self.network), patterns)
        except ValueError as error:
            raise RecipeError([f"meta.engine: implicit: {error}"]) from error

    def _implicit(self, problem: Problem, v: Weights) -> Weights:
        """-H^-1 v on the classifier or meta.layers, in place of the optimizer's own step.

        RecipeError where that fails in the first meta step; later, or with a v that is not finite, the direction is not
        finite, and the step left out.
        """
        meta, first = self.meta, self.engine.chosen is None
        first = first and all(bool(value.isfinite().all()) for value in v.values())
        try:
            return implicit_direction(
                problem,
                v,
                solver=meta.solver,
                alpha=meta.alpha,
                terms=meta.terms,
                damping=meta.damping,
                parameters=self.names or self._solved(),
                over_processes=over_processes,
            )
        except ValueError as error:
            if first:
                raise RecipeError([f"meta.engine: implicit: {error}"]) from error
            return {name: torch.full_like(value, torch.nan) for name, value in v.items()}


def numbers_of(settings: dict[str, Any]) -> dict[str, Any]:
    """A group's settings with betas under the names that their derivatives have, beta1 and beta2."""
    betas = settings.get("betas", ())
    return settings | {f"beta{number}": beta for number, beta in enumerate(betas, 1)}
