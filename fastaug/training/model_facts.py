"""model.json of a checkpoint: all that somebody who has only its folder needs to use the network in it.

That is the names of its outputs, how an image becomes its input, the recipe that trained it and, where it was
evaluated at that update, the figures. The manifest vouches for it as for the weights. Checkpoints that are older
than it are completed from the run folder that they lie in.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastaug.atomic_files import open_regular
from fastaug.data.image_files import colour_of
from fastaug.errors import RecipeError, StorageError
from fastaug.provenance import versions
from fastaug.recipe.reading import read_stored, recipe_of
from fastaug.recipe.schema import SCHEMA, Recipe
from fastaug.training import checkpoint

if TYPE_CHECKING:
    from fastaug.training.build import Trainer

FILE = "model.json"
FORMAT = 1  # raise it when a key is renamed or changes its meaning
RESULT = "result.json"  # of a run's last checkpoint, once it is evaluated
_LARGEST = 1 << 28  # bytes; a class of ImageNet-21k takes some dozen


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input, as evaluation does it.

    `crop` "center": the short side is resized to floor(img_size / crop_pct) pixels, then the middle is cut; "whole":
    resized to img_size x img_size whatever its shape. Then a network of one channel gets its grey, and pixels in [0, 1]
    lose `mean` and are divided by `std`. `background`: the colour behind transparent pixels, None: as the file has it.
    """

    img_size: int
    crop: str
    crop_pct: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exif: str
    background: tuple[int, int, int] | None = None

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return len(self.mean)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of the network's input."""
        return self.channels, self.img_size, self.img_size

    @property
    def short_side(self) -> int:
        """Pixels of an image's short side before the middle is cut."""
        return int(self.img_size / self.crop_pct)


def preprocessing_of(recipe: Recipe) -> Preprocessing:
    """How the recipe evaluates images; a known shift, which its held-out images get on purpose, is no part of it."""
    data = recipe.data
    return Preprocessing(
        img_size=recipe.eval.img_size or data.img_size,
        crop="whole" if data.crop == "whole" else "center",
        crop_pct=data.crop_pct,
        interpolation=data.interpolation,
        mean=tuple(data.mean),
        std=tuple(data.std),
        exif=data.exif,
        background=colour_of(data.background),
    )


@dataclass(frozen=True)
class ModelFacts:
    """What is known of the network in a checkpoint folder.

    `classes`: names of outputs 0, 1, ...; the "other" class of augment.other_class, an output behind them, has none.
    `figures`: of the evaluation at this update, None where there was none. `result`: the scalars of the run's result,
    in its last checkpoint. `best_step`: the update whose checkpoint was the best on `select` so far.
    """

    step: int
    epoch: float
    classes: tuple[str, ...]
    recipe: Recipe
    figures: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    best_step: int | None = None
    incomplete: str | None = None  # what was not in the checkpoint, and where it was taken from

    def figures_of(self, weights: str) -> dict[str, Any] | None:
        """The figures of the "raw" or "ema" weights at this update, those of the run's result if it has ended here."""
        found = self.result or self.figures
        return found if found is not None and found.get("weights") == weights else None

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are made the network's input."""
        return preprocessing_of(self.recipe)


def facts_file(trainer: "Trainer") -> bytes:
    """The text of model.json for a checkpoint of now."""
    progress, recipe = trainer.progress, trainer.recipe
    evaluated = trainer.evaluated if trainer.evaluated and trainer.evaluated["step"] == progress.step else None
    prepared = preprocessing_of(recipe)
    values = {
        "format": FORMAT,
        "fastaug": versions().get("fastaug"),
        "step": progress.step,
        "epoch": progress.step / trainer.order.steps_per_epoch,
        "best_step": progress.best_step,
        "architecture": recipe.model.name,
        "classes": list(trainer.parts.classes),
        "other_class": recipe.augment.other_class,
        "preprocessing": {**asdict(prepared), "channels": prepared.channels},
        "figures": evaluated,
        "recipe": {"schema": SCHEMA, **asdict(recipe)},
    }
    return json.dumps(values, indent=1).encode()


def scalars(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures that are one number or word."""
    return {name: value for name, value in figures.items() if isinstance(value, (bool, int, float, str))}


def attach_result(trainer: "Trainer", result: dict[str, Any]) -> None:
    """Puts the scalars of the run's result into the checkpoint that they are of, the last one."""
    path = trainer.folder.checkpoints / checkpoint.name_of(trainer.progress.step)
    checkpoint.attach(path, RESULT, (json.dumps(scalars(result), indent=1) + "\n").encode())


def read_facts(path: Path) -> ModelFacts:
    """The facts of the checkpoint folder `path`; StorageError when it is damaged or does not say enough."""
    if problem := checkpoint.verify(path):
        raise StorageError(f"{path}: damaged checkpoint: {problem}; choose another one of its run")
    files = json.loads((path / "manifest.json").read_bytes())["files"]
    result = _json_of(path / RESULT) if RESULT in files else None
    if FILE not in files:
        return _from_run_folder(path, result)
    values = _json_of(path / FILE)
    if values.get("format") != FORMAT:
        found = f"{FILE} is of format {values.get('format')!r}, this version reads {FORMAT}"
        raise StorageError(f"{path}: {found}; update fastaug")
    try:
        return ModelFacts(
            step=values["step"],
            epoch=values["epoch"],
            classes=tuple(values["classes"]),
            recipe=recipe_of(values["recipe"], path / FILE),
            figures=values["figures"],
            result=result,
            best_step=values["best_step"],
        )
    except (LookupError, TypeError) as error:
        raise StorageError(f"{path}: {FILE} lacks {error}; choose another checkpoint") from error
    except RecipeError as error:
        raise RecipeError([f"{path / FILE}: {problem}" for problem in error.problems]) from error


def _json_of(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            values = json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path}: cannot be read: {error}; choose another checkpoint") from error
    if not isinstance(values, dict):
        raise StorageError(f"{path}: holds no mapping; choose another checkpoint")
    return values


def _from_run_folder(path: Path, result: dict[str, Any] | None) -> ModelFacts:
    """The facts of a checkpoint without model.json, from its state and the recipe.yaml of its run folder."""
    run, state = path.resolve().parent.parent, checkpoint.load(path, whole=False).state
    remedy = "put it back into checkpoints/ of its run folder, or continue that run, which writes a new checkpoint"
    if not (run / "recipe.yaml").is_file():
        raise StorageError(f"{path}: is of a version that wrote no {FILE}, and {run} has no recipe.yaml; {remedy}")
    classes = state.get("classes") or _names_in(run)
    if not classes:
        raise StorageError(f"{path}: is of a version that kept no class names, and {run} has no classes.json; {remedy}")
    progress = state["progress"]
    return ModelFacts(
        step=progress["step"],
        epoch=float("nan"),
        classes=tuple(classes),
        recipe=read_stored(run / "recipe.yaml")[0],
        result=result,
        best_step=progress.get("best_step"),
        incomplete=f"{path} is of a version that wrote no {FILE}: recipe and names are those of {run}",
    )


def _names_in(run: Path) -> list[str]:
    """The names of the outputs in classes.json of a run folder; none where it has none."""
    if not (run / "classes.json").is_file():
        return []
    return list(_json_of(run / "classes.json").get("classes") or [])
