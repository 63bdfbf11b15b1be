"""Optimizers and learning-rate schedules, timm's by name. The rate is a function of the update, so it has no state."""

from collections.abc import Callable

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from fastaug.errors import RecipeError
from fastaug.recipe.schema import Optim

SetRate = Callable[[int], float]  # update number -> learning rate, set in the optimizer


def build_optimizer(optim: Optim, network: nn.Module) -> Optimizer:
    """The optimizer named `optim.opt`; biases and norms are not decayed unless `norm_weight_decay`."""
    kwargs = dict(optim.opt_kwargs)
    kwargs |= {"eps": optim.opt_eps} if optim.opt_eps is not None else {}
    kwargs |= {"betas": tuple(optim.opt_betas)} if optim.opt_betas is not None else {}
    try:
        return create_optimizer_v2(
            network,
            opt=optim.opt,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            filter_bias_and_bn=not optim.norm_weight_decay,
            **kwargs,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise RecipeError([f"optim.opt: {optim.opt} cannot be built: {error}"]) from error


def build_schedule(
    optim: Optim,
    optimizer: Optimizer,
    *,
    epochs: int,
    updates_per_epoch: int,
) -> SetRate:
    """The schedule: a function that sets the learning rates of update u (from 0) and returns the first group's."""
    scheduler = _scheduler(optim, optimizer, epochs, updates_per_epoch)
    given = [group["lr"] for group in optimizer.param_groups]

    def set_rate(update: int) -> float:
        if scheduler is not None:
            scheduler.step_update(update)
        else:
            for group, rate in zip(optimizer.param_groups, given, strict=True):
                group["lr"] = rate  # learned rates may have changed it
        return optimizer.param_groups[0]["lr"]

    return set_rate


def _scheduler(optim: Optim, optimizer: Optimizer, epochs: int, updates_per_epoch: int) -> Scheduler | None:
    """timm's, None where the rate never changes; decays of step and multistep are counted from the training's start."""
    constant = optim.sched == "constant"
    after_warmup = optim.sched == "cosine" and optim.warmup_prefix and optim.warmup_epochs > 0
    if constant and not optim.warmup_epochs:
        return None
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="multistep" if constant else optim.sched,
        num_epochs=epochs - optim.warmup_epochs if after_warmup else epochs,
        warmup_prefix=after_warmup,
        decay_epochs=optim.decay_epochs,
        decay_milestones=[] if constant else optim.decay_milestones,
        decay_rate=optim.decay_rate,
        min_lr=optim.min_lr,
        warmup_lr=optim.warmup_lr,
        warmup_epochs=optim.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return scheduler
