"""timm's arguments of batches, learning rate, schedule and optimizer."""

import math

from fastaug.errors import RecipeError
from fastaug.recipe.timm_script.conversion import Conversion


def update_size(c: Conversion) -> int:
    """Images of an update over all processes and micro-batches."""
    size: int = c["batch_size"] * c.source.processes * _accumulated(c)
    return size


def _accumulated(c: Conversion) -> int:
    return max(1, c["grad_accum_steps"])


def batches(c: Conversion) -> None:
    accumulate, update = _accumulated(c), update_size(c)
    parts = f"{c['batch_size']} x {c.source.processes} processes" + (
        f" x {accumulate} micro-batches" if accumulate > 1 else ""
    )
    # timm drops what is left of an epoch behind its last whole micro-batch, and updates with what micro-batches it has.
    last = (
        "" if accumulate == 1 else "; the last update of an epoch is as in timm but for images short of a micro-batch"
    )
    c.sets("batch_size", parts + last, train__batch_size=update, train__drop_last=accumulate == 1)
    c.sets("grad_accum_steps", train__accumulate=accumulate)
    multiple = c["validation_batch_size_multiplier"]
    own = c["validation_batch_size"] or c["batch_size"] * multiple
    c.sets("validation_batch_size", "" if c["validation_batch_size"] else "as batch_size", eval__batch_size=own)
    c.idle("validation_batch_size_multiplier", "eval.batch_size has it")


def rate(c: Conversion) -> None:
    """optim.lr: --lr, or timm's rule for the size of an update."""
    names = ("lr_base", "lr_base_size", "lr_base_scale")
    if c["lr"]:
        c.sets("lr", optim__lr=float(c["lr"]))
        for name in names:
            c.idle(name, "--lr is given")
        return
    rate, scale = computed_rate(c)
    said = f"{c['lr_base']:g} x {'root of ' if scale == 'sqrt' else ''}{update_size(c)} / {c['lr_base_size']}"
    c.told("lr", "idle", {}, "computed from lr_base")
    c.keys["optim.lr"] = rate
    c.told("lr_base", "key", {"optim.lr": rate}, said)
    for name in names[1:]:
        c.idle(name, "in optim.lr")


def computed_rate(c: Conversion) -> tuple[float, str]:
    """timm's learning rate for the size of an update, and how it scales: linear or sqrt."""
    scale = c["lr_base_scale"] or ("sqrt" if any(part in c["opt"].lower() for part in ("ada", "lamb")) else "linear")
    ratio = update_size(c) / c["lr_base_size"]
    return float(c["lr_base"] * (math.sqrt(ratio) if scale == "sqrt" else ratio)), scale


def schedule(c: Conversion) -> None:
    """Kind and length; what timm trains is --epochs with the cool-down, and with a warm-up that is a prefix."""
    sched, asked = c["sched"], c["sched"]
    if sched in ("tanh", "poly", "wsd", "rsqrt"):
        sched = "cosine"
        c.lacks("sched", f"{asked} is not here; cosine", optim__sched=sched)
    elif sched in ("none", "", None):
        sched = "constant"
        c.sets("sched", "the rate stays as it is", optim__sched=sched)
    elif sched == "plateau":
        c.lacks(
            "sched",
            "it follows select's top-1, not the validation images'; set data.select_fraction",
            optim__sched=sched,
        )
    elif sched in ("cosine", "step", "multistep", "constant"):
        c.sets("sched", optim__sched=sched)
    else:
        raise RecipeError(
            [f"--sched: {sched!r} is no schedule of timm; cosine, step, multistep, plateau, constant, none"]
        )
    warmup = 0 if asked in ("none", "", None) else c["warmup_epochs"]
    cooldown = c["cooldown_epochs"] if sched == "cosine" else 0
    prefix = bool(c["warmup_prefix"] and warmup)
    total = c["epochs"] + cooldown + (warmup if prefix else 0)
    added = [f"{cooldown} of cool-down"] * bool(cooldown) + [f"{warmup} of warm-up"] * prefix
    c.sets("epochs", f"with {' and '.join(added)}" if added else "", train__epochs=total)
    c.sets("sched_on_updates", optim__sched_on_updates=c["sched_on_updates"])
    _warmup(c, sched, warmup, prefix)
    if cooldown or sched == "cosine":
        c.sets("cooldown_epochs", optim__cooldown_epochs=cooldown)
    else:
        c.idle("cooldown_epochs", f"timm adds it to cosine alone, not to {sched}")
    _decays(c, sched, warmup if prefix else 0)


def _warmup(c: Conversion, sched: str, warmup: int, prefix: bool) -> None:
    if not warmup:
        for name in ("warmup_epochs", "warmup_lr", "warmup_prefix"):
            c.idle(name, "no warm-up")
        return
    c.sets("warmup_epochs", optim__warmup_epochs=float(warmup))
    c.sets("warmup_lr", optim__warmup_lr=c["warmup_lr"])
    if sched == "cosine":
        c.sets("warmup_prefix", optim__warmup_prefix=prefix)
    elif prefix and sched == "step":
        c.lacks("warmup_prefix", f"decays of step are counted from the start: they come {warmup} epochs earlier")
    else:
        c.idle("warmup_prefix", "in decay_milestones" if prefix else "of cosine")


def _decays(c: Conversion, sched: str, prefix: int) -> None:
    if sched == "step":
        c.sets("decay_epochs", optim__decay_epochs=float(c["decay_epochs"]))
    else:
        c.idle("decay_epochs", "of step")
    if sched == "multistep":
        c.sets("decay_milestones", optim__decay_milestones=[epoch + prefix for epoch in c["decay_milestones"]])
    else:
        c.idle("decay_milestones", "of multistep")
    if sched in ("step", "multistep", "plateau"):
        c.sets("decay_rate", optim__decay_rate=c["decay_rate"])
    else:
        c.idle("decay_rate", "of step, multistep and plateau")
    if sched == "plateau":
        c.sets("patience_epochs", optim__patience_epochs=c["patience_epochs"])
    else:
        c.idle("patience_epochs", "of plateau")


def optimizer(c: Conversion) -> None:
    kwargs = dict(c["opt_kwargs"])
    for name in ("layer_decay_min_scale", "layer_decay_no_opt_scale"):
        if c["layer_decay"] is None or not c[name]:
            c.idle(name, "without --layer-decay it says nothing" if c[name] else "none")
        else:
            kwargs[name] = c[name]
            c.told(name, "key", {"optim.opt_kwargs": {name: c[name]}}, "")
    c.keys |= {"optim.opt_kwargs": kwargs} if kwargs else {}
    told = {"optim.opt_kwargs": dict(c["opt_kwargs"])} if c["opt_kwargs"] else {}
    c.told("opt_kwargs", "key" if told else "idle", told, "" if told else "none")
    if c["clip_grad"]:
        c.sets("clip_grad", optim__clip_grad=float(c["clip_grad"]))
        c.sets("clip_mode", optim__clip_mode=c["clip_mode"])
    else:
        c.idle("clip_grad", "not clipped")
        c.idle("clip_mode", "without --clip-grad it says nothing")
