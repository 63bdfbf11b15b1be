"""The recipe: every setting of a run with its type, default, limits and help text. Names are timm's where timm has one.

Each section is a pydantic dataclass: strict types, unknown keys refused. `rules.py` adds the rules that join several
keys, `reading.py` reads YAML and the command line, `key_table.py` prints what stands here. Nothing imports torch.
"""

import os
import re
from collections.abc import Callable
from copy import copy
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WrapValidator
from pydantic.dataclasses import dataclass

from fastaug.recipe.policy_names import parse_policy

SCHEMA = 5  # of stored recipes; raise it when a key is renamed or removed, or changes its meaning. 0.1.0 wrote none
# Keys of meta that may be left open, and how; what they are then where a policy learns by evidence, and elsewhere.
FOLLOWING: dict[str, tuple[Any, Any, Any]] = {
    "engine": ("auto", "fused", "auto"),
    "layers": ("auto", "auto", []),
    "every": (None, 6, 10),
    "renew": (None, 3, 1),
    "half_life": (None, 120.0, 0.0),
    "fraction": (None, 1.0, 0.25),
    "magnitudes": (None, False, True),
}
META_PARTS = (
    *("policy", "augmenter", "softness", "smoothing", "weights", "instant_weights", "instant_labels", "optim"),
    *("labels", "sample_policy"),
)
SHARED_PARTS = (
    "policy",
    "augmenter",
    "softness",
    "smoothing",
    "optim",
)  # one value for all samples, moved by the meta-optimizer
TABLE_PARTS = ("weights", "labels")  # those with numbers for every image; and sample_policy, if each
IMAGE_PARTS = ("policy", "augmenter", "sample_policy")  # those that change images
UNLEARNED_KEYS = ("reuse", "frozen", "train_weight")  # keys of meta that act where nothing is learned
INSTANT_PARTS = ("instant_weights", "instant_labels")
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, as Linux has it
COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0)}  # names of data.background
MOST_CHANNELS = 64  # of an image
# Optimizers, by timm's names, whose steps on shares of the weights were found to be those on whole ones.
SHARDABLE_OPTIMIZERS = (
    *("sgd", "momentum", "sgdw", "adam", "adamw", "adamax", "nadam", "nadamw", "radam", "rmsprop", "rmsproptf"),
    *("lamb", "lambc", "lars", "lion", "adan", "adanw", "adopt", "adoptw", "laprop", "adabelief", "madgrad"),
)
SMALLEST_BATCH = 2  # BatchNorm needs two values a channel
EXPONENTS = (0.25, 16.0)  # bounds of a learned augment.soften_k
LARGEST_SMOOTHING = 0.5  # bound of a learned augment.smoothing
MOST_SLOTS = 8  # operations of a policy one after the other
LARGEST_MOMENTUM = 0.999  # bound of a learned optim.momentum


def key(default: Any, text: str) -> Any:
    """A key with its help text; every recipe gets a list or mapping of its own."""
    if isinstance(default, (list, dict)):
        return Field(default_factory=default.copy, description=text)
    return Field(default=default, description=text)


def _or_open(value: Any, checked: Callable[[Any], Any]) -> Any:
    return None if value is None else checked(value)


