"""The recipe: every setting of a run, typed, with its limits. The only file that knows key names.

Names are timm's where timm has one. `limits(...)` states what a value may be; `validate` adds the rules that join
several keys. Reading YAML and the command line is in `recipe_reading.py`. Nothing here imports torch.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

LOADERS = ("dali", "resident", "synthetic")
SMALLEST_BATCH = 2  # BatchNorm needs two values a channel


def limits(
    default: Any,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    length: int | None = None,
) -> Any:
    """A field with bounds on its value (or on each element of a list); `above` and `below` are exclusive."""
    meta = {"choices": choices, "low": low, "high": high, "above": above, "below": below, "length": length}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: default.copy(), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass
class Run:
    dir: str | None = None  # run folder; default runs/<name of the recipe>
    seed: int = limits(0, low=0, high=2**63 - 1)
    log_every: int = limits(50, low=1)  # optimizer steps between log lines
    checkpoint_every: int = limits(0, low=0)  # optimizer steps; 0: at the end of every epoch
    keep: int = limits(3, low=1)  # checkpoints kept, besides the best one
    log_ids: bool = False  # write the ids of every step and process to ids-<rank>.jsonl
    trackers: list[str] = limits([], choices=("tensorboard", "wandb"))


@dataclass
class Data:
    root: str = ""  # folder of images, or embedded:mnist5k
    loader: str = limits("dali", choices=LOADERS)
    img_size: int = limits(224, low=1, high=4096)  # pixels a side
    crop: str = limits("rrc", choices=("rrc", "center", "whole"))  # training crop; rrc = random resized crop
    scale: list[float] = limits([0.08, 1.0], above=0, high=1, length=2)  # rrc: share of the area
    ratio: list[float] = limits([3 / 4, 4 / 3], above=0, length=2)  # rrc: width / height
    interpolation: str = limits("bilinear", choices=("bilinear", "bicubic"))
    crop_pct: float = limits(0.875, above=0, high=1)  # evaluation: img_size / short side after resizing
    mean: list[float] = limits([0.485, 0.456, 0.406], length=3)
    std: list[float] = limits([0.229, 0.224, 0.225], above=0, length=3)
    exif: str = limits("ignore", choices=("ignore", "apply"))  # ignore, as timm and torchvision
    threads: int = limits(0, low=0)  # decoding threads of a process; 0: its share of the cores
    prefetch: int = limits(2, low=1)  # batches in preparation
    test_fraction: float = limits(0.0, low=0, below=1)  # one folder of classes: share held out as test
    select_fraction: float = limits(0.0, low=0, below=1)  # share of train that picks the best checkpoint
    meta_fraction: float = limits(0.0, low=0, below=1)  # share of train that drives the meta step
    split_seed: int = limits(0, low=0)  # of the fractions; not run.seed, so that runs share their test set
    splits: str | None = None  # folder with train.txt, meta.txt, select.txt, test.txt of ids or paths
    synthetic_images: int = limits(4096, low=1)  # loader=synthetic: images and classes
    synthetic_classes: int = limits(1000, low=2)


@dataclass
class Model:
    name: str = "resnet50"  # any timm model
    pretrained: bool = False  # weights from the hub
    initial_checkpoint: str | None = None  # weights from a local file
    stem: str = limits("default", choices=("default", "small"))  # small: 3x3, stride 1, no pooling
    drop: float = limits(0.0, low=0, below=1)
    drop_path: float = limits(0.0, low=0, below=1)
    kwargs: dict[str, Any] = limits({})  # further arguments of timm.create_model
    channels_last: bool = True
    compile: bool = False
    ema: bool = False  # exponential moving average of the weights (timm's ModelEmaV3)
    ema_decay: float = limits(0.9998, low=0, below=1)
    ema_warmup: bool = False


@dataclass
class Optim:
    opt: str = "sgd"  # any timm or torch optimizer by timm's name; sgd has Nesterov momentum
    lr: float = limits(0.1, above=0)  # peak, for train.batch_size images an update
    momentum: float = limits(0.9, low=0, below=1)
    weight_decay: float = limits(1e-4, low=0)
    norm_weight_decay: bool = False  # decay biases and normalisation layers too
    opt_eps: float | None = limits(None, above=0)
    opt_betas: list[float] | None = limits(None, low=0, below=1)
    opt_kwargs: dict[str, Any] = limits({})
    sched: str = limits("cosine", choices=("cosine", "step", "multistep", "poly", "constant"))
    warmup_epochs: float = limits(0.0, low=0)
    warmup_lr: float = limits(1e-5, low=0)
    min_lr: float = limits(0.0, low=0)
    decay_epochs: float = limits(30.0, above=0)  # step: epochs between decays
    decay_milestones: list[int] = limits([30, 60, 80], low=1)  # multistep: epochs of the decays
    decay_rate: float = limits(0.1, above=0, high=1)
    clip_grad: float | None = limits(None, above=0)  # largest global norm


@dataclass
class Train:
    epochs: int = limits(100, low=1)
    batch_size: int = limits(256, low=SMALLEST_BATCH)  # images per update, over all processes and micro-batches
    accumulate: int = limits(1, low=1)  # micro-batches per update and process
    precision: str = limits("no", choices=("no", "bf16", "fp16"))  # of autocast
    drop_last: bool = False  # leave out the smaller last batch of an epoch


@dataclass
class Augment:
    hflip: float = limits(0.5, low=0, high=1)  # probability
    smoothing: float = limits(0.0, low=0, below=1)  # label smoothing


@dataclass
class Eval:
    every: int = limits(1, low=0)  # epochs; 0: at the end only
    batch_size: int = limits(256, low=1)  # images per process
    weights: str = limits("raw", choices=("raw", "ema"))  # which weights give the headline
    ece_bins: int = limits(15, low=2)


@dataclass
class Recipe:
    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    augment: Augment = field(default_factory=Augment)
    eval: Eval = field(default_factory=Eval)


# Keys that may differ when a run is continued: they change how it runs, not what it computes.
RESUMABLE = {
    *("run.dir", "run.log_every", "run.checkpoint_every", "run.keep", "run.log_ids", "run.trackers"),
    *("data.threads", "data.prefetch", "eval.every", "eval.batch_size"),
}

# Rules that join keys: (broken when, message). Messages begin with the key to change.
_RULES: list[tuple[Callable[[Recipe], bool], str]] = [
    (
        lambda r: not r.data.root and r.data.loader != "synthetic",
        "data.root: not set; name a folder of images or embedded:mnist5k",
    ),
    (
        lambda r: bool(r.data.root) and r.data.loader == "synthetic",
        "data.root: has no use with data.loader=synthetic; remove one of them",
    ),
    (
        lambda r: r.train.batch_size % r.train.accumulate != 0,
        "train.accumulate: {r.train.accumulate} does not divide train.batch_size = {r.train.batch_size}",
    ),
    (
        lambda r: r.optim.warmup_epochs >= r.train.epochs,
        "optim.warmup_epochs: {r.optim.warmup_epochs} leaves nothing of train.epochs = {r.train.epochs}",
    ),
    (
        lambda r: r.optim.min_lr > r.optim.lr,
        "optim.min_lr: {r.optim.min_lr} is above optim.lr = {r.optim.lr}",
    ),
    (
        lambda r: r.optim.warmup_lr > r.optim.lr and r.optim.warmup_epochs > 0,
        "optim.warmup_lr: {r.optim.warmup_lr} is above optim.lr = {r.optim.lr}",
    ),
    (
        lambda r: r.optim.opt_betas is not None and len(r.optim.opt_betas) < 2,
        "optim.opt_betas: {r.optim.opt_betas} needs two numbers or more",
    ),
    (
        lambda r: r.optim.decay_milestones != sorted(set(r.optim.decay_milestones)),
        "optim.decay_milestones: {r.optim.decay_milestones} must rise",
    ),
    (
        lambda r: r.data.scale[0] > r.data.scale[1],
        "data.scale: {r.data.scale} must be [smallest, largest]",
    ),
    (
        lambda r: r.data.ratio[0] > r.data.ratio[1],
        "data.ratio: {r.data.ratio} must be [smallest, largest]",
    ),
    (
        lambda r: r.data.test_fraction + r.data.select_fraction + r.data.meta_fraction >= 1,
        "data.test_fraction: with select_fraction and meta_fraction it leaves nothing to train on",
    ),
    (
        lambda r: r.data.loader == "resident" and r.data.crop == "rrc",
        "data.loader: resident keeps one decoded size; set data.crop to whole or center, or use dali",
    ),
    (
        lambda r: r.data.splits is not None
        and r.data.test_fraction + r.data.select_fraction + r.data.meta_fraction > 0,
        "data.splits: names the splits already; remove data.test_fraction, select_fraction and meta_fraction",
    ),
    (
        lambda r: r.model.pretrained and r.model.initial_checkpoint is not None,
        "model.pretrained: cannot be combined with model.initial_checkpoint; keep one of them",
    ),
    (
        lambda r: r.eval.weights == "ema" and not r.model.ema,
        "eval.weights: ema needs model.ema = true",
    ),
    (
        lambda r: r.run.dir is not None and not r.run.dir.strip(),
        "run.dir: is empty; leave it out for runs/<name of the recipe>",
    ),
]


def _bound_problems(name: str, value: Any, meta: Any) -> list[str]:
    """What is wrong with one value, or one element, against the limits of its field."""
    if meta["choices"] and value not in meta["choices"]:
        return [f"{name}: {value!r} is not one of {', '.join(meta['choices'])}"]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return []
    if not abs(value) < float("inf"):
        return [f"{name}: {value} is not a finite number"]
    tests = [
        ("low", "at least", lambda bound: value >= bound),
        ("high", "at most", lambda bound: value <= bound),
        ("above", "above", lambda bound: value > bound),
        ("below", "below", lambda bound: value < bound),
    ]
    wrong = [f"{word} {meta[kind]}" for kind, word, fits in tests if meta[kind] is not None and not fits(meta[kind])]
    return [f"{name}: {value} must be {' and '.join(wrong)}"] if wrong else []


def _limit_problems(recipe: Recipe) -> list[str]:
    problems: list[str] = []
    for section in fields(recipe):
        values = getattr(recipe, section.name)
        for key in fields(values):
            name, value = f"{section.name}.{key.name}", getattr(values, key.name)
            if not key.metadata or value is None:
                continue
            elements = value if isinstance(value, list) else [value]
            if key.metadata["length"] and len(elements) != key.metadata["length"]:
                problems.append(f"{name}: {value} must have {key.metadata['length']} numbers")
            for element in elements:
                problems += _bound_problems(name, element, key.metadata)
    return problems


def key_of(problem: str) -> str:
    """The key that a problem's text begins with."""
    return problem.partition(":")[0]


def validate(recipe: Recipe, unusable: set[str] | None = None) -> list[str]:
    """Every broken limit and rule, each as "key: value, what is allowed"; an empty list when the recipe is sound.

    Nothing is said of keys in `unusable` (their values are stand-ins), nor of rules that read a broken key.
    """
    skip = unusable or set()
    problems = [text for text in _limit_problems(recipe) if key_of(text) not in skip]
    skip = skip | {key_of(text) for text in problems}
    for broken, message in _RULES:
        keys = {key_of(message), *re.findall(r"\{r\.(\w+\.\w+)", message)}
        if not keys & skip and broken(recipe):
            problems.append(message.format(r=recipe))
    return problems
