"""What the meta benchmark trains: a ResNet-18 on 64x64 images, by fastaug's own training step.

The images are crops of two photographs, of any number and in classes that cannot be told apart, for time and memory; or
5,000 real digits, where there is something to learn, for the quality of hypergradients.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from sklearn.datasets import load_sample_image

from fastaug.batch import Batch
from fastaug.console import Console
from fastaug.distributed import build_accelerator
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Recipe
from fastaug.recipe.strict_yaml import write_yaml
from fastaug.training.build import Trainer, assemble
from fastaug.training.loop import train_step
from fastaug.training.run_folder import RunFolder

META_SHARE = 0.2
DIGITS: dict[str, dict[str, Any]] = {
    "data": {"root": "embedded:mnist5k"},
    "augment": {"hflip": 0},
}  # 3,000 to train, 500 for the meta step


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    model: str = "resnet18"
    side: int = 64
    batch: int = 64
    classes: int = 100
    images: int = 1600  # on disk; META_SHARE of them for the meta step


def write_images(root: Path, size: Size) -> None:
    """Class folders of crops from scikit-learn's two photographs."""
    photos = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    draw = np.random.default_rng(0)
    for number in range(size.images):
        folder = root / f"{number % size.classes:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        photo = photos[number % 2]
        y, x = (int(draw.integers(0, extent - size.side)) for extent in photo.shape[:2])
        Image.fromarray(photo[y : y + size.side, x : x + size.side]).save(folder / f"{number:05d}.jpg", quality=90)


def base(size: Size) -> dict[str, dict[str, Any]]:
    """The recipe that all arms share, but for the images."""
    return {
        "data": {"loader": "resident", "img_size": size.side, "crop": "whole", "threads": 1},
        "model": {"name": size.model},
        "optim": {"opt": "sgd", "lr": 0.05, "sched": "constant"},
        "train": {"epochs": 1000, "batch_size": size.batch, "drop_last": True},
        "augment": {"shift": 0.2, "cutmix": 1.0},
        "meta": {"engine": "forward", "batch_size": size.batch},
    }


class Scene:
    """One data folder, one accelerator, any number of trainers; of real digits if `digits`, `keys` changed for all."""

    def __init__(self, folder: Path, size: Size, *, digits: bool, keys: Sequence[str] = ()) -> None:
        self.folder, self.size, self.keys = folder, size, keys
        recipe = base(size)
        if digits:
            recipe = {section: keys | DIGITS.get(section, {}) for section, keys in recipe.items()}
        else:
            write_images(folder / "images", size)
            recipe["data"] |= {"root": str(folder / "images"), "meta_fraction": META_SHARE, "test_fraction": 0.05}
        (folder / "recipe.yaml").write_text(write_yaml(recipe))
        self._accelerator: Accelerator | None = None

    def recipe(self, *overrides: str) -> Recipe:
        """The common recipe with some keys changed."""
        return read_recipe(self.folder / "recipe.yaml", [f"run.dir={self.folder / 'run'}", *self.keys, *overrides])

    def trainer(self, *overrides: str) -> Trainer:
        """A trainer at step 0; nothing is written."""
        recipe = self.recipe(*overrides)
        self._accelerator = self._accelerator or build_accelerator(recipe)
        return assemble(recipe, self._accelerator, RunFolder(recipe.run.dir or ""), Console(False))


@contextmanager
def new_scene(size: Size, *, digits: bool = False, keys: Sequence[str] = ()) -> Iterator[Scene]:
    """A scene in a folder of its own, removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield Scene(Path(folder), size, digits=digits, keys=keys)


class Steps:
    """The training steps of one trainer, as often as asked."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        trainer.progress.step = 1  # update 0 would log pictures
        self._batches: Iterator[Batch] = trainer.loader.batches(trainer.order.requests(1, trainer.last_step))

    def __call__(self, count: int) -> None:
        for _ in range(count):
            train_step(self.trainer, self._batches)
