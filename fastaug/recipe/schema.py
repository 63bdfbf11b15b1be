"""The recipe: every setting of a run, typed, with its limits. Names are timm's where timm has one.

`limits(...)` states what a value may be; `rules.py` adds the rules that join several keys, `reading.py`
reads YAML and the command line. Nothing here imports torch.
"""

from dataclasses import dataclass, field
from typing import Any

LOADERS = ("dali", "resident", "synthetic")
META_PARTS = ("policy", "softness", "smoothing", "weights", "instant_weights", "instant_labels", "optim")
META_ENGINES = ("forward", "functional", "reverse", "difference", "implicit", "fused")
EXPONENTS = (0.25, 16.0)  # k of the softening curve, learned
LARGEST_SMOOTHING = 0.5
LARGEST_MOMENTUM = 0.999
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
    log_losses: bool = False  # write the mean training loss of every image to samples.csv
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
    labels: str | None = None  # file that replaces labels of training images, see fastaug/data/label_files.py
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
    sched: str = limits("cosine", choices=("cosine", "step", "multistep", "constant"))
    warmup_epochs: float = limits(0.0, low=0)
    warmup_lr: float = limits(1e-5, low=0)
    min_lr: float = limits(0.0, low=0)
    decay_epochs: float = limits(30.0, above=0)  # step: epochs between decays
    decay_milestones: list[int] = limits([30, 60, 80], low=1)  # multistep: epochs of the decays (timm: an update early)
    decay_rate: float = limits(0.1, above=0, high=1)  # factor of a decay
    clip_grad: float | None = limits(None, above=0)  # largest global norm


@dataclass
class Train:
    epochs: int = limits(100, low=1)
    batch_size: int = limits(256, low=SMALLEST_BATCH)  # images per update, over all processes and micro-batches
    accumulate: int = limits(1, low=1)  # micro-batches per update and process
    precision: str = limits("no", choices=("no", "bf16", "fp16"))  # of autocast
    drop_last: bool = False  # leave out the smaller last batch of an epoch
    cudnn_benchmark: bool = True  # on a GPU: try several convolution kernels for each new shape and keep the fastest
    tf32: bool = True  # on a GPU: matrix products and convolutions of float32 in TensorFloat-32


@dataclass
class Augment:
    aa: str | None = (
        None  # fixed policy, timm's names: rand-m9-mstd0.5-inc1, augmix-m3-w3, 3a, ... and ta_wide, ra-n2-m9
    )
    color_jitter: float | None = limits(None, low=0, high=1)
    reprob: float = limits(0.0, low=0, high=1)  # random erasing
    remode: str = limits("const", choices=("const", "rand", "pixel"))
    recount: int = limits(1, low=1)
    repeats: int = limits(1, low=1, high=2**16)  # repeated augmentation: copies of an image in one update
    cutout: float = limits(0.0, low=0, high=1)  # side of a blanked square, as a share of img_size; 0: off
    hflip: float = limits(0.5, low=0, high=1)  # probability
    shift: float = limits(0.0, low=0)  # soft crop: standard deviation of the shift, as a share of img_size; 0: off
    shift_dist: str = limits("normal", choices=("normal", "uniform"))  # uniform: any pixel up to shift * img_size
    shift_limit: float = limits(1.0, low=0, high=1)  # largest shift, a share
    fill: str = limits("mean", choices=("mean", "constant", "random", "noise"))  # what lies outside of an image
    fill_value: float = limits(0.0, low=0, high=1)  # fill=constant
    mixup: float = limits(0.0, low=0)  # alpha; 0: off
    cutmix: float = limits(0.0, low=0)  # alpha; 0: off
    mixup_prob: float = limits(1.0, low=0, high=1)  # share of updates (or images) that are mixed at all
    mixup_switch_prob: float = limits(0.5, low=0, high=1)  # of CutMix where both are on
    mixup_mode: str = limits("batch", choices=("batch", "elem"))  # one draw per mix_group, or per image
    mix_group: int | None = limits(None, low=2)  # positions of the order that mix with each other; null: a micro-batch
    lam_fold: bool = False  # the base keeps the larger part
    mix_layer: str | None = None  # CutMix in the output of this module instead of the image
    soften: str = limits("both", choices=("both", "target", "weight", "none"))  # what visibility changes
    soften_k: float = limits(2.0, above=0)  # exponent of the softening curve
    soften_p_max: float = limits(1.0, above=0, high=1)
    soften_threshold: float = limits(1.0, above=0, high=1)  # visibility from which an image counts as whole
    soften_visibility: str = limits("area", choices=("area", "iou"))
    soften_rule: str = limits("pixels", choices=("pixels", "own", "base"))  # masses of pasted boxes
    other_class: bool = False  # missing confidence goes to an extra class
    anneal_epochs: int = limits(0, low=0)  # at the end of training, with the shift / anneal_factor
    anneal_factor: float = limits(1000.0, low=1)
    smoothing: float = limits(0.0, low=0, below=1)  # label smoothing
    loss: str = limits("ce", choices=("ce", "kl", "symmetric_kl", "focal", "bce", "gce"))
    gce_q: float = limits(0.7, above=0, high=1)  # generalised cross-entropy: towards 0 cross-entropy, 1 mean error
    trim: float = limits(0.0, low=0, below=1)  # share of a micro-batch left out, those with the largest losses
    focal_gamma: float = limits(2.0, low=0)
    bce_target_thresh: float | None = limits(None, above=0, below=1)
    bce_sum: bool = False
    published_weighting: bool = False  # mean(weight) * mean(loss) of a micro-batch, as the released code


