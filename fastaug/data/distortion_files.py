"""The folder of a distortion: lists for data.splits, a file for data.labels, and the truth, for evaluation alone.

    labels.tsv         the wrong labels, for data.labels
    splits/*.txt       train, meta, select and test, for data.splits
    control/*.txt      the same with the meta split in train: a fair control, which sees the same clean images
    clean/*.txt        the meta split alone in train: what the clean images are worth by themselves
    truth.tsv          id and true class of every training image; no training reads it
    distortion.json    what was asked for, what was drawn, by class too, and the fingerprint of the images

The same arguments write the same bytes. Another distortion does not replace one that runs may have been trained on.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastaug.atomic_files import write_atomically
from fastaug.data.distortion import Distorted, Ids
from fastaug.data.index import Index
from fastaug.data.label_files import label_lines, with_labels
from fastaug.data.splits import ROLES, SHARED, Splits
from fastaug.errors import DataError


@dataclass(frozen=True)
class Drawn:
    """A distortion of the images of `index`, whose labels are the true ones, and the splits that it makes.

    `arguments` are what it was drawn by, for distortion.json.
    """

    index: Index
    splits: Splits
    distorted: Distorted
    arguments: Mapping[str, Any]


def images_fingerprint(index: Index) -> str:
    """SHA-256 of paths and labels of all images: ids mean the same images where it is the same."""
    digest = hashlib.sha256(index.paths.offsets.astype("<i8").tobytes())
    digest.update(index.paths.blob)
    digest.update(index.labels.astype("<i8").tobytes())
    return digest.hexdigest()


def write_distortion(folder: Path, drawn: Drawn) -> dict[str, Any]:
    """Writes the folder, and gives what is in distortion.json; DataError where `folder` holds another one."""
    index, found, splits = drawn.index, drawn.distorted, drawn.splits
    record = {**drawn.arguments, **figures(drawn), "images": images_fingerprint(index)}
    _refuse_another(folder, record)
    names = index.classes
    files = {
        "labels.tsv": label_lines(found.ids, [names[label] for label in found.labels]),
        "truth.tsv": label_lines(found.train, [names[label] for label in index.labels[found.train]]),
        **{f"splits/{name}": text for name, text in _lists(splits).items()},
    }
    if splits.meta_shares != "test":  # its control would train on the test split
        none = splits.meta[:0]
        control = replace(splits, train=np.union1d(splits.train, splits.meta), meta=none, meta_shares=None)
        files |= {f"control/{name}": text for name, text in _lists(control).items()}
    if splits.meta_shares is None and len(splits.meta):
        clean = replace(splits, train=splits.meta, meta=splits.meta[:0])
        files |= {f"clean/{name}": text for name, text in _lists(clean).items()}
    files["distortion.json"] = (json.dumps(record, indent=2) + "\n").encode()  # last: it says that all are there
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, content)
    return record


def _lists(splits: Splits) -> dict[str, bytes]:
    """The text of each list; one without a line empties a split that the folders name."""
    texts = {role: b"".join(b"%d\n" % i for i in splits.of(role)) for role in ROLES}
    for line, role in SHARED.items():
        if role == splits.meta_shares:
            texts["meta"] = line + b"\n"
    return {f"{role}.txt": text for role, text in texts.items()}


def _refuse_another(folder: Path, record: Mapping[str, Any]) -> None:
    file = folder / "distortion.json"
    if not file.exists():
        return
    before, now = _read_record(file), json.loads(json.dumps(record))
    if before != now:
        names = [name for name in (*now, *before) if before.get(name) != now.get(name)]
        text = f"{file}: is of another distortion, with another {names[0]}"
        raise DataError(f"{text}, and runs may have been trained on it; choose another --out, or remove the folder")


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); draw the distortion again, into another folder") from error
    if not isinstance(record, dict):
        raise DataError(f"{file}: is no record of a distortion; draw it again, into another folder")
    return record


def figures(drawn: Drawn) -> dict[str, Any]:
    """What was drawn: training images, those with a wrong label and the rates, in all and by class."""
    index, found = drawn.index, drawn.distorted
    size = len(index.classes)
    true = np.bincount(index.labels[found.train], minlength=size)
    wrong = np.bincount(index.labels[found.ids], minlength=size)
    given = true - wrong + np.bincount(found.labels, minlength=size)
    half = size // 2
    rare, common = int(true[half:].sum()), int(true[:half].sum())
    by_class = {
        os.fsencode(name).decode(errors="backslashreplace"): {"images": n, "wrong": w, "labelled": g}
        for name, n, w, g in zip(index.classes, true.tolist(), wrong.tolist(), given.tolist(), strict=True)
    }
    return {
        "training_images": len(found.train),
        "wrong_labels": len(found.ids),
        "realised_noise": len(found.ids) / max(len(found.train), 1),
        "realised_imbalance": common / rare if rare else None,
        "classes": by_class,
    }


def read_truth(folder: Path, index: Index) -> tuple[Ids, Ids]:
    """Ids and true labels of the training images of a distortion: for evaluation alone.

    DataError when they were drawn of other images than those of `index`, whose labels are those of the folders.
    """
    if not (folder / "distortion.json").exists():
        raise DataError(f"{folder}: holds no distortion, it has no distortion.json; name a folder that was drawn into")
    record, file = _read_record(folder / "distortion.json"), folder / "truth.tsv"
    if record.get("images") != images_fingerprint(index):
        text = f"{file}: is about other images than data.root has now ({index.root}): a path or a class has changed"
        raise DataError(f"{text}; name the folder of the distortion drawn of these")
    named = [line.split(b"\t", 1)[0] for line in _lines(file)]
    if not all(word.isdigit() and int(word) < len(index) for word in named):
        raise DataError(f"{file}: names images by other words than ids below {len(index)}; draw the distortion again")
    ids, none = np.array(sorted(map(int, named)), dtype=np.int64), np.empty(0, np.int64)
    return ids, with_labels(index, Splits(ids, none, none, none), file).labels[ids]


def _lines(file: Path) -> list[bytes]:
    try:
        return [line for line in file.read_bytes().split(b"\n") if line]
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}); draw the distortion again") from error
