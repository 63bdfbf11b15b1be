"""Knowledge distillation: a network learns from a trained one's probabilities too (Hinton et al., arXiv:1503.02531)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from fastaug.errors import RecipeError
from fastaug.nets.initial_weights import Fit
from fastaug.nets.model import build_model, stem_of
from fastaug.recipe.schema import Distill, Model, Recipe


class Teacher:
    """The teacher of a recipe: a network in evaluation mode that sees the augmented images of the student.

    It has no state: what it says of an image follows from its weights alone, so that a continued run is exact.
    """

    def __init__(
        self,
        network: nn.Module,
        distill: Distill,
        rescale: tuple[Tensor, Tensor] | None = None,
        autocast: Callable[[], AbstractContextManager[object]] = torch.no_grad,
    ) -> None:
        """`rescale`: factor and offset [1, 3, 1, 1] that take the student's images to the teacher's normalisation."""
        self._network, self._distill, self._rescale, self._autocast = network, distill, rescale, autocast

    def joined(self, loss: Tensor, images: Tensor, logits: Tensor, count: int) -> Tensor:
        """(1 - weight) loss + weight T^2 sum_i KL(teacher's softmax of logits / T || student's), over `count` images.

        `loss`: summed over the images [N, 3, S, S], of which those behind `count` are blank; `logits` [N, C].
        """
        weight, temperature = self._distill.weight, self._distill.temperature
        with torch.no_grad(), self._autocast():
            seen = images[:count]
            taught = self._network(seen if self._rescale is None else seen * self._rescale[0] + self._rescale[1])
        given, own = ((x.float() / temperature).log_softmax(-1) for x in (taught, logits[:count]))
        divergence = F.kl_div(own, given, log_target=True, reduction="sum")
        return (1 - weight) * loss + weight * temperature**2 * divergence


def build_teacher(
    recipe: Recipe, classes: int, accelerator: Accelerator, tell: Callable[[Fit], None]
) -> Teacher | None:
    """The teacher that a recipe names, None without; RecipeError if its classifier is not of `classes` classes."""
    distill, data = recipe.distill, recipe.data
    if distill.teacher is None:
        return None
    model = Model(
        name=distill.teacher,
        pretrained=distill.pretrained,
        initial_checkpoint=distill.checkpoint,
        checkpoint_keys=distill.checkpoint_keys,
        kwargs=distill.kwargs,
        channels_last=recipe.model.channels_last,
    )

    def told(fit: Fit) -> None:
        if fit.head:
            reason = f"its head does not fit {classes} classes: {fit.head[0]}"
            raise RecipeError([f"distill.checkpoint: {fit.file}: {reason}; train a teacher on these classes"])
        tell(fit)

    state = torch.get_rng_state()
    try:
        network = build_model(replace(model, stem=stem_of(model, classes)), classes, told)
        network = network.to(accelerator.device).eval().requires_grad_(False)
    except RecipeError as error:
        problems = (text.replace("model.initial_checkpoint", "distill.checkpoint") for text in error.problems)
        named = [text if text.startswith("distill.") else f"distill.teacher: {text}" for text in problems]
        raise RecipeError(named) from error
    torch.set_rng_state(state)
    mean, std = distill.mean or data.mean, distill.std or data.std
    rescale = None
    if (mean, std) != (data.mean, data.std):
        own, theirs = (
            torch.tensor([a, b], device=accelerator.device).view(2, 1, 3, 1, 1)
            for a, b in ((data.mean, data.std), (mean, std))
        )
        rescale = (own[1] / theirs[1], (own[0] - theirs[0]) / theirs[1])
    return Teacher(network, distill, rescale, accelerator.autocast)
