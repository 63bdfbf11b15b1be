"""Builds index and loaders from a data root; the classes and splits of a run."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch

from fastaug.data.channel_files import reads_channels
from fastaug.data.class_names import outputs_of
from fastaug.data.image_files import Colour
from fastaug.data.image_headers import Status
from fastaug.data.index import Index, load_index
from fastaug.data.listing import USUAL, Listing
from fastaug.data.loaders.base import Crop, Loader, Loading
from fastaug.data.loaders.dali import DaliLoader
from fastaug.data.loaders.grey import GreyLoader
from fastaug.data.loaders.multichannel import ChannelLoader
from fastaug.data.loaders.resident import ResidentLoader
from fastaug.data.loaders.shards import RawShardLoader, shard_loader
from fastaug.data.loaders.synthetic import SyntheticLoader
from fastaug.data.packed.index import PackedIndex, PackedSet, load_packed
from fastaug.data.packed.records import NO_KEYS, Keys
from fastaug.data.planting import Planted
from fastaug.data.sampler import Ids
from fastaug.data.shards.layout import ShardIndex, is_shard_folder, open_shards
from fastaug.data.sources.arrays import KINDS, materialize_arrays
from fastaug.data.sources.embedded import materialize
from fastaug.data.sources.listed import LISTED, ListedSet
from fastaug.data.splits import Splits
from fastaug.errors import DataError

EMBEDDED = "embedded"
PACKED = ("wds", "tfrecord", "hfds", "parquet")
FINGERPRINT = 2  # the version of what DataParts.fingerprint covers


@dataclass(frozen=True)
class DataParts:
    """Classes and splits of a run's data; `index` is None for synthetic data.

    `folder_labels` are those of the class folders, the labels of `index` unless data.labels replaces some.
    """

    classes: tuple[str, ...]
    splits: Splits
    index: Index | None
    folder_labels: Ids | None = None
    planted: Planted | None = None  # labels of training images that were flipped on purpose
    learned_on: str | None = None  # the fingerprint that they had while something was learned; see `with_meta`
    clean: Ids = field(default_factory=lambda: np.empty(0, dtype=np.int64))  # what train has of the meta split

    def with_meta(self) -> "DataParts":
        """The same data with the meta split in the training split, as where nothing is learned from it any more.

        DataError where the meta split is the test split.
        """
        splits, none = self.splits, self.splits.meta[:0]
        if splits.meta_shares == "test":
            text = "data.splits: its meta split is the test split, which parts that only act would train on"
            raise DataError(f"{text}; give splits of their own to runs with meta.frozen or meta.reuse")
        joined = replace(splits, train=np.union1d(splits.train, splits.meta), meta=none, meta_shares=None)
        return replace(self, splits=joined, learned_on=self.fingerprint(learns=True), clean=splits.meta)

    def given_labels(self) -> Ids:
        """The labels of all images as they were given: those of `index` without what was flipped on purpose."""
        assert self.index is not None
        if self.planted is None:
            return self.index.labels
        labels = self.index.labels.copy()
        labels[self.planted.ids] = self.planted.given
        return labels

    def multi_hot(self, device: torch.device) -> torch.Tensor | None:
        """uint8 [N, C] by id: the classes of images that have any number of them; None where each has one."""
        if self.index is None or self.index.multi_hot is None:
            return None
        return torch.from_numpy(self.index.multi_hot).to(device)

    def held_out(self) -> list[str]:
        """The splits that can be evaluated."""
        return [name for name in ("select", "test") if len(self.splits.of(name))]

    def for_network(self, trained: Sequence[str]) -> "DataParts":
        """The same images with labels as outputs of a network trained on the classes `trained`, matched by name.

        These data may lack some of its classes; DataError when they have others.
        """
        outputs, names = outputs_of(self.classes, trained), tuple(trained)
        index = None if self.index is None else replace(self.index, classes=names, labels=outputs[self.index.labels])
        if index is not None and index.multi_hot is not None:
            multi_hot = np.zeros((len(index), len(names)), dtype=np.uint8)
            multi_hot[:, outputs] = index.multi_hot
            index = replace(index, multi_hot=multi_hot)
        given = None if self.folder_labels is None else outputs[self.folder_labels]
        planted = None if self.planted is None else self.planted._replace(given=outputs[self.planted.given])
        return replace(self, classes=names, index=index, folder_labels=given, planted=planted)

    def unseen_classes(self) -> dict[str, list[str]]:
        """The classes of which train, or test, has no image that can be read, by split."""
        if self.index is None:
            return {}
        readable, found = self.index.status == Status.OK, {}
        for role in ("train", "test"):
            ids = self.splits.of(role)
            seen = ids[readable[ids]]
            counts = np.bincount(self.index.labels[seen], minlength=len(self.classes))
            counts = counts if self.index.multi_hot is None else self.index.multi_hot[seen].sum(0)
            found[role] = [self.classes[label] for label in np.flatnonzero(counts == 0)]
        return {role: names for role, names in found.items() if names}

    def name_of(self, sample: int) -> str:
        """The path of image `sample` as text."""
        return "" if self.index is None else os.fsdecode(self.index.path(sample)).encode(errors="replace").decode()

    def fingerprint(self, *, learns: bool = False) -> str:
        """SHA-256 of all that training depends on in the data: tells whether a run continues as it would have gone on.

        That is each training image's id, which draws are made for, relative path and label; with `learns` those of the
        meta split too. Images that are only evaluated may come and go, unless they move the ids of these: ids are row
        numbers in the order of paths. Shards count as other data than the originals: their pixels differ.
        """
        digest = hashlib.sha256()
        for ids in (self.splits.train, self.splits.meta) if learns else (self.splits.train,):
            digest.update(len(ids).to_bytes(8) + ids.tobytes())
            if self.index is not None:
                digest.update(self.index.labels[ids].tobytes())
                if self.index.multi_hot is not None:
                    digest.update(self.index.multi_hot[ids].tobytes())
                digest.update(np.diff(self.index.paths.offsets)[ids].tobytes())
                for run in np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1) if len(ids) else []:
                    first, last = self.index.paths.offsets[run[0]], self.index.paths.offsets[run[-1] + 1]
                    digest.update(self.index.paths.blob[first:last])
        self._add_pixels(digest)
        return f"{FINGERPRINT}:{digest.hexdigest()}"

    def trains_as(self, fingerprint: str, *, learns: bool = False) -> bool:
        """Whether training on these data is training on those of `fingerprint`, which 0.1.0 may have made."""
        if fingerprint.startswith(f"{FINGERPRINT}:"):
            return fingerprint == self.fingerprint(learns=learns)
        digest = hashlib.sha256(self.splits.train.tobytes())  # 0.1.0: with the paths of all images of the index
        if self.index is not None:
            digest.update(self.index.paths.blob)
            digest.update(self.index.labels.tobytes())
        self._add_pixels(digest)
        return fingerprint == digest.hexdigest()

    def _add_pixels(self, digest: "hashlib._Hash") -> None:
        if isinstance(self.index, ShardIndex):
            digest.update(self.index.settings.pixels())


def find_root(
    root: str, progress: bool, table: Path | None = None, *, keys: Keys = NO_KEYS, verify: bool = True
) -> Path | PackedSet | ListedSet:
    """The image folder, or the set in another form, that data.root names; arrays are written as a folder first.

    "": that of the `table`. `keys`: where a packed set has images and labels. `verify`: published sets must be whole.
    """
    if not root and table is not None:
        return table.parent
    kind, source = named_set(root)
    if kind in PACKED:
        return PackedSet(kind, source, keys)
    if keys != NO_KEYS:
        text = "data.input_key and data.target_key: name parts of the records of a packed set"
        raise DataError(f"{text} ({', '.join(PACKED)}), and data.root is {root}; leave them out")
    if kind == EMBEDDED:
        return materialize(source, progress=progress)
    if kind in KINDS:
        return materialize_arrays(kind, source, progress=progress, verify=verify)
    if kind in LISTED:
        return LISTED[kind](source, verify)
    return Path(root)


def named_set(root: str) -> tuple[str, str]:
    """The kind of set that data.root names, and its place; "" and the root for a folder. DataError for other kinds."""
    kind, colon, place = root.partition(":")
    known = (EMBEDDED, *KINDS, *LISTED, *PACKED)
    if kind in known and colon:
        if not place:
            raise DataError(f"data.root: {root} names no place; write {kind}:PLACE")
        return kind, place
    if os.path.exists(os.path.expanduser(root)):
        return "", root
    if slashed := _TIMM.fullmatch(root):
        prefix, name = slashed.groups()
        ours = {"torch": "KIND:FOLDER, KIND one of cifar10, cifar100, mnist, svhn", "tfds": "tfrecord:FOLDER"}
        written = ours.get(prefix, f"{prefix}:FOLDER")
        theirs = f"{prefix}/NAME"
        if prefix == "torch" and name in ("image_folder", "imagenet"):
            theirs, written = root, "as the path of the folder alone"
        text = f"if it is a folder, correct the path; what is {theirs} in timm is written {written} here"
        raise DataError(f"data.root: {root} is not there; {text}")
    if colon and _WORD.fullmatch(kind):
        near = get_close_matches(kind, known, 1, 0.5)
        meant = f"did you mean {near[0]}:{place}? known" if near else "known"
        raise DataError(f"data.root: {root} is not there, and {kind} is no kind of set; {meant}: {', '.join(known)}")
    return "", root


_TIMM = re.compile(r"(hfds|wds|tfds|torch)/(.*)")
_WORD = re.compile(r"[A-Za-z][\w-]+")


def find_index(
    root: Path | PackedSet | ListedSet,
    exif: str,
    progress: bool,
    listing: Listing = USUAL,
    background: Colour | None = None,
) -> Index:
    """The index of an image folder, a packed set or a shard folder; DataError where shards were made otherwise."""
    if reads_channels(listing.channels) and (not isinstance(root, Path) or is_shard_folder(root)):
        text = f"data.channels: {listing.channels} channels are read from single files, and {root} is packed"
        raise DataError(f"{text}; name a folder or a table of images, or set data.channels to 3")
    if not isinstance(root, Path):
        if listing != replace(USUAL, class_map=listing.class_map):
            text = f"data.root: {root} has its own images, labels and splits"
            raise DataError(f"{text}; leave out data.table, data.class_level and data.multi_label")
        if isinstance(root, PackedSet):
            return load_packed(root, exif=exif, progress=progress, class_map=listing.class_map)
        return load_index(root.root, exif=exif, progress=progress, listing=replace(listing, table=root.table))
    if not is_shard_folder(root):
        return load_index(root, exif=exif, progress=progress, listing=listing)
    if listing != USUAL:
        text = f"data.root: the shards in {root} have the classes and splits that they were made with"
        raise DataError(f"{text}; leave data.table, data.class_level and data.class_map to tools/make_shards.py")
    return open_shards(root, exif, background)


def synthetic_parts(images: int, classes: int, tested: int) -> DataParts:
    """Random pixels in place of a set: all ids train, the first `tested` of them are tested too."""
    ids = np.arange(images, dtype=np.int64)
    splits = Splits(train=ids, meta=ids[:0], select=ids[:0], test=ids[:tested])
    return DataParts(tuple(map(str, range(classes))), splits, None)


def build_loader(parts: DataParts, ids: Ids, crop: Crop, loading: Loading, *, resident: bool = False) -> Loader:
    """The loader of the images `ids`; `resident`: decoded once and kept. DataError when there are none."""
    loader = _decoding_loader(parts, ids, crop, loading, resident)
    return GreyLoader(loader) if crop.channels == 1 else loader


def _decoding_loader(parts: DataParts, ids: Ids, crop: Crop, loading: Loading, resident: bool) -> Loader:
    if parts.index is None:
        return SyntheticLoader(len(parts.classes), crop, loading)
    if not len(ids):
        raise DataError("the split is empty; choose another one, or set data.select_fraction or data.meta_fraction")
    source = loading
    if resident and loading.transform is not None:  # kept on the host, as they are before the transform
        source = replace(loading, transform=None, device=torch.device("cpu"))
    loader: DaliLoader | RawShardLoader | ChannelLoader
    if reads_channels(crop.channels):
        loader = ChannelLoader(parts.index, crop, source)
    elif isinstance(parts.index, PackedIndex):
        loader = shard_loader(parts.index, crop, source)
    else:
        loader = DaliLoader(parts.index, crop, source)
    return ResidentLoader(loader, ids, loading) if resident else loader
