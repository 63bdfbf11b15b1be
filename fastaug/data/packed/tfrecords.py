"""TFRecord files of tf.train.Example messages, as the writers of ImageNet and TensorFlow Datasets make them.

A record is its length (uint64), the length's CRC, the message and the message's CRC, little-endian. All of a file is
read once, for its CRCs, when the index is made. The image is the feature image/encoded or image, or the one that
data.input_key names; the label image/class/synset, image/class/label or label, or data.target_key's. Names of classes
are those of LABEL.labels.txt beside, in its order, where label is a number and there is such a file. Ids follow the
files in the order of their paths, each in its own.
"""

import json
import mmap
import os
import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastaug.data.class_names import shown
from fastaug.data.packed.crc32c import masked_crc32c
from fastaug.data.packed.places import files_of
from fastaug.data.packed.records import Container, Contents, Found, Keys, Record, number_or_text, one_of, refuse
from fastaug.errors import DataError

AGAIN = "download or copy it again"
IMAGES = ("image/encoded", "image")
LABELS = ("image/class/synset", "image/class/label", "label")
NAMES = ("image/filename", "file_name", "filename")
_NUMBERED = re.compile(r".*-\d{5}-of-\d{5}")
_BYTES, _FLOATS, _INTEGERS = 1, 2, 3  # the kinds of a Feature, by field number


class Feature(NamedTuple):
    """A feature of an Example: whole numbers, or where its byte strings lie, (begin, end)."""

    numbers: list[int]
    spans: list[tuple[int, int]]


def find(place: str) -> Found:
    """The files whose name has "tfrecord", or ends in -NNNNN-of-MMMMM, and the descriptions that TFDS puts beside."""
    found = files_of(place, "tfrecord", _is_one)
    folders = sorted({file.path.parent for file in found.files})
    names = [path for folder in folders for path in sorted(folder.glob("*.labels.txt"))]
    infos = [path for folder in folders if (path := folder / "dataset_info.json").is_file()]
    return replace(found, beside=(*names, *infos))


def _is_one(name: str) -> bool:
    plain = not name.endswith((".json", ".txt", ".md", ".py", ".idx", ".index"))
    return plain and bool("tfrecord" in name.lower() or _NUMBERED.fullmatch(name))


def read(found: Found, keys: Keys) -> Contents:
    """The examples of all files; DataError for a broken CRC, and for other numbers than TFDS says."""
    examples = _Examples(keys)
    records: list[Record] = []
    counts: dict[str, int] = {}
    for number, file in enumerate(found.files):
        rows = list(examples.of(file, number))
        counts[file.path.name] = len(rows)
        records += rows
    for path in found.beside:
        if path.name == "dataset_info.json":
            _refuse_other_counts(path, counts)
    classes = _names_of(examples.label, found.beside) if keys.labelled else None
    if classes is not None:
        records = _named(records, classes)
    return Contents(records, classes, " or ".join((keys.label,) if keys.label else LABELS))


def framed(path: Path) -> Iterator[tuple[mmap.mmap, int, int]]:
    """Where each message of a TFRecord file begins and ends, and the mapped file; DataError for a broken CRC."""
    with _mapped(path) as data:
        at = number = 0
        while at < len(data):
            where = f"data.root: {path}, record {number}"
            if len(data) - at < 12:
                raise DataError(f"{where}: the file ends in its head: cut short; {AGAIN}")
            length, check = struct.unpack_from("<QI", data, at)
            if masked_crc32c(np.frombuffer(data, np.uint8, 8, at)) != check:
                packed = data[:2] == b"\x1f\x8b" or data[:1] == b"\x78"
                remedy = "unpack it first, for it looks compressed" if packed and not at else AGAIN
                raise DataError(f"{where}: the CRC of its length is broken, or this is no TFRecord file; {remedy}")
            begin, end = at + 12, at + 12 + length
            if end + 4 > len(data):
                raise DataError(f"{where}: {length} bytes, of which {len(data) - begin} are there: cut short; {AGAIN}")
            if masked_crc32c(np.frombuffer(data, np.uint8, length, begin)) != struct.unpack_from("<I", data, end)[0]:
                raise DataError(f"{where}: the CRC of its {length} bytes is broken; {AGAIN}")
            yield data, begin, end
            at, number = end + 4, number + 1


@contextmanager
def _mapped(path: Path) -> "Iterator[mmap.mmap]":
    """A file in memory that is read as it is asked for; an empty one is refused."""
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise DataError(f"data.root: {path} is empty; {AGAIN}")
            yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped when nothing looks at it any more
    except OSError as error:
        raise DataError(f"data.root: {path} cannot be read ({error.strerror}); check the storage") from error


def features_of(data: mmap.mmap, begin: int, end: int) -> dict[str, Feature]:
    """The features of a tf.train.Example message in data[begin:end], by name; ValueError for anything else."""
    features: dict[str, Feature] = {}
    for field, value in _fields(data, begin, end):
        for entry, pair in _fields(data, *_span(value)) if field == 1 else ():
            if entry != 1:
                continue
            name, feature = "", Feature([], [])
            for part, inner in _fields(data, *_span(pair)):
                first, last = _span(inner)
                if part == 1:
                    name = data[first:last].decode()
                elif part == 2:
                    feature = _feature(data, first, last)
            features[name] = feature
    return features


