"""Label maps: files that say what counts as right, in place of the one label of an image.

Accepted labels, as ReaL's (Beyer et al., arXiv:2006.07159): for every image of the split any number of labels; with
none an image is left out. JSON, {"images": {IMAGE: [LABEL, ...]}}, or a list of lists for the images in the order of
their file names (ReaL's own file); or a table with the columns `image` and `labels`, a bar between several.

A part of the outputs, as of ImageNet-A and -R (200 of 1,000 classes): JSON, {"classes": [LABEL, ...]}. The likeliest of
these outputs is the prediction; images of other classes are left out.

IMAGE is a path relative to the data root, or an id. LABEL is the name of a class, or, as a number of JSON, an output.
"""

import difflib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor

from fastaug.data.build import DataParts
from fastaug.data.class_names import shown, some
from fastaug.data.sheets import ENDINGS, read_sheet
from fastaug.data.splits import id_of
from fastaug.distributed import gathered
from fastaug.errors import DataError

Ids = npt.NDArray[np.int64]
KEY = "label map"
_IMAGE_ALIASES = ("path", "file", "filename", "file_name")


class LabelMap(NamedTuple):
    """What counts as right: `accepted` outputs of each image that counts, and the `outputs` that may be predicted."""

    kind: str
    accepted: dict[int, frozenset[int]]
    outputs: list[int]
    left_out: int


def read_label_map(file: Path, parts: DataParts, ids: Ids) -> LabelMap:
    """The label map of a file for the images `ids`; DataError for images or labels that it names and nobody knows."""
    reader = _Reader(file, parts, ids)
    if file.suffix.lower() in ENDINGS:
        return reader.table()
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:  # that it is no text, too
        raise DataError(f"{KEY}: {file} cannot be read as JSON ({error}); correct it or name another") from error
    if isinstance(found, list):
        return reader.by_file_name(found)
    kinds = {"images": (dict, reader.by_image), "classes": (list, reader.part_of_outputs)}
    if not isinstance(found, dict) or len(found) != 1 or next(iter(found)) not in kinds:
        raise DataError(
            f'{KEY}: {file} must be {{"images": {{IMAGE: [LABEL, ...]}}}}, {{"classes": [LABEL, ...]}} or a list of '
            "lists of labels; write it so"
        )
    ((name, content),) = found.items()
    form, read = kinds[name]
    if not isinstance(content, form):
        raise DataError(f"{KEY}: {file}: {name!r} must hold a {'mapping' if form is dict else 'list'}; write it so")
    result: LabelMap = read(content)
    return result