@dataclass
class Meta:
    """The meta step: what augmentation, weights and labels learn from the meta split. Off while `learn` is empty."""

    learn: list[str] = limits([], choices=META_PARTS)  # see fastaug/meta/parameters.py
    every: int = limits(10, low=1)  # K: updates between two meta steps
    fraction: float = limits(0.25, above=0, high=1)  # f: share of a micro-batch that a meta step differentiates
    batch_size: int = limits(64, low=SMALLEST_BATCH)  # meta images of a validation gradient, over all processes
    start_epochs: float = limits(0.0, low=0)  # warm-up without meta steps
    engine: str = limits("auto", choices=("auto", *META_ENGINES))  # auto: chosen by a self-test, printed
    layers: list[str] = limits([])  # fused: modules whose weights the validation gradient is in; empty: all
    solver: str = limits("neumann", choices=("neumann", "identity", "cg"))  # implicit: of the inverse Hessian
    alpha: float = limits(0.01, above=0)  # implicit: step of the Neumann series
    terms: int = limits(5, low=0)  # implicit: of the series, or steps of conjugate gradients
    damping: float = limits(0.0, low=0)  # implicit: added to the Hessian's diagonal
    approximate: bool = False  # optimizers without an exact Jacobian: u = -lr v instead of an error
    renew: int = limits(1, low=1)  # meta steps between two validation gradients
    half_life: float = limits(0.0, low=0)  # updates after which a validation gradient counts half; 0: no average
    weights: str = limits("raw", choices=("raw", "ema"))  # which weights of the network are validated
    probabilities: str = limits("score", choices=("score", "gumbel"))  # how operations' probabilities learn
    temperature: float = limits(0.5, above=0)  # gumbel: lower is nearer to the hard choice
    magnitudes: bool = True  # the policy's magnitudes learn too
    slots: int = limits(2, low=1, high=8)  # operations of the policy one after the other
    policy_lr: float = limits(0.01, low=0)  # Adam on unbounded parameters, as the next three
    softness_lr: float = limits(0.01, low=0)
    smoothing_lr: float = limits(0.01, low=0)
    optim_lr: float = limits(0.01, low=0)
    weights_lr: float = limits(0.2, low=0)  # of the table: largest step of a weight is 3 times it
    labels_temperature: float = limits(1.0, above=0)  # instant labels: larger stays nearer to uniform
    labels_trust: float = limits(5.0, low=0)  # instant labels: how much the given label counts
    steps: int = limits(1, low=1, high=64)
    validation_loss: str = limits("ce", choices=("ce", "kl", "symmetric_kl", "focal", "bce", "gce"))
    optimizer: str = limits("adam", choices=("adam", "sgd", "rmsprop"))
    regulariser: str = limits("none", choices=("none", "entropy", "magnitude", "start"))
    regulariser_weight: float = limits(0.001, above=0)
    parts: dict[str, Any] = limits({})


@dataclass
class Eval:
    every: int = limits(1, low=0)  # epochs; 0: at the end only
    batch_size: int = limits(256, low=1)  # images per process
    img_size: int | None = limits(None, low=1, high=4096)  # pixels a side; null: data.img_size
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
    meta: Meta = field(default_factory=Meta)
    eval: Eval = field(default_factory=Eval)


# Keys that may differ when a run is continued: they change how it runs, not what it computes.
RESUMABLE = {
    *("run.dir", "data.root", "run.log_every", "run.checkpoint_every", "run.keep", "run.log_ids", "run.trackers"),
    *("data.threads", "data.prefetch", "eval.every", "eval.batch_size"),
}
