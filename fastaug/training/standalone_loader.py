"""The exact loader as a part of other people's loops: `fastaug.loader`, built as a training run builds its own.

    loader = fastaug.loader("/data/pets", 64, gives="pairs", img_size=224, aa="rand-m9-mstd0.5")
    for epoch in range(loader.epoch, 90):
        for images, labels in loader:
            ...

docs/loader.md has the settings, states, and loops of timm, Lightning, Transformers and Accelerate.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastaug.augment.pipeline import BatchAugment
from fastaug.batch import Batch
from fastaug.data.build import DataParts
from fastaug.data.exact_loader import DAMAGED, ExactLoader, joined_processes
from fastaug.data.sampler import FileOrder, Order, piece_bounds
from fastaug.data.splits import ROLES, Splits
from fastaug.errors import DataError, RecipeError
from fastaug.recipe.reading import recipe_of
from fastaug.recipe.schema import SCHEMA, Recipe
from fastaug.seeding import Key, Stream, uniform
from fastaug.targets import SoftTarget, dense
from fastaug.training.build_data import evaluation_loader, read_index, split_index, training_loader
from fastaug.training.class_balance import build_draws

GIVES = ("batch", "pairs", "dict", "soft", "dense")
MODES = ("train", "eval")
FOREVER = 10**6  # epochs: nothing anneals, for nobody says when the training ends

# Keys of recipes that are settings of a loader, by section.
_ALWAYS = {
    "data": (
        *("table", "class_level", "class_map", "labels", "splits", "split_seed"),
        *("test_fraction", "select_fraction", "meta_fraction", "loader"),
        *("img_size", "crop", "interpolation", "crop_pct", "channels", "background", "mean", "std", "exif"),
        *("input_key", "target_key", "verify", "threads", "prefetch"),
    ),
    "run": ("seed",),
}
_TRAINING = {
    "data": ("scale", "ratio", "sampling"),
    "train": ("drop_last",),
    "augment": ("aa", "color_jitter", "hflip", "repeats", "mix_group", "start_epochs"),
}
_ON_FLOATS = ("reprob", "remode", "recount", "cutout")  # of augment: they change images that are normalised
_MIXING = (  # of augment: targets become soft
    *("shift", "shift_dist", "shift_limit", "fill", "fill_value", "smoothing", "lam_fold"),
    *("mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "mixup_mode"),
    *("soften", "soften_k", "soften_p_max", "soften_threshold", "soften_visibility", "soften_rule", "other_class"),
)
_SECTION = {
    name: section
    for keys in (_ALWAYS, _TRAINING, {"augment": (*_ON_FLOATS, *_MIXING)})
    for section, names in keys.items()
    for name in names
}
_TRAINING_ONLY = {*_ON_FLOATS, *_MIXING, *(name for names in _TRAINING.values() for name in names)}


class Here(NamedTuple):
    """Where a loader's batches go: this process's device, and the processes that share a batch."""

    device: torch.device
    num_processes: int
    rank: int


def loader(
    root: str | os.PathLike[str],
    batch_size: int,
    *,
    split: str = "train",
    mode: str | None = None,
    gives: str = "batch",
    damaged: str = "skip",
    device: str | torch.device | None = None,
    rank: int | None = None,
    world: int | None = None,
    **settings: Any,
) -> ExactLoader:
    """The batches of a split of the images in `root`, for any loop: exact order, ids and state. See ExactLoader.

    `root`: what data.root of a recipe may be. `batch_size`: images of all processes together. `split`: train, meta,
    select or test. `mode`: "train" (random resized crops, keyed order) or "eval" (centre crops, file order, every
    image once); by default as the split is used. `gives`: "batch" (uint8 images, labels, ids), "pairs" (normalised
    float32 images [N, C, S, S], labels [N]), "dict" (the same as pixel_values and labels), "soft" (images and their
    SoftTarget by the fused op) or "dense" (images and probabilities [N, classes]). `damaged`: "skip" or "raise".
    `device`: default a GPU, this process's, where there is one. `rank`, `world`: default torch.distributed's or the
    launcher's. `settings`: keys of recipes by their last name, img_size=160, aa="ta_wide", seed=1, test_fraction=0.2.

    RecipeError names every setting that is wrong, DataError what is wrong with the images.
    """
    problems = _problems({"gives": (gives, GIVES), "damaged": (damaged, DAMAGED), "mode": (mode, (*MODES, None))})
    problems += _root_problem(root) + _split_problem(split) + _batch_problem(batch_size)
    trains = mode == "train" or (mode is None and split == "train")
    problems += _settings_problems(settings, trains, gives)
    if problems:
        raise RecipeError(problems)
    recipe = _recipe(str(root), batch_size, settings)
    _check_weights(recipe, gives)
    here = _here(device, rank, world)
    parts = split_index(recipe, read_index(recipe, progress=here.rank == 0), needs_test=False)
    parts = _alone(parts, split)
    build = _training if trains else _evaluation
    order, source = build(recipe, parts, here, batch_size)
    identity = {
        "set": parts.fingerprint(),
        **{"split": split, "mode": "train" if trains else "eval", "batch_size": batch_size, "seed": recipe.run.seed},
        **{"drop_last": order.drop_last, "repeats": order.repeats, "sampling": recipe.data.sampling},
    }
    return ExactLoader(
        order,
        source,
        identity,
        convert=_conversion(recipe, parts, gives, trains, "hflip" in settings),
        classes=parts.classes,
        path=parts.name_of,
        damaged=damaged,
        training=trains,
        follows=rank is None,
    )


# ---- what was asked for ----


def _problems(choices: Mapping[str, tuple[Any, tuple[Any, ...]]]) -> list[str]:
    """Arguments whose value is none of those known."""
    return [
        f"{name}: {value!r} is not one of {', '.join(str(one) for one in known if one is not None)}"
        for name, (value, known) in choices.items()
        if value not in known
    ]


def _root_problem(root: Any) -> list[str]:
    return [] if isinstance(root, (str, os.PathLike)) else [f"root: {root!r} is no path; name a folder of images"]


def _split_problem(split: str) -> list[str]:
    if split in ROLES:
        return []
    hint = "; a folder val/ is the split test, or select where there is a test/ too" if "val" in str(split) else ""
    return [f"split: {split!r} is not one of {', '.join(ROLES)}{hint}"]


def _batch_problem(batch_size: Any) -> list[str]:
    whole = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    return (
        [] if whole and 1 <= batch_size <= 2**20 else [f"batch_size: {batch_size!r} is no number of images, 1 or more"]
    )


def _settings_problems(settings: Mapping[str, Any], trains: bool, gives: str) -> list[str]:
    """What cannot be set, or would do nothing."""
    problems = []
    for name, value in settings.items():
        if name not in _SECTION:
            near = difflib.get_close_matches(name, _SECTION, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else "settings are keys of recipes, see docs/loader.md"
            problems.append(f"{name}: no setting of a loader; {hint}")
        elif value == "auto":
            problems.append(f"{name}: auto is what a network wants, and a loader has none; write the value")
        elif name == "loader" and value == "synthetic":
            problems.append("loader: synthetic reads no images; leave it out, or set it to resident")
        elif not trains and (name in _TRAINING_ONLY or (name, value) == ("crop", "rrc")):
            problems.append(f"{name}: acts in training, and this loader is for evaluation; leave it out")
        elif gives == "batch" and name in (*_ON_FLOATS, *_MIXING):
            problems.append(f"{name}: acts on normalised images; leave it out, or set gives to soft or dense")
        elif gives in ("pairs", "dict") and name in _MIXING:
            problems.append(f"{name}: is for soft targets, and gives={gives} has labels; set gives to soft or dense")
    if not trains and gives in ("soft", "dense"):
        problems.append(f"gives: {gives} is for training, and this loader is for evaluation; set it to pairs")
    return problems


def _recipe(root: str, batch_size: int, settings: Mapping[str, Any]) -> Recipe:
    """The recipe whose training would load like this; RecipeError in the names of settings."""
    least = max(2, batch_size)  # a run's batches are for BatchNorm
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "data": {"root": root},
        "augment": {},
        "run": {},
        "train": {"batch_size": least, "epochs": FOREVER},
        "eval": {"batch_size": batch_size},
    }
    for name, value in settings.items():
        values[_SECTION[name]][name] = _plain(value)
    try:
        return recipe_of(values, Path("loader"))
    except RecipeError as error:
        own = "|".join(f"{section}.{name}" for name, section in _SECTION.items())
        shorter = [re.sub(rf"\b(?:{own}|data\.root|train\.batch_size)\b", _last_name, text) for text in error.problems]
        raise RecipeError(shorter) from None


def _check_weights(recipe: Recipe, gives: str) -> None:
    """RecipeError where targets come with loss weights that what is delivered has no place for."""
    a = recipe.augment
    if gives == "dense" and a.soften in ("both", "weight") and (a.shift or a.soften_p_max < 1):
        text = f"soften: {a.soften} gives images loss weights, for which gives=dense has no place"
        raise RecipeError([f"{text}; set soften to target or none, or gives to soft"])


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value


def _last_name(key: re.Match[str]) -> str:
    return key[0].rpartition(".")[2]


def _here(device: str | torch.device | None, rank: int | None, world: int | None) -> Here:
    """This process's device and its place among the others."""
    if (rank is None) != (world is None):
        raise RecipeError(["rank: is one of `world` processes; give both, or neither"])
    if rank is None or world is None:
        rank, world = joined_processes()
    if not 0 <= rank < world:
        raise RecipeError([f"rank: {rank} is not one of 0 to world - 1 = {world - 1}"])
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise RecipeError([f"device: {device!r} is none that torch knows; name cpu or cuda"]) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError([f"device: {device} is not here, torch finds no GPU; leave it out, or name cpu"])
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return Here(device, world, rank)


