"""Optimizers and learning-rate schedules, timm's by name. The rate is a function of the update, so it has no state."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from fastaug.errors import RecipeError
from fastaug.nets.parameter_names import matched
from fastaug.nets.plateau import Plateau
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
            layer_decay=optim.layer_decay,
            param_group_fn=partial(scaled_groups, optim) if optim.lr_scale else None,
            **kwargs,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise RecipeError([f"optim.opt: {optim.opt} cannot be built: {error}"]) from error


def scaled_groups(optim: Optim, network: nn.Module) -> list[dict[str, Any]]:
    """timm's parameter groups, each divided by `optim.lr_scale`: "lr_scale" is the factor on a group's learning rate.

    It is that of the layer (`optim.layer_decay`) times that of the pattern that matches a parameter. RecipeError where
    two patterns with different factors do.
    """
    factors = _factors(optim, network)
    decay: dict[str, Any] = {
        "weight_decay": optim.weight_decay,
        "weight_decay_exclude_1d": not optim.norm_weight_decay,
        "no_weight_decay_list": getattr(network, "no_weight_decay", set)(),
    }
    if optim.layer_decay is None:
        groups = param_groups_weight_decay(network, **decay)
    else:
        groups = param_groups_layer_decay(network, layer_decay=optim.layer_decay, **decay)
    divided: list[dict[str, Any]] = []
    for group in groups:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factors.get(parameter, 1.0), []).append(parameter)
        for factor, parameters in by_factor.items():
            divided.append({**group, "params": parameters, "lr_scale": group.get("lr_scale", 1.0) * factor})
    return divided


def _factors(optim: Optim, network: nn.Module) -> dict[nn.Parameter, float]:
    """The factor of every parameter that a pattern of `optim.lr_scale` matches."""
    parameters, found = dict(network.named_parameters()), dict[str, tuple[str, float]]()
    for pattern, factor in optim.lr_scale.items():
        for name in matched(network, pattern, "optim.lr_scale"):
            other, given = found.setdefault(name, (pattern, factor))
            if given != factor:
                text = f"{name} matches {other!r} ({given:g}) and {pattern!r} ({factor:g})"
                raise RecipeError([f"optim.lr_scale: {text}; write patterns that do not overlap"])
    return {parameters[name]: factor for name, (_, factor) in found.items()}


def scale_of(group: Mapping[str, Any]) -> float:
    """The factor of a parameter group on the learning rate, as timm's schedules apply it."""
    factor: float = group.get("lr_scale", 1.0)
    return factor


def build_schedule(
    optim: Optim,
    optimizer: Optimizer,
    *,
    epochs: int,
    updates_per_epoch: int,
    plateau: Plateau | None = None,
) -> SetRate:
    """The schedule: a function that sets the learning rates of update u (from 0) and returns that of factor 1.

    `plateau`: what has fallen so far by that schedule.
    """
    scheduler = _scheduler(optim, optimizer, epochs, updates_per_epoch)
    given = [group["lr"] * scale_of(group) for group in optimizer.param_groups]

    def set_rate(update: int) -> float:
        if scheduler is not None and optim.sched_on_updates:
            scheduler.step_update(update)
        elif scheduler is not None:
            scheduler.step(update // updates_per_epoch)
        else:
            for group, rate in zip(optimizer.param_groups, given, strict=True):
                group["lr"] = rate  # learned rates may have changed it
        if plateau is not None:
            for group in optimizer.param_groups:
                group["lr"] = max(group["lr"] * plateau.factor, optim.min_lr * scale_of(group))
        first = optimizer.param_groups[0]
        return first["lr"] / scale_of(first)

    return set_rate


def _scheduler(optim: Optim, optimizer: Optimizer, epochs: int, updates_per_epoch: int) -> Scheduler | None:
    """timm's, None where the rate never changes; decays of step and multistep are counted from the training's start."""
    constant = optim.sched in ("constant", "plateau")
    after_warmup = optim.sched == "cosine" and optim.warmup_prefix and optim.warmup_epochs > 0
    if constant and not optim.warmup_epochs:
        return None
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="multistep" if constant else optim.sched,
        num_epochs=epochs - optim.cooldown_epochs - (optim.warmup_epochs if after_warmup else 0),
        warmup_prefix=after_warmup,
        decay_epochs=optim.decay_epochs,
        decay_milestones=[] if constant else optim.decay_milestones,
        decay_rate=optim.decay_rate,
        min_lr=optim.min_lr,
        warmup_lr=optim.warmup_lr,
        warmup_epochs=optim.warmup_epochs,
        step_on_epochs=not optim.sched_on_updates,
        updates_per_epoch=updates_per_epoch,
    )
    return scheduler
