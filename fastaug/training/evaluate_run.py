"""A run or one of its checkpoints put back from its files, and its figures on a split of this or of other data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import nn

from fastaug.augment.pipeline import BatchAugment
from fastaug.data.build import DataParts
from fastaug.distributed import build_accelerator, finish
from fastaug.errors import RecipeError, StorageError
from fastaug.evaluation.evaluate import Evaluator
from fastaug.evaluation.latency import measured_cost, parameters
from fastaug.evaluation.learned_policy import learned_policy
from fastaug.recipe.reading import UNTRAINED, Override, as_override, read_stored, read_untrained
from fastaug.recipe.schema import Recipe
from fastaug.training import checkpoint
from fastaug.training.build import build_network
from fastaug.training.build_data import evaluation_loader, find_data
from fastaug.training.evaluation_checks import NO_CHECKS, Checks, Scene, begin
from fastaug.training.trainer_state import class_names, load_weights


@dataclass(frozen=True)
class Wanted:
    """What is to be evaluated: `path`, a run folder or one of its checkpoints, on a split, under which changes.

    `weights` and `tta` are the recipe's where they are None. `latency`: passes over which the network is timed on one
    image alone; 0: none. `checks`: what is measured beside.
    """

    path: Path
    split: str = "test"
    weights: str | None = None
    tta: int | None = None
    overrides: Sequence[Override] = ()
    latency: int = 0
    checks: Checks = NO_CHECKS


def checkpoint_and_recipe(wanted: Wanted) -> tuple[Path, Recipe]:
    """The checkpoint folder that is meant and the recipe of its run."""
    is_run = (wanted.path / "recipe.yaml").is_file()
    run = wanted.path if is_run else wanted.path.resolve().parent.parent
    path = checkpoint.latest(run / "checkpoints")[0] if is_run else wanted.path
    if path is None or not (run / "recipe.yaml").is_file():
        raise StorageError(f"{wanted.path}: neither a run folder with a checkpoint nor a checkpoint of a run; name one")
    weights = [f"eval.weights={wanted.weights}"] if wanted.weights else []
    copies = [] if wanted.tta is None else [f"eval.tta={wanted.tta}"]
    untrained = [*UNTRAINED, "augment.start_epochs=0"]
    untrained += parts_that_act(wanted, run) + shift_of(wanted, run)
    recipe = read_untrained(run / "recipe.yaml", [*wanted.overrides, *weights, *copies, *untrained])
    return path, without_labels_of_another_root(recipe, read_stored(run / "recipe.yaml")[0], wanted)


def without_labels_of_another_root(recipe: Recipe, trained: Recipe, wanted: Wanted) -> Recipe:
    """data.labels names training images of the run's own root: left out where others are held out, unless asked for."""
    words = [word if isinstance(word, str) else f"{word[0]}=" for word in wanted.overrides]
    asked = any(word.startswith("data.labels=") for word in words)
    if asked or wanted.split == "train" or Path(recipe.data.root).resolve() == Path(trained.data.root).resolve():
        return recipe
    return replace(recipe, data=replace(recipe.data, labels=None))


def parts_that_act(wanted: Wanted, run: Path) -> list[str]:
    """Overrides that leave learned parts out where none acts, and take reused ones from the run where they act."""
    stored, _ = read_stored(run / "recipe.yaml")
    if not (stored.eval.tta if wanted.tta is None else wanted.tta):
        if any((word if isinstance(word, str) else word[0] + "=").startswith("eval.tta=") for word in wanted.overrides):
            raise RecipeError(["eval.tta: give it as --tta, which also brings the policy back"])
        # A run that learned nothing has trained on its meta split too.
        return ["meta.learn=[]", "meta.reuse=null", f"meta.frozen={str(stored.meta.acts_frozen).lower()}"]
    return [] if stored.meta.reuse is None else [as_override("meta.reuse", str(run))]


