"""How well learned labels mend wrong ones, where the truth is known: the shares repaired and spoiled."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fastaug.data.build import DataParts


def mended(parts: DataParts, figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Of the training images, whose labels data.labels may have replaced: what the learned ones made of them.

    `labels_repaired`: the share of wrong labels whose likeliest class became the true one, that of the folder;
    `labels_spoiled`: the share of right ones where it became another. Labels that run.plant flipped do not count.
    Nothing without learned labels or truth.
    """
    if parts.index is None or parts.folder_labels is None or "learned_label" not in figures:
        return {}
    ids = parts.splits.train
    if parts.planted is not None:
        ids = np.setdiff1d(ids, parts.planted.ids)
    learned = figures["learned_label"].cpu()[torch.from_numpy(ids)]
    given, true = (torch.from_numpy(labels[ids]) for labels in (parts.index.labels, parts.folder_labels))
    wrong, right = given != true, learned == true
    found = {}
    if wrong.any():
        found["labels_repaired"] = right[wrong].float().mean().item()
    if not wrong.all():
        found["labels_spoiled"] = (~right[~wrong]).float().mean().item()
    return found
