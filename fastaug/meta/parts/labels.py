"""A learned soft label for every training image, kept in a table by id: all classes, or the few plausible ones."""

import math
from typing import Protocol

import torch
from torch import Tensor

from fastaug.augment.learned_effects import View
from fastaug.meta.learned_part import LearnedPart, Setting
from fastaug.meta.sample_tables import RowRMSprop, RowTable, RowUpdate, SampleTable, ScaleFreeStep, StoredTable
from fastaug.recipe.schema import Meta
from fastaug.targets import SoftTarget

SMOOTHING = 0.05  # of the labels at the start, AutoDO's
ALL, FEW = 32, 8  # so many classes are all kept, of more so many
SHOWN = 2**14  # images at most behind the figures of a log line, evenly spread: a table may have millions
MANY = 0.5  # so large a share of labels that are no longer the given ones is an alarm


def start_distance(classes: int) -> float:
    """By how much the given label's logit is above the others' at the start: the softmax is label smoothing of .05."""
    return math.log(1 - classes + classes / SMOOTHING)


class MirrorStep(ScaleFreeStep):
    """The scale-free step of label logits against the gradient in the probabilities (exponentiated gradient).

    The gradient in a logit vanishes with the class's probability: a class that is thought impossible would hardly ever
    come back. `sharing` [columns]: how many classes share each column's logit.
    """

    sharing: Tensor

    def __init__(self, lr: float, sharing: Tensor) -> None:
        super().__init__(lr)
        self.register_buffer("sharing", sharing.log(), persistent=False)

    def moved(self, rows: Tensor, gradient: Tensor, ids: Tensor) -> Tensor:
        """Where the `rows` go."""
        probability = torch.softmax(rows + self.sharing, 1).clamp_min(torch.finfo(rows.dtype).tiny)
        return super().moved(rows, gradient / probability, ids)


