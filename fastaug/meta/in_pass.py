"""Meta steps inside the training pass: v at the weights before the update, u as far as it is known then."""

from typing import Any

import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.distributed import over_processes
from fastaug.hypergrad import ENGINES
from fastaug.hypergrad.engines.fused import training_pass
from fastaug.hypergrad.optimizer_jacobians.predicted import direction_ahead
from fastaug.hypergrad.problem import Cotangent, Samples, detached, pull_back
from fastaug.meta.evidence import Observation, observed
from fastaug.meta.learned_part import Revision
from fastaug.meta.reweighting import with_rows
from fastaug.meta.step import MetaStep
from fastaug.meta.validation_gradient import validated_names
from fastaug.targets import SoftTarget


class PassStep(MetaStep):
    """Base of the meta steps inside the training pass: the hypergradient in a micro-batch's target."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._renewed: int | None = None  # the last update that renewed v
        self.names = validated_names(self.network, self.meta.layers) if self.engine.fused else None

    def cotangent(self, images: Tensor, target: SoftTarget, step: int, seed: int) -> tuple[Tensor | None, Cotangent]:
        """The logits if the engine `fused` has taken the training pass (else None), and the cotangent in `target`."""
        if step != self._renewed:  # in the first micro-batch
            self.renew(step)
            self._renewed = step
        u = direction_ahead(
            self.optimizer,
            self.network.named_parameters(),
            self.validation.value(),
            approximate=self.meta.approximate,
        )
        samples = Samples(images.float(), target)  # autocast rounds again what training may give in bfloat16
        problem = self.problem(self.weights(self.network), samples, seed)
        engine = self.engine(problem)
        if engine == "fused":
            return training_pass(problem, u, self.training.model)
        return None, ENGINES[engine](problem, u, images=False)


class FusedStep(PassStep):
    """The meta step of the engine `fused`: one pass trains and differentiates, for what acts on targets alone."""

    _last: tuple[Tensor, Cotangent] | None = None  # images of the last pass, and its cotangent

    def before_forward(
        self, images: Tensor, target: SoftTarget, step: int, seed: int
    ) -> tuple[Tensor | None, SoftTarget]:
        """The logits of the training pass, taken here where a meta step is due; the target as it is."""
        if not self.due(step):
            return None, target
        logits, cotangent = self.cotangent(images, target, step, seed)
        self._last = images, cotangent
        return logits, target

    def learn_from(self, batch: Batch, logits: Tensor, step: int, seed: int) -> None:  # noqa: ARG002
        """Moves what is learned by the hypergradient that the pass has found."""
        last, self._last = self._last, None
        if last is None or (chosen := self.chosen(batch, step)) is None:
            return
        images, cotangent = last
        self.training.see_harm(None, cotangent.weight)
        part = self.augment.part(batch, step // self.training.steps_per_epoch, chosen, with_images=False)
        samples = Samples(images, part.target, part.log_probability)
        if self.learned.observes:  # this moves probabilities that learn by evidence; `move` below has nothing of them
            seen = self.observation(logits[chosen], part.target, cotangent)
            self.learned.observe(part.view, seen, over_processes)
        gradients = pull_back(samples, cotangent, self.leaves(part.rows), over_processes)
        shared = self.learned.shared()
        self.move({name: over_processes(g) if name in shared else g for name, g in gradients.items()}, part.ids, step)

    def observation(self, logits: Tensor, target: SoftTarget, cotangent: Cotangent) -> Observation:
        """What the pass has shown of its samples, for parts that learn from evidence."""
        z, target = logits.float().requires_grad_(), detached(target)
        with torch.enable_grad():
            losses = self.training.losses(z, target)
            (slope,) = torch.autograd.grad(losses.sum(), z)
        return observed(target.weight * cotangent.weight, losses.detach(), slope.norm(dim=1))


class InstantStep(PassStep):
    """Instant reweighting: loss weights and soft labels set anew in every training pass, nothing is kept."""

    _harm: Tensor | None = None  # of the samples of the last pass

    def unsettled(self) -> int:
        """None: they follow from the direction ahead, which knows its length at no time."""
        return 0

    def before_forward(
        self, images: Tensor, target: SoftTarget, step: int, seed: int
    ) -> tuple[Tensor | None, SoftTarget]:
        """The target with this pass's own weights or labels."""
        if not self.due(step):
            return None, target
        written = with_rows(target, self.augment.outputs)
        logits, cotangent = self.cotangent(images, written, step, seed)
        self._harm = cotangent.weight
        revised = self.learned.revise(Revision(target, written, cotangent, cotangent.weight))
        self.log.add(step, {}, {"weight": cotangent.weight}, revised.weights)
        return logits, revised.target

    def learn_from(self, batch: Batch, logits: Tensor, step: int, seed: int) -> None:  # noqa: ARG002
        """Tells the harm of the last micro-batch's samples."""
        harm, self._harm = self._harm, None
        if harm is not None:
            self.training.see_harm(None, harm)