def _feature(data: mmap.mmap, begin: int, end: int) -> Feature:
    feature = Feature([], [])
    for kind, values in _fields(data, begin, end):
        for field, value in _fields(data, *_span(values)) if kind in (_BYTES, _INTEGERS) else ():
            if field != 1:
                continue
            if kind == _BYTES:
                feature.spans.append(_span(value))
            elif isinstance(value, int):
                feature.numbers.append(_signed(value))
            else:  # packed
                at, last = value
                while at < last:
                    number, at = _varint(data, at, last)
                    feature.numbers.append(_signed(number))
    return feature


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
    """The fields of a protocol buffer message: number, and its integer or where its bytes lie."""
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at, end)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at, end)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        if at + length > end:
            raise ValueError("a field that ends behind its message")
        yield tag >> 3, (at, at + length)
        at += length


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
    raise ValueError("an integer without an end")


def _span(value: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, int):
        raise ValueError("an integer in place of bytes")
    return value


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


class _Examples:
    """Reads examples; `image` and `label` are the features that the first one has them in."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.image = self.label = ""

    def of(self, file: Container, number: int) -> Iterator[Record]:
        """The records of one file."""
        row = 0
        for row, (data, begin, end) in enumerate(framed(file.path)):
            where = f"{file.path}, record {row}"
            try:
                features = features_of(data, begin, end)
                self._choose(where, features, data)
                label = _label(features.get(self.label), data) if self._keys.labelled else None
                first, last = _image(features.get(self.image))
            except ValueError as error:
                text = f"data.root: {where}: not an example with an image in {self.image or IMAGES[0]} ({error})"
                raise DataError(f"{text}; write tf.train.Example, or name the feature in data.input_key") from error
            name = next((_text(found, data) for key in NAMES if (found := features.get(key))), "")
            yield Record(f"{file.name}:{row}{name and ':'}{name}", label, file.split, number, first, last - first)

    def _choose(self, where: str, features: dict[str, Feature], data: mmap.mmap) -> None:
        if not self.image:
            wanted = (self._keys.image,) if self._keys.image else IMAGES
            found = [key for key in wanted if key in features and features[key].spans][:1]
            self.image = one_of(where, f"image in {' or '.join(wanted)}", found, "data.input_key", features)
            if self._keys.labelled:
                labels = (self._keys.label,) if self._keys.label else LABELS
                self.label = next((key for key in labels if _label(features.get(key), data) is not None), labels[0])


def _image(feature: Feature | None) -> tuple[int, int]:
    if feature is None or len(feature.spans) != 1:
        raise ValueError(f"{0 if feature is None else len(feature.spans)} byte strings there")
    return feature.spans[0]


def _label(feature: Feature | None, data: mmap.mmap) -> str | None:
    if feature is None or not (feature.numbers or feature.spans):
        return None
    if len(feature.numbers) + len(feature.spans) > 1:
        raise ValueError("several labels")
    return number_or_text(feature.numbers[0] if feature.numbers else _text(feature, data))


def _text(feature: Feature, data: mmap.mmap) -> str:
    return data[slice(*feature.spans[0])].decode() if feature.spans else ""


def _names_of(label: str, beside: Sequence[Path]) -> tuple[str, ...] | None:
    """The names of classes in LABEL.labels.txt, in its order; None without one."""
    wanted = f"{label.replace('/', '-')}.labels.txt"
    for path in beside:
        if path.name == wanted:
            names = _lines(path)
            twice = [name for name, count in Counter(names).items() if count > 1]
            refuse(path, twice, "names that stand twice", "give every class a name of its own")
            return names
    return None


def _lines(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(path.read_text(encoding="utf-8").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.root: {path} cannot be read ({error}); {AGAIN}") from error
    return names[:-1] if names and not names[-1] else names


def _named(records: list[Record], classes: tuple[str, ...]) -> list[Record]:
    """The records with the names of their classes; -1 says that one has none."""
    names: dict[str | None, str | None] = {str(number): name for number, name in enumerate(classes)}
    names |= {None: None, "-1": None}
    if (odd := next((record for record in records if record.label not in names), None)) is not None:
        text = f"data.root: {odd.name} has label {shown(odd.label or '')}, and {len(classes)} classes have names"
        raise DataError(f"{text}; download the set again")
    return [record._replace(label=names[record.label]) for record in records]


def _refuse_other_counts(info: Path, counts: dict[str, int]) -> None:
    """DataError where TFDS' description gives a split, of which files are here, another number of examples."""
    try:
        described = json.loads(info.read_bytes())
        said = {split["name"]: sum(map(int, split["shardLengths"])) for split in described["splits"]}
        name = described["name"]
    except (OSError, ValueError, LookupError, TypeError):
        return  # another file of that name
    found = {split: [n for file, n in counts.items() if file.startswith(f"{name}-{split}.")] for split in said}
    wrong = [f"{s} ({sum(found[s])}, not {n})" for s, n in said.items() if found[s] and sum(found[s]) != n]
    refuse(info, wrong, "splits of other numbers of examples than it says", "download the set again")