class _Reader:
    """The contents of one file, understood for the images `ids` and the outputs of a network."""

    def __init__(self, file: Path, parts: DataParts, ids: Ids) -> None:
        self.file, self.parts, self.ids = file, parts, ids
        self.output = {name: place for place, name in enumerate(parts.classes)}
        assert parts.index is not None
        self.index = parts.index

    def table(self) -> LabelMap:
        sheet = read_sheet(self.file, KEY)
        images, labels = sheet.column("image", _IMAGE_ALIASES), sheet.column("labels", ("label",))
        assert images is not None
        assert labels is not None
        if again := [name for name, count in Counter(images).items() if count > 1]:
            raise DataError(f"{KEY}: {self.file} has images that stand twice: {some(again)}; keep one row of each")
        cells = ([label.strip() for label in cell.split("|") if label.strip()] for cell in labels)
        return self.by_image(dict(zip(images, cells, strict=True)))

    def by_image(self, content: Mapping[str, Any]) -> LabelMap:
        known = {path: i for i, path in enumerate(self.index.paths)}
        ids = {name: id_of(os.fsencode(name), known) for name in content}
        of_split = set(self.ids.tolist())
        if unknown := [name for name, sample in ids.items() if sample is None]:
            raise DataError(
                f"{KEY}: {self.file} names images that data.root does not have: {some(unknown)}; remove them"
            )
        accepted: dict[int, frozenset[int]] = {}
        for name, sample in ids.items():
            assert sample is not None
            if sample in accepted:
                raise DataError(f"{KEY}: {self.file} names {shown(name)} twice, by path and by id; keep one")
            accepted[sample] = self.outputs(content[name], shown(name))
        return self._accepted({sample: labels for sample, labels in accepted.items() if sample in of_split})

    def by_file_name(self, content: Sequence[Any]) -> LabelMap:
        names = {int(sample): os.path.basename(self.index.paths[int(sample)]) for sample in self.ids}
        if len(content) != len(names) or len(set(names.values())) != len(names):
            why = f"{len(content)} lists of labels for {len(names)} images"
            why = why if len(content) != len(names) else "images of one file name in several folders"
            raise DataError(f'{KEY}: {self.file}: {why}; write {{"images": {{IMAGE: [LABEL, ...]}}}}')
        order = sorted(names, key=names.__getitem__)
        pairs = zip(order, content, strict=True)
        return self._accepted({i: self.outputs(labels, os.fsdecode(names[i])) for i, labels in pairs})

    def part_of_outputs(self, content: Sequence[Any]) -> LabelMap:
        outputs = sorted(self.outputs(content, "classes"))
        if len(outputs) < 2:
            text = f"{len(outputs)} of the classes leave nothing to tell apart"
            raise DataError(f"{KEY}: {self.file}: {text}; name two or more")
        chosen = set(outputs)
        labels = {int(i): int(self.index.labels[i]) for i in self.ids}
        accepted = {i: frozenset([label]) for i, label in labels.items() if label in chosen}
        if not accepted:
            raise DataError(f"{KEY}: {self.file}: no image of the split is of one of its classes; name others")
        return LabelMap("classes", accepted, outputs, len(labels) - len(accepted))

    def outputs(self, labels: Any, where: str) -> frozenset[int]:
        """The outputs that a list of labels names."""
        if not isinstance(labels, list):
            raise DataError(f"{KEY}: {self.file}: {where} must have a list of labels, found {labels!r}; write one")
        return frozenset(self._output(label, where) for label in labels)

    def _output(self, label: Any, where: str) -> int:
        if isinstance(label, str) and label in self.output:
            return self.output[label]
        if type(label) is int and 0 <= label < len(self.output):
            return label
        names = difflib.get_close_matches(str(label), list(self.output), n=1, cutoff=0.0)
        raise DataError(
            f"{KEY}: {self.file}: {where}: {label!r} is no class of the network's {len(self.output)} and no output's "
            f"number; the nearest class is {shown(names[0])}"
        )

    def _accepted(self, accepted: dict[int, frozenset[int]]) -> LabelMap:
        if missing := [int(i) for i in self.ids if int(i) not in accepted]:
            names = some(os.fsdecode(self.index.paths[i]) for i in missing)
            raise DataError(
                f"{KEY}: {self.file} says nothing of {len(missing)} images of the split: {names}; give those that are "
                "not to count an empty list"
            )
        counted = {i: labels for i, labels in accepted.items() if labels}
        if not counted:
            raise DataError(f"{KEY}: {self.file} leaves all {len(accepted)} images out; give some a label")
        return LabelMap("images", counted, list(range(len(self.output))), len(accepted) - len(counted))


class MappedAccuracy:
    """Accuracy by a label map, over the images of all processes."""

    def __init__(self, label_map: LabelMap, device: torch.device) -> None:
        self.map = label_map
        self._outputs = torch.tensor(label_map.outputs, device=device)
        self._ids: list[Tensor] = [torch.empty(0, dtype=torch.int64, device=device)]
        self._predicted: list[Tensor] = [torch.empty(0, dtype=torch.int64, device=device)]

    def add(self, ids: Tensor, logits: Tensor, labels: Tensor) -> None:  # noqa: ARG002
        """Hears of a batch."""
        wrong = logits.isnan().any(1)
        predicted = self._outputs[logits[:, self._outputs].argmax(1)]
        self._ids.append(ids.to(logits.device))
        self._predicted.append(torch.where(wrong, -1, predicted))

    def figures(self, accelerator: Accelerator) -> dict[str, Any]:
        """The figures; every process must call this. DataError where no image that counts could be decoded."""
        ids, predicted = gathered(accelerator, torch.cat(self._ids), torch.cat(self._predicted))
        said = zip(ids.tolist(), predicted.tolist(), strict=True)
        hits = [output in self.map.accepted[i] for i, output in said if i in self.map.accepted]
        if not hits:
            raise DataError(f"{KEY}: no image that counts can be decoded; repair them or change data.root")
        left = {"outputs": len(self.map.outputs), "left_out": self.map.left_out}
        return {"kind": self.map.kind, "images": len(hits), **left, "top1": sum(hits) / len(hits)}
