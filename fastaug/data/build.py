"""From a recipe to index, splits and the loader of any split."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from fastaug.data.index import Index, load_index
from fastaug.data.label_files import with_labels
from fastaug.data.loaders.base import Loader
from fastaug.data.loaders.dali import DaliLoader
from fastaug.data.loaders.dali_feed import Crop
from fastaug.data.loaders.resident import ResidentLoader
from fastaug.data.loaders.shards import shard_loader
from fastaug.data.loaders.synthetic import SyntheticLoader
from fastaug.data.sampler import Ids, Order
from fastaug.data.shards.layout import ShardIndex, is_shard_folder, open_shards
from fastaug.data.sources.arrays import KINDS, materialize_arrays
from fastaug.data.sources.embedded import materialize
from fastaug.data.splits import Splits, make_splits
from fastaug.errors import DataError
from fastaug.recipe.schema import Recipe

EMBEDDED = "embedded"


@dataclass(frozen=True)
class DataParts:
    """Classes and splits of a run's data; `index` is None for synthetic data.

    `folder_labels` are those of the class folders, the labels of `index` unless data.labels replaces some.
    """

    classes: tuple[str, ...]
    splits: Splits
    index: Index | None
    folder_labels: Ids | None = None

    def held_out(self) -> list[str]:
        """The splits that can be evaluated."""
        return [name for name in ("select", "test") if len(self.splits.of(name))]

    def name_of(self, sample: int) -> str:
        """The path of an image, fit to print."""
        return "" if self.index is None else os.fsdecode(self.index.path(sample)).encode(errors="replace").decode()

    def fingerprint(self) -> str:
        """SHA-256 of which images are trained on, by relative path: tells whether a run continues on the same data.

        Shards count as other data than the originals: their pixels differ.
        """
        digest = hashlib.sha256(self.splits.train.tobytes())
        if self.index is not None:
            digest.update(self.index.paths.blob)
            digest.update(self.index.labels.tobytes())
        if isinstance(self.index, ShardIndex):
            digest.update(self.index.settings.pixels())
        return digest.hexdigest()


def find_root(root: str, progress: bool) -> Path:
    """The image folder that data.root names; sets in other forms are written as one first."""
    kind, _, source = root.partition(":")
    if source and kind == EMBEDDED:
        return materialize(source, progress=progress)
    if source and kind in KINDS:
        return materialize_arrays(kind, source, progress=progress)
    return Path(root)


def find_index(root: Path, exif: str, progress: bool) -> Index:
    """The index of an image folder or of a shard folder."""
    return open_shards(root, exif) if is_shard_folder(root) else load_index(root, exif=exif, progress=progress)


def find_data(recipe: Recipe, accelerator: Accelerator) -> DataParts:
    """Index and splits; the main process makes them first, the others read its cache."""
    data = recipe.data
    if data.loader == "synthetic":
        ids = np.arange(data.synthetic_images, dtype=np.int64)
        tested = ids[: min(len(ids), recipe.eval.batch_size)]
        splits = Splits(train=ids, meta=ids[:0], select=ids[:0], test=tested)
        return DataParts(tuple(map(str, range(data.synthetic_classes))), splits, None)
    with accelerator.main_process_first():
        main = accelerator.is_main_process
        index = find_index(find_root(data.root, main), data.exif, main)
    splits = make_splits(
        index,
        seed=data.split_seed,
        meta=data.meta_fraction,
        select=data.select_fraction,
        test=data.test_fraction,
        files=None if data.splits is None else Path(data.splits),
    )
    given = index.labels
    if data.labels is not None:
        index = with_labels(index, splits, Path(data.labels))
    return DataParts(index.classes, splits, index, given)


def training_loader(recipe: Recipe, accelerator: Accelerator, parts: DataParts, order: Order) -> Loader:
    """The loader of the training split."""
    crop = Crop(recipe.data.crop, recipe.data.img_size, recipe.data, recipe.run.seed)
    return _loader(recipe, accelerator, parts, parts.splits.train, crop, order.largest_piece())


def evaluation_loader(recipe: Recipe, accelerator: Accelerator, parts: DataParts, ids: Ids) -> Loader:
    """A loader of the images `ids` as they are evaluated."""
    # Images that are trained on whole are evaluated whole.
    kind = "whole" if recipe.data.crop == "whole" else "center"
    crop = Crop(kind, recipe.eval.img_size or recipe.data.img_size, recipe.data, recipe.run.seed)
    return _loader(recipe, accelerator, parts, ids, crop, recipe.eval.batch_size)


def meta_loader(recipe: Recipe, accelerator: Accelerator, parts: DataParts) -> Loader:
    """The loader of the meta split: cut as evaluation images are, at the size that is trained on."""
    kind = "whole" if recipe.data.crop == "whole" else "center"
    crop = Crop(kind, recipe.data.img_size, recipe.data, recipe.run.seed)
    return _loader(recipe, accelerator, parts, parts.splits.meta, crop, recipe.meta.batch_size)


def _loader(
    recipe: Recipe, accelerator: Accelerator, parts: DataParts, ids: Ids, crop: Crop, largest_batch: int
) -> Loader:
    data, device = recipe.data, accelerator.device
    if parts.index is None:
        return SyntheticLoader(data, crop.side, recipe.run.seed, device)
    if not len(ids):
        raise DataError("the split is empty; choose another one, or set data.select_fraction or data.meta_fraction")
    threads = _threads(recipe, accelerator)
    sizes: dict[str, Any] = {"largest_batch": largest_batch, "threads": threads, "device": device}
    source: Any  # what ResidentLoader asks for, from files or shards
    if isinstance(parts.index, ShardIndex):
        source = shard_loader(parts.index, data, crop, **sizes)
    else:
        source = DaliLoader(parts.index, data, crop, **sizes)
    return ResidentLoader(source, ids) if data.loader == "resident" else source


def _threads(recipe: Recipe, accelerator: Accelerator) -> int:
    cores = len(os.sched_getaffinity(0))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return recipe.data.threads or max(1, cores // local)
