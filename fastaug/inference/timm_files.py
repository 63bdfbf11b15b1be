"""What timm's training script leaves beside a checkpoint, made of a run of ours: args.yaml, summary.csv, class_map.txt.

Only arguments that mean the same in timm are given; what has no counterpart there stands in the model card's recipe.
"""

from pathlib import Path
from typing import Any

from fastaug.recipe.schema import Recipe
from fastaug.recipe.strict_yaml import write_yaml
from fastaug.training.model_facts import ModelFacts
from fastaug.training.summary_table import evaluated, read_epochs, summary_table

_SAME_SCHEDULES = ("cosine", "step", "multistep")


def timm_args(facts: ModelFacts) -> dict[str, Any]:
    """Arguments of timm's train.py and validate.py by their names."""
    recipe, prepared = facts.recipe, facts.preprocessing
    whole = prepared.crop == "whole"
    model, optim, train = recipe.model, recipe.optim, recipe.train
    given = {
        "model": model.name,
        "num_classes": len(facts.classes),
        "in_chans": prepared.channels,
        "input_size": list(prepared.input_size),
        "crop_pct": 1.0 if whole else prepared.crop_pct,
        "crop_mode": "squash" if whole else "center",
        "interpolation": prepared.interpolation,
        "mean": list(prepared.mean),
        "std": list(prepared.std),
        "model_kwargs": dict(model.kwargs),
        "drop": model.drop,
        "drop_path": model.drop_path,
        "model_ema": model.ema,
        "model_ema_decay": model.ema_decay,
        "channels_last": model.channels_last,
        **_lengths(recipe),
        "batch_size": train.batch_size // train.accumulate,  # by one process
        "grad_accum_steps": train.accumulate,
        "opt": optim.opt,
        "lr": optim.lr,
        "momentum": optim.momentum,
        "weight_decay": optim.weight_decay,
        "warmup_lr": optim.warmup_lr,
        "min_lr": optim.min_lr,
        "sched": optim.sched if optim.sched in _SAME_SCHEDULES else None,
        "clip_grad": optim.clip_grad,
        "aa": recipe.augment.aa,
        "hflip": recipe.augment.hflip,
        "mixup": recipe.augment.mixup,
        "cutmix": recipe.augment.cutmix,
        "smoothing": recipe.augment.smoothing,
        "reprob": recipe.augment.reprob,
        "scale": list(recipe.data.scale),
        "ratio": list(recipe.data.ratio),
        "seed": recipe.run.seed,
    }
    return {name: value for name, value in given.items() if value is not None}


def _lengths(recipe: Recipe) -> dict[str, Any]:
    """Epochs as timm counts them: cool-down, and a warm-up that is a prefix, come on top of its `epochs`."""
    optim, epochs = recipe.optim, recipe.train.epochs
    prefix = optim.sched == "cosine" and optim.warmup_prefix and optim.warmup_epochs > 0
    length = epochs - optim.cooldown_epochs - (optim.warmup_epochs if prefix else 0)
    return {
        "epochs": int(length) if length == int(length) else length,
        "warmup_epochs": optim.warmup_epochs,
        "warmup_prefix": prefix,
        "cooldown_epochs": optim.cooldown_epochs,
        "sched_on_updates": optim.sched_on_updates,
    }


def args_yaml(facts: ModelFacts) -> bytes:
    """args.yaml."""
    return write_yaml(timm_args(facts)).encode()


def class_map(facts: ModelFacts) -> bytes:
    """class_map.txt: the class of each output, a line each; timm alone would count 10 behind 9, not behind 1."""
    return "".join(f"{name}\n" for name in facts.classes).encode(errors="surrogateescape")


def summary_csv(facts: ModelFacts, run: Path | None) -> bytes:
    """summary.csv: a line an epoch up to the checkpoint, from the log of its run; without one its own epoch alone."""
    epochs = {}
    if run is not None:
        epochs = read_epochs(run / "metrics.jsonl", facts.recipe.eval.weights, facts.step)
    if not epochs and facts.figures is not None:
        epochs = {round(facts.epoch): evaluated(facts.figures)}
    return summary_table(epochs)