def is_outside_part(name: str) -> bool:
    """Whether an element of `meta.learn` is `module:Class`, a learned part from outside the package."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", name) is not None


def _checked_policy(text: str | None) -> str | None:
    parse_policy(text if text is None else _checked_text(text))
    return text


def _checked_text(text: str) -> str:
    """`text` if it can be a path or the name of a module; ValueError says why not."""
    begin = repr(text[:60]) + ("..." if len(text) > 60 else "")
    if "\0" in text:
        raise ValueError(f"{begin} holds a NUL character, which neither paths nor names can; remove it")
    try:
        longest = max(map(len, os.fsencode(text).split(b"/")))
    except UnicodeEncodeError:
        raise ValueError(f"{begin} holds half of a surrogate pair, which is no character; remove it") from None
    if longest > LONGEST_NAME or len(os.fsencode(text)) > LONGEST_PATH:
        limits = f"{LONGEST_NAME} bytes between slashes, {LONGEST_PATH} in all"
        raise ValueError(f"{begin} is longer than a path or name may be ({limits}); shorten it")
    return text


def _named_colour(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in COLOURS:
        raise ValueError(f"{value[:60]!r} is no colour known; write white, black or [red, green, blue], 0 to 255 each")
    return list(COLOURS[value])


def _checked_part(name: str) -> str:
    if name not in META_PARTS and not is_outside_part(name):
        raise ValueError(f"{name!r} is not one of {', '.join(META_PARTS)}, nor of the form module:Class")
    return name


OPEN = WrapValidator(_or_open)  # null is allowed, and something else once the section has been made
# Limits keep a slip of the pen from being tried: beyond them arithmetic overflows, or memory and threads run out.
Text = Annotated[str, AfterValidator(_checked_text)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
CountOrNone = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[float, Field(gt=0, le=1e30)]  # 1e30: float32 still squares its root
NonNegative = Annotated[float, Field(ge=0, le=1e30)]
Epochs = Annotated[float, Field(ge=0, le=1e6)]
Concentration = Annotated[float, Field(ge=0, le=1e4)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
BatchSize = Annotated[int, Field(ge=SMALLEST_BATCH, le=2**20)]
Colour = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]  # red, green, blue
Padding = Literal["mean", "black", "white", "border", "reflect"]  # of a policy's operations
Loss = Literal["ce", "kl", "symmetric_kl", "focal", "bce", "gce"]
Metric = Literal["top1", "top5", "balanced_top1", "precision_macro", "f1_macro", "f1_weighted", "nll", "ece"]
LOWER_IS_BETTER = ("nll", "ece")  # of these
Tracker = Literal[
    "aim", "clearml", "comet_ml", "csv", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"
]
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(config=STRICT)
class Run:
    """The run: where it writes, what it logs, what it draws."""

    dir: Text | None = key(None, "run folder; null: runs/<name of the recipe>")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = key(
        0, "seed of every draw: initial weights, order, crops, augmentation"
    )
    log_every: Count = key(50, "optimizer steps between log lines")
    checkpoint_every: CountOrNone = key(0, "optimizer steps between checkpoints; 0: at the end of every epoch")
    checkpoint_async: bool = key(
        False, "train on while a checkpoint is written, from a copy of the state that stays in host memory"
    )
    keep: Count = key(3, "checkpoints kept, besides the best one")
    log_ids: bool = key(False, "write the ids of every step and process to ids-<rank>.jsonl")
    log_losses: bool = key(False, "write the mean training loss of every image to samples.csv")
    peer_timeout: Annotated[float, Field(ge=1, le=86400)] = key(
        600.0, "several processes: seconds that one waits for another in training before the job ends"
    )
    trackers: Annotated[list[Tracker], Field(max_length=32)] = key(
        [], "where metrics go besides metrics.jsonl: Accelerate's trackers, and csv, timm's summary.csv"
    )
    project: Annotated[Text, Field(pattern=r"^\w[\w.-]*$", max_length=64)] = key(
        "fastaug", "project under which trackers file the run; tensorboard: its folder in the run folder"
    )
    sample_record: bool = key(
        True,
        "keep statistics of every image for samples.npz, which tools/label_report.py reads; 32 bytes of memory each",
    )
    plant: Annotated[float, Field(ge=0, le=0.5)] = key(
        0.0,
        "share of the training images whose label is flipped on purpose, to calibrate tools/label_report.py; not with "
        "augment.trust and what else keeps wrong labels from being learned",
    )
    plant_like: Text | None = key(
        None, "folder of an earlier run on these images, whose confusion of classes the flips of run.plant follow"
    )


@dataclass(config=STRICT)
class Data:
    """The images: where they are, how they are split, decoded and cropped."""

    root: Text = key(
        "",
        "folder of images, or KIND:PLACE of a set in another form: embedded:mnist5k, cifar10, cifar100, mnist, svhn, "
        "tiny_imagenet, imagenet, wds, tfrecord, hfds, parquet; see docs/data.md",
    )
    input_key: Text | None = key(
        None,
        "where a record of wds, tfrecord, hfds or parquet has its image: an ending, feature or column; null: the usual",
    )
    target_key: Text | None = key(
        None, "where it has its label (field of .json or ending, feature, column); null: as usual, see docs/data.md"
    )
    verify: bool = key(
        True, "whether a published set (cifar10, imagenet, ...) must be whole: sizes and MD5 of files, number of images"
    )
    table: Text | None = key(
        None, "CSV, TSV or parquet file of path, label and split, in place of class folders; see docs/data.md"
    )
    class_level: Literal["top", "leaf"] = key(
        "top", "folders that are classes: the topmost, with all below them, or each that holds images itself"
    )
    class_map: Text | None = key(
        None, "CSV, TSV or parquet file of name and class: other classes for folders or labels; empty: left out"
    )
    multi_label: Literal["off", "separated", "columns"] = key(
        "off",
        "images of any number of classes, with augment.loss=bce. separated: several labels in a cell of the table; "
        "columns: a column of 0 and 1 for each class",
    )
    label_separator: Annotated[Text, Field(min_length=1, max_length=8)] = key(
        "|", "multi_label=separated: what stands between the labels of an image"
    )
    loader: Literal["dali", "resident", "synthetic"] = key(
        "dali", "dali: from encoded files; resident: decoded once and kept in memory; synthetic: random, to measure"
    )
    img_size: Pixels = key(224, "pixels a side; auto: as the network's weights were trained")
    crop: Literal["rrc", "center", "whole"] = key("rrc", "training crop; rrc = random resized crop")
    scale: Annotated[list[PositiveShare], Field(min_length=2, max_length=2)] = key(
        [0.08, 1.0], "rrc: share of the area"
    )
    ratio: Annotated[list[Annotated[float, Field(ge=1e-3, le=1e3)]], Field(min_length=2, max_length=2)] = key(
        [3 / 4, 4 / 3], "rrc: width / height"
    )
    interpolation: Literal["bilinear", "bicubic"] = key(
        "bilinear", "how images are resized; auto: as for the network's weights"
    )
    crop_pct: Annotated[float, Field(ge=0.1, le=1)] = key(
        0.875, "evaluation: img_size / short side after resizing; auto: as for the network's weights"
    )
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)] = key(
        3, "channels of the network's input: 3, 1 (grey), or what every file has: n of TIFF and .npy, 4 of RGBA"
    )
    background: Annotated[Colour | None, BeforeValidator(_named_colour)] = key(
        None, "colour behind transparent pixels: white, black or [red, green, blue]; null: transparency is dropped"
    )
    mean: Annotated[list[Annotated[float, Field(ge=-1e3, le=1e3)]], Field(min_length=1, max_length=MOST_CHANNELS)] = (
        key(
            [0.485, 0.456, 0.406],
            "mean of each channel (pixels in [0, 1]), subtracted from the images; auto: that of the network's weights",
        )
    )
    std: Annotated[list[Annotated[float, Field(ge=1e-6, le=1e6)]], Field(min_length=1, max_length=MOST_CHANNELS)] = key(
        [0.229, 0.224, 0.225],
        "standard deviation of each channel, by which the images are divided; auto: that of the network's weights",
    )
    exif: Literal["ignore", "apply"] = key("ignore", "the rotation that a JPEG notes; timm and torchvision ignore it")
    threads: Annotated[int, Field(ge=0, le=1024)] = key(0, "decoding threads of a process; 0: its share of the cores")
    prefetch: Annotated[int, Field(ge=1, le=256)] = key(2, "batches in preparation")
    test_fraction: ShareBelowOne = key(0.0, "one folder of classes: share held out as test")
    select_fraction: ShareBelowOne = key(0.0, "share of train that picks the best checkpoint")
    meta_fraction: ShareBelowOne = key(0.0, "share of train that drives the meta step")
    split_seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = key(
        0, "seed of the fractions; not run.seed, so that runs share their test set"
    )
    sampling: Literal["natural", "balanced", "sqrt"] = key(
        "natural",
        "which training images an epoch has. natural: each once; balanced: as many of every class; sqrt: of a class in "
        "proportion to the root of its images",
    )
    labels: Text | None = key(None, "file that replaces labels of training images, see fastaug/data/label_files.py")
    splits: Text | None = key(None, "folder with train.txt, meta.txt, select.txt, test.txt of ids or paths")
    synthetic_images: Annotated[int, Field(ge=1, le=10**7)] = key(4096, "loader=synthetic: number of images")
    synthetic_classes: Annotated[int, Field(ge=2, le=10**6)] = key(1000, "loader=synthetic: number of classes")
    known_shift: Literal["none", "rotate45", "shift4px", "zoom1.5", "zoom0.75"] = key(
        "none",
        "a shift of meta, select and test images that training images do not have, for a learned augmentation to find: "
        "turned by 45 degrees, moved right and down by 4 pixels, 1.5 or 0.75 times as large",
    )
    known_shift_train: bool = key(False, "training images are shifted too: the control that knows the shift")


@dataclass(config=STRICT)
class Model:
    """The network."""

    name: Text = key(
        "resnet50", "name of any timm model, or of one that comes with fastaug (wrn_28_10 and others: docs/recipes.md)"
    )
    pretrained: bool = key(False, "weights from the hub")
    initial_checkpoint: Text | None = key(
        None, "weights from a local file, or from model.safetensors of a folder; the head stays new for other classes"
    )
    checkpoint_keys: Text | dict[str, str] | None = key(
        None,
        "how names in initial_checkpoint become the network's: {regular expression: replacement, ...}, a YAML file of "
        "that, or a packaged one, efficientnet_lite0",
    )
    checkpoint_fit: PositiveShare = key(
        0.9, "share of the tensors, the head's left out, that has to fit; below it initial_checkpoint is refused"
    )
    freeze: Annotated[list[Text], Field(max_length=256)] = key(
        [], "parameters that are not trained: patterns of whole names (blocks.0.*), or backbone: all but the head"
    )
    freeze_bn: bool = key(True, "BatchNorm layers whose weights are frozen use and keep the statistics that they have")
    head_first_epochs: Epochs = key(0.0, "epochs at the start in which the head alone is trained")
    stem: Literal["default", "small"] = key("default", "small: 3x3, stride 1, no pooling, for images of 32 pixels")
    drop: ShareBelowOne = key(0.0, "dropout rate before the classifier")
    drop_path: ShareBelowOne = key(0.0, "stochastic depth rate")
    kwargs: dict[str, Any] = key({}, "further arguments of timm.create_model")
    sync_bn: bool = key(False, "several processes on GPUs: BatchNorm normalises by the batch of all of them")
    grad_checkpointing: bool = key(
        False, "compute activations again in the backward pass instead of keeping them: less memory, more time"
    )
    channels_last: bool = key(True, "memory format of images and weights (train.parallel=fsdp2: of images)")
    compile: bool = key(False, "compile the network with torch.compile")
    ema: bool = key(False, "exponential moving average of the weights (timm's ModelEmaV3)")
    ema_decay: ShareBelowOne = key(0.9998, "share of the average that an update keeps")
    ema_warmup: bool = key(False, "the decay rises from 0 to ema_decay")


@dataclass(config=STRICT)
class Optim:
    """The optimizer and its learning rate over time."""

    opt: Text = key("sgd", "any timm or torch optimizer by timm's name; sgd has Nesterov momentum")
    lr: Positive = key(0.1, "peak learning rate, for train.batch_size images an update")
    momentum: ShareBelowOne = key(0.9, "momentum, of optimizers that have it")
    weight_decay: NonNegative = key(
        1e-4, "weight decay as the optimizer defines it: added to the gradient, or decoupled"
    )
    layer_decay: PositiveShare | None = key(
        None, "factor on the learning rate from each layer to the one below it, as timm counts them; null: none"
    )
    lr_scale: dict[str, Positive] = key(
        {}, "factors on the learning rate by pattern of parameter names, as model.freeze: {backbone: 0.1}"
    )
    norm_weight_decay: bool = key(False, "decay biases and normalisation layers too")
    opt_eps: Positive | None = key(None, "the optimizer's eps; null: its own default")
    opt_betas: Annotated[list[ShareBelowOne], Field(max_length=8)] | None = key(
        None, "the optimizer's betas; null: its own default"
    )
    opt_kwargs: dict[str, Any] = key({}, "further arguments of the optimizer")
    sched: Literal["cosine", "step", "multistep", "constant", "plateau"] = key(
        "cosine", "schedule of the learning rate after the warm-up; plateau: it falls when select does not improve"
    )
    warmup_epochs: Epochs = key(0.0, "epochs in which the learning rate rises linearly from warmup_lr to lr")
    warmup_prefix: bool = key(
        True, "cosine: starts from lr after the warm-up; false: with the training, so that the warm-up ends below lr"
    )
    warmup_lr: NonNegative = key(1e-5, "learning rate at which the warm-up starts")
    min_lr: NonNegative = key(0.0, "lowest learning rate, at which cosine ends")
    cooldown_epochs: CountOrNone = key(0, "cosine: epochs at the end of train.epochs that stay at min_lr")
    sched_on_updates: bool = key(
        True, "the learning rate changes with every update; false: once an epoch, as in timm's script"
    )
    decay_epochs: Annotated[float, Field(ge=1e-3, le=1e6)] = key(30.0, "step: epochs between decays")
    decay_milestones: Annotated[list[Annotated[int, Field(ge=1, le=10**6)]], Field(max_length=256)] = key(
        [30, 60, 80],
        "multistep: epochs of the decays (timm: an update early; an epoch with sched_on_updates=false)",
    )
    decay_rate: PositiveShare = key(0.1, "step, multistep and plateau: factor of a decay")
    patience_epochs: CountOrNone = key(10, "plateau: epochs without a better eval.best_metric of select before a decay")
    clip_grad: Positive | None = key(None, "largest global norm of the gradient; null: not clipped")
    clip_mode: Literal["norm", "value", "agc"] = key(
        "norm",
        "what clip_grad limits: norm; value: each number of the gradient; agc: the gradient of each unit, as a share "
        "of the norm of its weights (0.01)",
    )


@dataclass(config=STRICT)
class Train:
    """The length of the training, its batches and its arithmetic."""

    epochs: Annotated[int, Field(ge=1, le=10**6)] = key(100, "passes over the training split")
    batch_size: BatchSize = key(256, "images per update, over all processes and micro-batches")
    accumulate: Annotated[int, Field(ge=1, le=2**20)] = key(1, "micro-batches per update and process")
    precision: Literal["no", "bf16", "fp16"] = key("no", "type of autocast; no: float32 throughout")
    resize: Annotated[list[Annotated[list[int], Field(min_length=2, max_length=2)]], Field(max_length=256)] = key(
        [], "progressive resizing, [[epoch, pixels a side], ...]: from that epoch on; evaluation keeps its own size"
    )
    drop_last: bool = key(False, "leave out the smaller last batch of an epoch")
    cudnn_benchmark: bool = key(True, "let cuDNN time its convolution algorithms and keep the fastest (GPU only)")
    tf32: bool = key(True, "TensorFloat-32 for matrix products and convolutions in float32 (GPU only)")
    patience: CountOrNone = key(
        0, "evaluations of select without a better eval.best_metric after which the training ends early; 0: never"
    )
    plain_step: bool = key(False, "a second step of the optimizer in every update, on the images as they were decoded")
    parallel: Literal["ddp", "fsdp2"] = key(
        "ddp",
        "several processes: ddp: each has the whole network; fsdp2: each has a share of weights, moving average and "
        "optimizer state (torch's fully_shard), see docs/large_models.md",
    )
    bucket_cap_mb: Annotated[int, Field(ge=1, le=2**14)] = key(
        25, "ddp: MiB of gradients that are summed over the processes at a time, while the backward pass goes on"
    )
    gradient_as_bucket_view: bool = key(
        False, "ddp: gradients lie in the memory in which they are summed: saves as much as the weights take"
    )
    comm_hook: Literal["none", "fp16", "bf16", "power_sgd"] = key(
        "none",
        "ddp: gradients are summed over the processes in 16 bits, or (power_sgd) from update 1,000 of a start on as "
        "products of low rank",
    )


@dataclass(config=STRICT)
class Augment:
    """What happens to a batch between the loader and the network, and the loss on its soft targets."""

    aa: Annotated[str | None, AfterValidator(_checked_policy)] = key(
        None,
        "fixed policy, timm's names: rand-m9-mstd0.5-inc1, augmix-m3-w3, 3a, ... and ta_wide, ra-n2-m9; file:PATH: a "
        "list of sub-policies",
    )
    color_jitter: Share | None = key(
        None, "largest change of brightness, contrast and saturation, a share; null: off (3a has its own)"
    )
    reprob: Share = key(0.0, "probability of random erasing")
    remode: Literal["const", "rand", "pixel"] = key(
        "const", "random erasing: const: the mean; rand: a random colour for each box; pixel: noise"
    )
    recount: Annotated[int, Field(ge=1, le=100)] = key(1, "random erasing: boxes in an image")
    repeats: Annotated[int, Field(ge=1, le=2**16)] = key(1, "repeated augmentation: copies of an image in one update")
    cutout: Share = key(0.0, "side of a blanked square, as a share of img_size; 0: off")
    hflip: Share = key(0.5, "probability of a horizontal flip")
    shift: Annotated[float, Field(ge=0, le=100)] = key(
        0.0, "soft crop: standard deviation of the shift, as a share of img_size; 0: off"
    )
    shift_dist: Literal["normal", "uniform"] = key(
        "normal", "distribution of the shift; uniform: any pixel up to shift * img_size"
    )
    shift_limit: Share = key(1.0, "largest shift, as a share of img_size")
    fill: Literal["mean", "constant", "random", "noise"] = key("mean", "what is shown outside of a shifted image")
    fill_value: Share = key(0.0, "fill=constant: 0 black, 1 white")
    mixup: Concentration = key(0.0, "alpha of Mixup's Beta distribution; 0: off")
    cutmix: Concentration = key(0.0, "alpha of CutMix's Beta distribution; 0: off")
    mixup_prob: Share = key(1.0, "share of updates (or images) that are mixed at all")
    mixup_switch_prob: Share = key(0.5, "probability of CutMix where both are on")
    mixup_mode: Literal["batch", "elem"] = key("batch", "one draw per mix_group, or per image")
    mixup_off_epoch: CountOrNone = key(0, "epoch from which on nothing is mixed, by Mixup or CutMix; 0: never")
    mix_group: Annotated[int, Field(ge=2, le=2**20)] | None = key(
        None, "positions of the order that mix with each other; null: a micro-batch"
    )
    lam_fold: bool = key(False, "the base image keeps the larger part, lam = max(lam, 1 - lam)")
    mix_layer: Text | None = key(None, "CutMix in the output of this module instead of the image")
    soften: Literal["both", "target", "weight", "none"] = key(
        "both", "what the visible share of an image lowers: its target probability, its loss weight, or both"
    )
    soften_k: Annotated[float, Field(gt=0, le=1e3)] = key(2.0, "exponent of the softening curve")
    soften_p_max: PositiveShare = key(1.0, "target probability of a whole image")
    soften_threshold: PositiveShare = key(1.0, "visibility from which an image counts as whole")
    soften_visibility: Literal["area", "iou"] = key(
        "area", "share of the area, or intersection over union of view and image"
    )
    soften_rule: Literal["pixels", "own", "base"] = key("pixels", "target mass of pasted boxes, see docs/crop_mix.md")
    other_class: bool = key(False, "missing confidence goes to an extra class")
    anneal_epochs: Annotated[int, Field(ge=0, le=10**6)] = key(
        0, "epochs at the end of training with the shift / anneal_factor"
    )
    anneal_factor: Annotated[float, Field(ge=1, le=1e30)] = key(
        1000.0, "what divides the shift in the last anneal_epochs"
    )
    smoothing: ShareBelowOne = key(0.0, "label smoothing: share of the target that is spread over the classes")
    loss: Loss = key("ce", "loss of the training images, on soft targets")
    gce_q: PositiveShare = key(0.7, "generalised cross-entropy: towards 0 cross-entropy, 1 mean error")
    trim: ShareBelowOne = key(0.0, "share of a micro-batch left out, those with the largest losses")
    focal_gamma: Annotated[float, Field(ge=0, le=1e3)] = key(
        2.0, "loss=focal: larger turns to hard images; 0: cross-entropy"
    )
    bce_target_thresh: Annotated[float, Field(gt=0, lt=1)] | None = key(
        None, "loss=bce: targets above it count as 1, others as 0; null: soft targets"
    )
    bce_sum: bool = key(False, "loss=bce: sum over the classes instead of their mean")
    published_weighting: bool = key(
        False, "mean(weight) * mean(loss) of a micro-batch, as the released code of Soft Augmentation"
    )
    start_epochs: Annotated[int, Field(ge=0, le=10**6)] = key(
        0, "epochs at the start of training in which no policy acts, fixed or learned"
    )
    copies: Annotated[int, Field(ge=0, le=64)] = key(
        0,
        "augmented copies of an image in one update, beside the image itself, which is not augmented then; train.batch_"
        "size counts images. 0: one augmented sample alone",
    )
    clean_loss: NonNegative = key(1.0, "copies: factor of the loss of the image itself")
    copies_loss: NonNegative = key(1.0, "copies: factor of the mean loss of its copies")
    consistency: NonNegative = key(
        1.0, "copies: factor of the mean KL(p of the image || p of a copy), the consistency loss of UDA"
    )
    consistency_detach: bool = key(
        False, "p of the image is a constant in the consistency loss, as in UDA; false: it learns too"
    )
    trust: Annotated[float, Field(ge=0, le=100)] = key(
        0.0,
        "wrong labels: loss weight of an image, (mean probability of its label / of the likeliest class) ** trust, "
        "over the epochs before; 0: off, 4 where labels are wrong",
    )
    logit_adjustment: Annotated[float, Field(ge=0, le=100)] = key(
        0.0, "uneven classes: tau; the training loss is of logits + tau * log(share of the class); 0: off"
    )
    class_weight: list[NonNegative] | Text = key(
        "none",
        "loss weight of each class. none, inverse: 1 / its images, effective: 1 / its effective number; a list in the "
        "order of class names, or a file of lines class<TAB>weight; scaled to the mean 1 over training images",
    )
    class_weight_beta: Annotated[float, Field(gt=0, lt=1)] = key(
        0.999, "class_weight=effective: near 1 it is inverse, near 0 none"
    )


@dataclass(config=STRICT)
class Meta:
    """The meta step: what augmentation, weights and labels learn from the meta split. Off while `learn` is empty."""

    learn: Annotated[list[Annotated[Text, AfterValidator(_checked_part)]], Field(max_length=100)] = key(
        [], "parts that learn; module:Class names one from outside the package"
    )
    parts: dict[str, dict[str, Any]] = key(
        {}, "keyword arguments of parts from outside the package: {'module:Class': {...}}"
    )
    every: Annotated[Count, OPEN] = key(
        None, "K, updates from one meta step to the next; null: 6 with probabilities evidence, or 10"
    )
    steps: Annotated[int, Field(ge=1, le=64)] = key(
        1,
        "consecutive updates that one meta step is differentiated through (K-step unrolling, truncated); "
        "1: one-step engines",
    )
    fraction: Annotated[PositiveShare, OPEN] = key(
        None, "f, share of a micro-batch that a meta step differentiates; null: 1 with probabilities evidence, or 0.25"
    )
    batch_size: BatchSize = key(64, "meta images of a validation gradient, over all processes")
    start_epochs: Epochs = key(0.0, "warm-up without meta steps")
    engine: Literal["auto", "forward", "functional", "reverse", "difference", "implicit", "fused"] = key(
        "auto",
        "how the hypergradient is computed, see docs/meta.md; auto: fused with probabilities evidence, or chosen by a "
        "self-test, printed",
    )
    cuda_graphs: bool = key(
        False,
        "GPU: the validation gradient and the engine forward are recorded once and replayed; faster, and the memory of "
        "their activations stays taken",
    )
    layers: Literal["auto"] | Annotated[list[Text], Field(max_length=256)] = key(
        "auto",
        "fused, implicit: modules whose weights the validation gradient is in; empty: all (implicit: the last linear "
        "layer); auto: with probabilities "
        "evidence the network's last stage and classifier, which are nearly all of some networks, and all where timm "
        "has no order of layers; or empty",
    )
    solver: Literal["neumann", "identity", "cg"] = key("neumann", "implicit: approximation of the inverse Hessian")
    alpha: Positive = key(0.01, "implicit: step of the Neumann series")
    terms: Annotated[int, Field(ge=0, le=10**4)] = key(
        5, "implicit: terms of the Neumann series, or steps of conjugate gradients"
    )
    damping: NonNegative = key(0.0, "implicit: added to the Hessian's diagonal")
    approximate: bool = key(False, "optimizers without an exact Jacobian: u = -lr v instead of an error")
    renew: Annotated[Count, OPEN] = key(
        None, "meta steps between two validation gradients; null: 3 with probabilities evidence, or 1"
    )
    half_life: Annotated[NonNegative, OPEN] = key(
        None,
        "updates after which a validation gradient counts half; 0: no average; null: 120 with probabilities evidence, "
        "or 0",
    )
    weights: Literal["raw", "ema"] = key("raw", "which weights of the network are validated")
    validation_loss: Loss = key(
        "ce", "loss of the meta images that is to fall; arguments as augment.focal_gamma, gce_q, bce_*"
    )
    optimizer: Literal["adam", "sgd", "rmsprop"] = key(
        "adam", "meta-optimizer of the shared parts and of those from outside the package"
    )
    regulariser: Literal["none", "entropy", "magnitude", "start"] = key(
        "none",
        "penalty added to the validation loss. entropy: keeps the probabilities of the policy spread; magnitude: "
        "squared distance of the policy's magnitudes from 1 (smart_augmentation); start: squared distance of the "
        "unbounded parameters from where they started",
    )
    regulariser_weight: Positive = key(0.001, "factor of the regulariser")
    probabilities: Literal["score", "gumbel", "weight", "evidence"] = key(
        "evidence",
        "how operations' probabilities learn. evidence: down where harm is shown; score: score function, exact in the "
        "mean; gumbel: straight-through; weight: as factors on the loss of who drew them (smart_augmentation)",
    )
    explore: bool = key(
        True,
        "evidence: updates that a meta step looks at draw from the policy as it began, the others as it has become",
    )
    temperature: Positive = key(0.5, "gumbel: lower is nearer to the hard choice")
    magnitudes: Annotated[bool, OPEN] = key(
        None, "the policy's magnitudes learn too; null: not with probabilities evidence, or they do"
    )
    slots: Annotated[int, Field(ge=1, le=MOST_SLOTS)] = key(2, "operations of the policy one after the other")
    policy_lr: NonNegative = key(0.01, "learning rate of the policy's unbounded parameters")
    softness_lr: NonNegative = key(0.01, "learning rate of the unbounded softening exponent")
    smoothing_lr: NonNegative = key(0.01, "learning rate of the unbounded label smoothing")
    optim_lr: NonNegative = key(0.01, "learning rate of the optimizer's unbounded rates")
    weights_lr: NonNegative = key(
        0.2, "learning rate of the table of sample weights; a weight's largest step is 3 times it"
    )
    labels_temperature: Positive = key(1.0, "instant labels: larger stays nearer to uniform")
    labels_trust: NonNegative = key(5.0, "instant labels: how much the given label counts")
    operations: Text = key("eight", "operations that the policy learns to use: a packaged set or a file of them")
    padding: Padding = key(
        "mean", "what the policy's operations show outside of the image: a colour, its border or its mirror image"
    )
    learn_probabilities: bool = key(True, "the policy's probabilities learn")
    magnitude: PositiveShare = key(0.5, "the policy's magnitudes at the start, a share of their range")
    shared_magnitude: bool = key(False, "one magnitude for all operations of the policy")
    shared_probabilities: bool = key(False, "the policy's probabilities are the same in all slots")
    identity: Annotated[float, Field(gt=0, lt=1)] | None = key(
        0.2, "the policy's probability of drawing no operation at the start; null: the same as each operation's"
    )
    sequence: bool = key(False, "the policy learns a probability for every sequence of operations, not for each slot")
    tau: NonNegative = key(1.0, "the policy's probabilities are softmax(tau * logits); 0: uniform")
    mix: Share = key(1.0, "the policy's probabilities are (1 - mix) * uniform + mix * softmax(logits); 0: uniform")
    augmenter: Literal["affine", "translation", "scale", "rotation", "affine_color"] = key(
        "affine", "augmenter: what its network draws; affine: all of the geometry, affine_color: with colours"
    )
    conditioned: bool = key(False, "augmenter: its network sees the image too, not noise alone")
    augmenter_lr: NonNegative = key(0.003, "learning rate of the augmenter's network")
    momentum: ShareBelowOne = key(0.0, "momentum of the meta-optimizers sgd and rmsprop")
    weight_decay: NonNegative = key(0.0, "decay of the meta-optimizer, added to the gradient")
    anneal: bool = key(False, "learning rates of shared parts and tables rise and fall with the network's")
    reuse: Text | None = key(
        None, "run folder, or the policy.json of one, whose learned parts act here as they are; frozen, as below"
    )
    frozen: bool = key(
        False, "parts, if any, act with the values they have: no meta step, and the meta split is trained on"
    )
    train_weight: Positive = key(1.0, "frozen: loss weight of the meta images; above 1 where they alone are sure")
    table_optimizer: Literal["normalised", "rmsprop"] = key(
        "normalised",
        "how numbers of single images move. normalised: steps in units of the batch's gradient, cut off at 3 rates; "
        "rmsprop: AutoDO's, of up to 10 rates for an image met once an epoch",
    )
    weights_form: Literal["bounded", "softplus"] = key(
        "bounded", "weights: numbers cut off at 0 and 2, or softplus(h) / ln 2 of free numbers h (AutoDO)"
    )
    labels_lr: NonNegative = key(0.2, "learning rate of the logits of the learned soft labels")
    labels_classes: Annotated[int, Field(ge=2, le=10**6)] | None = key(
        None,
        "classes of a learned soft label that have a logit of their own, of the others' one; null: all up to 32, 8",
    )
    sample_policy: Literal["shared", "each"] = key(
        "each", "sample_policy: probabilities and magnitudes of AutoDO's affine operations, for all images or for each"
    )
    sample_policy_lr: NonNegative = key(0.05, "learning rate of the unbounded numbers of sample_policy")
    settle_epochs: Epochs = key(
        0.0,
        "epochs at the end in which nothing learns and shared parts act by the average of their values over as many "
        "epochs before",
    )

    def __post_init__(self) -> None:
        """Gives the keys that are left open what follows from how probabilities learn."""
        for name, (left_open, by_evidence, otherwise) in FOLLOWING.items():
            if getattr(self, name) == left_open:
                setattr(self, name, by_evidence if self.by_evidence else copy(otherwise))

    @property
    def acts_frozen(self) -> bool:
        """Whether learned parts act and nothing learns."""
        return self.frozen or self.reuse is not None

    @property
    def by_evidence(self) -> bool:
        """Whether the policy's probabilities learn from evidence of harm."""
        learns = "policy" in self.learn and self.learn_probabilities and not self.acts_frozen
        return learns and self.probabilities == "evidence"