class LabelTable(SampleTable, Protocol):
    """A table of soft labels, whose rows are logits [n, classes]."""

    def likeliest(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest class of each of `ids` [n] and its probability, [n] each."""


class DenseLabels(RowTable):
    """A table of soft labels with a logit for every class."""

    def likeliest(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest class of each of `ids` [n] and its probability, [n] each."""
        probability, label = torch.softmax(self(ids), 1).max(1)
        return label, probability


class CompactLabels(StoredTable):
    """A table of soft labels over many classes: logits of `few` named ones, and one that all the others share.

    At the start that is the dense label: named are the given label and `few` - 1 that count as the others do. A class
    is named once it is wanted: in every step, the least likely named one, if it should fall, gives way to the one
    without a name that should rise most, which begins at what it had. So a label can be mended to any class.
    """

    names: Tensor

    def __init__(self, labels: Tensor, classes: int, few: int, table: RowTable) -> None:
        super().__init__()
        self.table, self.classes = table, classes
        named = (labels[:, None] + torch.arange(few, device=labels.device)) % classes
        self.register_buffer("names", named.to(torch.int16 if classes <= 2**15 else torch.int32))

    @property
    def update(self) -> RowUpdate:  # type: ignore[override]
        """What moves the logits."""
        return self.table.update

    @property
    def changed(self) -> Tensor:  # type: ignore[override]
        """Whose rows have changed since they were saved; names change with them."""
        return self.table.changed

    def rows(self, ids: Tensor) -> Tensor:
        """The logits of `ids` [n] written out [n, classes], a leaf."""
        logits, names = self.table(ids), self.names[ids.to(self.names.device)].long()
        return logits[:, -1:].repeat(1, self.classes).scatter(1, names, logits[:, :-1]).requires_grad_()

    def move(self, ids: Tensor, gradient: Tensor) -> None:
        """One step of the rows of `ids` [n] against their hypergradient [n, classes], and the change of names."""
        names = self.names[ids.to(self.names.device)].long()
        own, others = gradient.gather(1, names), gradient.scatter(1, names, 0)
        self.table.move(ids, torch.cat([own, others.sum(1, keepdim=True)], 1))
        self._rename(ids.to(self.names.device), names, own, gradient.scatter(1, names, torch.inf))

    def likeliest(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest of the named classes of each of `ids` [n] and its probability, [n] each."""
        logits = self.table(ids)
        rest = logits[:, -1] + math.log(self.classes - self.names.shape[1])
        best, place = logits[:, :-1].max(1)
        total = torch.logaddexp(torch.logsumexp(logits[:, :-1], 1), rest)
        return self.names[ids.to(place.device)].gather(1, place[:, None])[:, 0].long(), (best - total).exp()

    def _rename(self, ids: Tensor, names: Tensor, own: Tensor, others: Tensor) -> None:
        """Names classes that are wanted; `own` [n, few], `others` [n, classes]: hypergradients, inf where named."""
        logits = self.table.weight[ids]
        last = logits[:, :-1].argmin(1, keepdim=True)
        steepest, wanted = others.min(1, keepdim=True)
        changes = (own.gather(1, last) > 0) & (steepest < 0)
        self.names[ids] = names.scatter(1, last, torch.where(changes, wanted, names.gather(1, last))).to(self.names)
        begins = torch.where(changes, logits[:, -1:], logits.gather(1, last))
        self.table.weight[ids] = logits.scatter(1, last, begins)


class SampleLabels(LearnedPart):
    """A learned soft label softmax(S) for every training image (AutoDO's), moved with meta.labels_lr.

    S starts at d (onehot - 1/2), which is label smoothing of .05. A mixed sample has both images' labels, by their
    masses.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        if setting.labels is None:
            raise ValueError("labels start from those of the images, and these data have none")
        self._given = setting.labels.to(setting.device)
        trained = torch.arange(setting.images) if setting.trained is None else setting.trained
        self._shown = trained[:: -(-len(trained) // SHOWN)]
        few = setting.recipe.meta.labels_classes or (setting.classes if setting.classes <= ALL else FEW)
        self.table = label_table(setting.recipe.meta, setting.labels, setting.classes, few).to(setting.device)

    def tables(self) -> dict[str, SampleTable]:
        """The table of labels."""
        return {"labels": self.table}

    def target(self, target: SoftTarget, view: View) -> SoftTarget:
        """The target with the learned rows in place of the given classes."""
        return target._replace(rows=view.pairs(torch.softmax(view.rows["labels"], 1)))

    def summary(self) -> dict[str, float]:
        """Share of training images whose likeliest class is no longer the given one; mean of its probability."""
        label, probability = self.table.likeliest(self._shown)
        other = label != self._given[self._shown.to(label.device)]
        return {"label_changed": other.float().mean().item(), "label_confidence": probability.mean().item()}

    def per_sample(self) -> dict[str, Tensor]:
        """The likeliest class of every id, by number, and its probability."""
        label, probability = self.table.likeliest(torch.arange(len(self._given)))
        return {"learned_label": label, "learned_probability": probability}

    def alarms(self, summary: dict[str, float]) -> list[str]:
        """Labels of which half are no longer the given ones."""
        if summary["label_changed"] < MANY:
            return []
        return [
            f"{summary['label_changed']:.0%} of the training images have another label than was given: labels move "
            "too fast, or training and meta split contradict each other; lower meta.labels_lr, or look at samples.csv"
        ]


def label_table(meta: Meta, labels: Tensor, classes: int, few: int) -> DenseLabels | CompactLabels:
    """The table that starts from `labels` [size], dense unless `few` classes are less than all."""
    compact = few < classes
    start = torch.full((len(labels), few + 1 if compact else classes), -start_distance(classes) / 2)
    given = torch.zeros(len(labels), dtype=torch.long) if compact else labels.long()
    start.scatter_(1, given[:, None], start_distance(classes) / 2)
    sharing = torch.ones(start.shape[1])
    if compact:
        sharing[-1] = classes - few
    update: RowUpdate = MirrorStep(meta.labels_lr, sharing)
    if meta.table_optimizer == "rmsprop":
        update = RowRMSprop(meta.labels_lr, start)
    if compact:
        return CompactLabels(labels, classes, few, RowTable(start, update))
    return DenseLabels(start, update)
