"""Classifies images with a trained network: loader, preprocessing and arithmetic are those of evaluation."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fastaug.augment.pipeline import BatchAugment
from fastaug.data.build import DataParts, build_loader
from fastaug.data.channel_files import reads_channels
from fastaug.data.index import Index
from fastaug.data.loaders.base import Loading
from fastaug.data.loose_files import index_of
from fastaug.data.packed.index import PackedSet
from fastaug.data.packed.unlabelled import load_unlabelled
from fastaug.data.sampler import evaluation_requests
from fastaug.data.splits import Splits
from fastaug.distributed import choose_kernels
from fastaug.errors import DataError, RecipeError
from fastaug.evaluation.learned_policy import learned_policy
from fastaug.evaluation.test_time import TestTimeAugmentation
from fastaug.inference.saved_model import Kind, Which, find_checkpoint, network_of, untrained
from fastaug.recipe.rules import validate
from fastaug.recipe.schema import Recipe
from fastaug.training import checkpoint
from fastaug.training.build_data import build_crop, build_listing, evaluated
from fastaug.training.model_facts import ModelFacts, read_facts

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
MOST_SHOWN = 5  # classes of an image, where nobody says how many


class Predictions(NamedTuple):
    """What a network says of N images, in the order in which they were named.

    `outputs` [N, k]: the likeliest classes, as positions in `classes`, best first; `probabilities` [N, k] of them. The
    rows of images that cannot be decoded are -1 and NaN, and `damaged` says why, by row.
    """

    checkpoint: Path
    classes: tuple[str, ...]
    paths: list[bytes]
    outputs: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    damaged: dict[int, str]


@dataclass
class Predictor:
    """The network of a checkpoint, ready to classify files. `copies`: of test-time augmentation, 0 for none."""

    path: Path
    facts: ModelFacts
    recipe: Recipe
    network: nn.Module
    device: torch.device
    copies: int

    @property
    def threads(self) -> int:
        """Threads that read images."""
        return self.recipe.data.threads or len(os.sched_getaffinity(0))

    def index_of(self, images: Sequence[bytes] | PackedSet) -> Index:
        """The index of image files, by their paths, or of all images of a packed set.

        RecipeError for a packed set where the network takes n channels, which are read from single files.
        """
        exif, channels = self.recipe.data.exif, build_listing(self.recipe).channels
        if not isinstance(images, PackedSet):
            return index_of(images, self.facts.classes, exif, self.threads, channels)
        if reads_channels(channels):
            raise RecipeError([f"{images}: images of {channels} channels are read from single files; name those"])
        return load_unlabelled(images, self.facts.classes, exif=exif, threads=self.threads)

    @torch.no_grad()
    def logits(self, index: Index, see: Callable[[npt.NDArray[np.int64], Tensor], None]) -> dict[int, str]:
        """Calls see(rows, logits [n, C]) for batches of the images of `index`; why some were left out, by row.

        With `copies` the logits are logarithms of mean probabilities.
        """
        recipe, classes = self.recipe, len(self.facts.classes)
        parts = parts_of(index, self.facts.classes)
        crop = build_crop(recipe, evaluated(recipe), self.facts.preprocessing.img_size)
        loading = Loading(self.device, recipe.eval.batch_size, self.threads, recipe.data.prefetch)
        loader = build_loader(parts, parts.splits.test, crop, loading)
        augment = BatchAugment(recipe, classes, learned=self._learned(parts))
        test_time = TestTimeAugmentation(recipe, augment, self.copies) if self.copies else None
        for batch in loader.batches(evaluation_requests(parts.splits.test, recipe.eval.batch_size, 1, 0)):
            if len(batch.ids):
                with self._autocast():
                    if test_time is None:
                        found = self.network(augment.evaluation(batch))[:, :classes]
                    else:
                        found = test_time.logits(self.network, batch, classes)
                see(batch.ids.numpy(), found)
        return loader.skipped

    def _learned(self, parts: DataParts) -> Any:
        if not self.copies:
            return None
        state = checkpoint.load(self.path, whole=False).state
        return learned_policy(self.path, self.recipe, parts, self.network, state, self.device)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _AUTOCAST.get(self.recipe.train.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)


def parts_of(index: Index, classes: tuple[str, ...]) -> DataParts:
    """The images of an index, all of them as the test split."""
    ids = np.arange(len(index), dtype=np.int64)
    return DataParts(classes, Splits(train=ids[:0], meta=ids[:0], select=ids[:0], test=ids), index)


def build_predictor(
    path: Path,
    *,
    weights: Kind | None = None,
    which: Which = "last",
    copies: int = 0,
    batch_size: int | None = None,
) -> Predictor:
    """The network of the run folder or checkpoint `path`, on a GPU if there is one; see `load` for the choices.

    RecipeError where `copies` of test-time augmentation would all be the image itself.
    """
    found = find_checkpoint(path, which)
    facts = read_facts(found)
    recipe = _for_prediction(found, facts, copies, batch_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        choose_kernels(recipe)
    if device.type == "cpu" and recipe.train.precision == "fp16":
        raise RecipeError(["train.precision: fp16 needs a GPU and none is visible; load the network by fastaug.load"])
    return Predictor(found, facts, recipe, network_of(found, facts, weights).to(device), device, copies)


def _for_prediction(path: Path, facts: ModelFacts, copies: int, batch_size: int | None) -> Recipe:
    """The recipe as it acts on new images: without known shifts, learned parts only where copies are drawn."""
    recipe: Recipe = untrained(facts)
    meta = recipe.meta
    if not copies:
        meta = type(meta)()
    elif meta.reuse is not None:
        meta = replace(meta, reuse=str(path.resolve().parent.parent))
    recipe = replace(
        recipe,
        data=replace(recipe.data, known_shift="none"),
        eval=replace(recipe.eval, tta=copies, batch_size=batch_size or recipe.eval.batch_size),
        meta=meta,
    )
    if copies and (problems := [problem for problem in validate(recipe) if problem.startswith("eval.tta")]):
        said = [problem.removeprefix("eval.tta: ").partition("; ")[0] for problem in problems]
        raise RecipeError([f"--tta: {problem}; leave it out" for problem in said])
    return recipe


def predict(
    predictor: Predictor, images: Sequence[bytes] | PackedSet, k: int | None = None, temperature: float = 1.0
) -> Predictions:
    """The `k` likeliest classes of each image file, or image of a packed set; None: 5, or all where there are fewer.

    Probabilities are of one class an image, softmax, or of each class for itself, sigmoid, with data.multi_label, of
    logits that are divided by `temperature`, which `fastaug evaluate --temperature` fits.
    RecipeError where k is above the number of classes; DataError when not one image can be decoded.
    """
    classes = predictor.facts.classes
    if k is not None and not 1 <= k <= len(classes):
        raise RecipeError([f"k: {k} is not between 1 and {len(classes)}, the classes of {predictor.path}"])
    if not 0 < temperature < math.inf:
        raise RecipeError(
            [f"temperature: {temperature} is no number above 0; `fastaug evaluate --temperature` fits one"]
        )
    k, index = k or min(MOST_SHOWN, len(classes)), predictor.index_of(images)
    paths = [index.path(row) for row in range(len(index))]
    several = predictor.recipe.data.multi_label != "off"
    outputs, probabilities = np.full((len(paths), k), -1, np.int64), np.full((len(paths), k), np.nan)

    def keep(rows: npt.NDArray[np.int64], logits: Tensor) -> None:
        scaled = logits.double() / temperature
        top = (scaled.sigmoid() if several else scaled.softmax(1)).topk(k)
        outputs[rows], probabilities[rows] = top.indices.cpu().numpy(), top.values.cpu().numpy()

    damaged = predictor.logits(index, keep)
    if len(damaged) == len(paths):
        first = f"{os.fsdecode(paths[0])}: {damaged[0]}" if paths else "none was named"
        raise DataError(f"not one of {len(paths)} images can be decoded, the first {first}; name other files")
    return Predictions(predictor.path, classes, paths, outputs, probabilities, dict(sorted(damaged.items())))