# ---- parts ----


def _alone(parts: DataParts, split: str) -> DataParts:
    """The data with the images of `split` as the only ones; DataError when there are none."""
    ids, none = parts.splits.of(split), parts.splits.train[:0]
    if not len(ids):
        sizes = ", ".join(f"{role} {len(parts.splits.of(role))}" for role in ROLES)
        raise DataError(f"split: {split} has no image ({sizes}); name another one, or set {split}_fraction")
    return replace(parts, splits=Splits(train=ids, meta=none, select=none, test=none))


def _training(recipe: Recipe, parts: DataParts, here: Here, batch_size: int) -> tuple[Order, Any]:
    order = Order(
        ids=parts.splits.train,
        seed=recipe.run.seed,
        batch_size=batch_size,
        world=here.num_processes,
        rank=here.rank,
        group=recipe.augment.mix_group or 1,
        drop_last=recipe.train.drop_last,
        repeats=recipe.augment.repeats,
        drawn=build_draws(recipe, parts),
    )
    _check_sizes(order)
    return order, training_loader(recipe, here, parts, order)


def _evaluation(recipe: Recipe, parts: DataParts, here: Here, batch_size: int) -> tuple[Order, Any]:
    order = FileOrder(parts.splits.train, recipe.run.seed, batch_size, world=here.num_processes, rank=here.rank)
    return order, evaluation_loader(recipe, here, parts, parts.splits.train)