def shift_of(wanted: Wanted, run: Path) -> list[str]:
    """Overrides that leave training images as they were trained on, where only those held out are shifted."""
    data = read_stored(run / "recipe.yaml")[0].data
    return ["data.known_shift=none"] if wanted.split == "train" and not data.known_shift_train else []


class Restored(NamedTuple):
    """The network of a checkpoint and the data of its recipe, with labels as the network's outputs."""

    recipe: Recipe
    accelerator: Accelerator
    parts: DataParts
    network: nn.Module
    state: dict[str, Any]


def restored(path: Path, recipe: Recipe) -> Restored:
    """What the checkpoint folder `path` holds, and what `recipe` evaluates it on."""
    accelerator = build_accelerator(recipe)
    weights, state = checkpoint.load(path)
    parts = find_data(recipe, accelerator)
    trained = class_names(state)
    if trained is None:
        accelerator.print(f"{path} is of a version that kept no class names: classes are matched by their order")
    else:
        parts = parts.for_network(trained)
    network = build_network(recipe, len(parts.classes), accelerator)
    load_weights(network, weights["ema" if recipe.eval.weights == "ema" else "model"])
    return Restored(recipe, accelerator, parts, network, state)


class Evaluated(NamedTuple):
    """The figures of a split by a checkpoint, and the damaged images that were left out: {name: reason}."""

    checkpoint: Path
    figures: dict[str, Any]
    skipped: dict[str, str]
    main: bool  # whether this is the main process
    classes: tuple[str, ...]  # names of the outputs


def refuse_trained_on(wanted: Wanted, recipe: Recipe, parts: DataParts, state: dict[str, Any]) -> None:
    """RecipeError where the splits of the run's own data are others than in training: it saw some held-out images."""
    run = wanted.path if (wanted.path / "recipe.yaml").is_file() else wanted.path.resolve().parent.parent
    stored, _ = read_stored(run / "recipe.yaml")
    same = any(parts.trains_as(state["data"], learns=learns) for learns in (False, True))
    if stored.data.root == recipe.data.root and not same:
        raise RecipeError(
            [
                f"temperature: the run was trained on other splits of {recipe.data.root}, so it may have seen "
                f"images of {wanted.checks.temperature}; leave its data keys as they were, or name a share of the split"
            ]
        )


def evaluate_run(wanted: Wanted, *, borrowed: bool = False) -> Evaluated:
    """The figures of what is wanted; every process of a job must call this and gets the same figures.

    `borrowed`: of a process that may call it again, see `borrowed_process`.
    """
    path, recipe = checkpoint_and_recipe(wanted)
    recipe, accelerator, parts, network, state = restored(path, recipe)
    loader = evaluation_loader(recipe, accelerator, parts, parts.splits.of(wanted.split))
    learned = learned_policy(path, recipe, parts, network, state, accelerator.device) if recipe.eval.tta else None
    augment = BatchAugment(recipe, len(parts.classes), learned=learned)
    evaluator = Evaluator(recipe, accelerator, parts, loader, augment)
    scene = Scene(recipe, accelerator, parts, network, augment, wanted.split)
    if wanted.checks.temperature in ("select", "meta"):
        refuse_trained_on(wanted, recipe, parts, state)
    checks = begin(wanted.checks, scene)
    listeners = [listener for check in checks for listener in check.listeners]
    figures: dict[str, Any] = evaluator.run(network, wanted.split, recipe.eval.tta, listeners, details=True)
    figures = {"weights": recipe.eval.weights, **figures, "parameters": parameters(network)}
    for check in checks:
        figures |= check.figures(figures)
    if wanted.latency:
        side = recipe.eval.img_size or recipe.data.img_size
        shape = (recipe.data.channels, side, side)
        figures |= measured_cost(network, shape, accelerator.device, wanted.latency, accelerator.autocast)
    skipped = scene.skipped | {parts.name_of(sample): reason for sample, reason in loader.skipped.items()}
    finish(accelerator, stays_joined=borrowed)
    return Evaluated(path, figures, skipped, accelerator.is_main_process, tuple(parts.classes))