@dataclass(config=STRICT)
class Distill:
    """Knowledge distillation: a trained network whose probabilities are learned too. Off while `teacher` is null."""

    teacher: Text | None = key(None, "name of any timm model, with this recipe's classes in their order")
    pretrained: bool = key(False, "its weights from the hub")
    checkpoint: Text | None = key(None, "its weights from a local file, read as model.initial_checkpoint")
    checkpoint_keys: Text | dict[str, str] | None = key(None, "as model.checkpoint_keys, for the teacher")
    kwargs: dict[str, Any] = key({}, "further arguments of timm.create_model for the teacher")
    weight: Share = key(0.5, "share of the loss that is the teacher's; the rest is the labels'")
    temperature: Positive = key(
        1.0, "T, by which both networks' logits are divided: larger shows more of what is unlikely"
    )
    mean: Annotated[list[float], Field(min_length=3, max_length=3)] | None = key(
        None, "mean of each channel in the teacher's images; null: data.mean"
    )
    std: Annotated[list[Annotated[float, Field(ge=1e-6, le=1e6)]], Field(min_length=3, max_length=3)] | None = key(
        None, "standard deviation of each channel in the teacher's images; null: data.std"
    )


@dataclass(config=STRICT)
class Eval:
    """The evaluation."""

    every: CountOrNone = key(1, "epochs between evaluations; 0: at the end only")
    batch_size: Annotated[int, Field(ge=1, le=2**16)] = key(256, "images per process")
    img_size: Pixels | None = key(None, "pixels a side; null: data.img_size")
    weights: Literal["raw", "ema"] = key("raw", "which weights give the headline")
    best_metric: Metric = key(
        "top1", "figure of the select split that picks the best checkpoint; of nll and ece the lowest is best"
    )
    threshold: Annotated[float, Field(gt=0, lt=1)] = key(
        0.5, "data.multi_label: probability from which a class counts as predicted, in F1"
    )
    ece_bins: Annotated[int, Field(ge=2, le=10**4)] = key(15, "bins of the expected calibration error")
    tta: Annotated[int, Field(ge=0, le=1000)] = key(
        0,
        "test-time augmentation, in the final evaluation: copies of an image under the policy, fixed or learned, whose "
        "predictions are averaged; its figures stand beside the plain ones; 0: none",
    )


@dataclass(config=STRICT)
class Recipe:
    """All sections of a recipe."""

    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    augment: Augment = field(default_factory=Augment)
    meta: Meta = field(default_factory=Meta)
    eval: Eval = field(default_factory=Eval)
    distill: Distill = field(default_factory=Distill)

    def side(self, epoch: int) -> int:
        """Pixels a side of training images in `epoch` (from 0)."""
        return ([self.data.img_size] + [side for begins, side in self.train.resize if begins <= epoch])[-1]

    def sides(self) -> list[int]:
        """Every size of images that are trained on, each once."""
        return list(dict.fromkeys(map(self.side, [0, *(epoch for epoch, _ in self.train.resize)])))


# Keys that may differ when a run is continued: they change how it runs, not what it computes.
RESUMABLE = {
    *("run.dir", "data.root", "data.table", "data.class_map", "run.log_every", "run.checkpoint_every", "run.keep"),
    *("run.checkpoint_async", "run.log_ids", "run.trackers", "data.input_key", "data.target_key", "data.verify"),
    *("run.peer_timeout", "data.threads", "data.prefetch", "eval.every", "eval.batch_size", "eval.tta"),
    "train.gradient_as_bucket_view",
}