def _check_sizes(order: Order) -> None:
    """DataError unless there is a batch, and every process has an image of each."""
    images = len(order.ids)
    if not order.samples_per_epoch:
        raise DataError(
            f"batch_size: {order.batch_size} is larger than the split of {images} images, and drop_last leaves none; "
            f"set it to {images} or less, or drop_last to False"
        )
    for name, size in (("every", order.batch_size), ("the last", order.samples_per_epoch % order.batch_size)):
        pieces = piece_bounds(size, order.world, order.group)
        if size and (pieces[1:] == pieces[:-1]).any():
            raise DataError(
                f"batch_size: {name} batch of an epoch has {size} images for {order.world} processes, which leaves "
                "one of them without; choose another batch_size"
                + (", or set drop_last=True" if name == "the last" else "")
            )


# ---- what is delivered ----


def _conversion(recipe: Recipe, parts: DataParts, gives: str, trains: bool, flips: bool) -> Callable[[Batch, int], Any]:
    """From a batch of the loader and its epoch to what is delivered."""
    if gives == "batch":
        share = recipe.augment.hflip if flips else 0.0
        return lambda batch, epoch: _flipped(batch, Key(recipe.run.seed, epoch, Stream.FLIP), share)
    augment = BatchAugment(recipe, len(parts.classes))

    def images_and_target(batch: Batch, epoch: int) -> tuple[Tensor, SoftTarget | None]:
        if not trains:
            return augment.evaluation(batch), None
        images, target = augment.training(batch, epoch)
        n = len(batch.ids)  # what is trained on alone is filled up to what BatchNorm needs
        return images[:n], SoftTarget(*(None if part is None else part[:n] for part in target))  # type: ignore[arg-type]

    def delivered(batch: Batch, epoch: int) -> Any:
        images, target = images_and_target(batch, epoch)
        if gives == "dict":
            return {"pixel_values": images, "labels": batch.labels}
        if gives == "pairs" or target is None:
            return images, batch.labels
        return images, target if gives == "soft" else dense(target, augment.outputs)

    return delivered


def _flipped(batch: Batch, key: Key, share: float) -> Batch:
    """The batch with the images mirrored that the op would mirror."""
    if not share:
        return batch
    flip = torch.from_numpy(uniform(key, batch.draws, 1)[:, 0] < share).to(batch.images.device)
    return batch._replace(images=torch.where(flip[:, None, None, None], batch.images.flip(2), batch.images))
