"""Statistics of every training image over a run, at most 32 bytes each: they tell wrong labels, free in every run.

Of each visit counts what the network said of the image in the training pass itself, so nothing is computed twice:

    probability        of the given label, mean over the visits
    other, its probability   the other class that was most probable over the visits, and its mean probability
    margin             logit of the given label less the largest other one, mean; below 0 the network disagrees
    cross_entropy      -log of the probability of the given label, mean
    forgotten          visits at which the label was no longer told right, and was at the visit before (Toneva et al.,
                       ICLR 2019)
    harm               sum of the derivatives of the validation loss in the image's loss weight, of meta steps
    visits

A mixed sample (CutMix, Mixup) counts for its base image where that has at least half of the mass, and is then judged
without the partner's class; else for nobody. Of several copies of an image in an update the first counts. An image
counts at most once an epoch, therefore.

The other class is found without a table over classes: two candidates an image. A candidate gains its probability at
every visit, exactly. Where the most probable other class is neither candidate, it takes its probability off the second,
and takes its place when that has none left (Misra and Gries 1982, weighted). So a candidate's mean is never above the
exact one, and below it by what its class had before it took the place and what others took off; a class that has over
half of what the most probable other classes have in sum is always a candidate.
"""

from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from fastaug.batch import Batch
from fastaug.recipe.schema import Recipe
from fastaug.targets import SoftTarget

PENDING = 64  # micro-batches that are kept before they are written to the table, and exchanged between processes
VISITS, FORGOTTEN = (1 << 18) - 1, (1 << 12) - 1  # largest numbers; beyond them nothing is counted any more
_GIVEN, _MARGIN, _OTHER, _OTHER_GIVEN, _CANDIDATES = range(5)  # columns of a pending row; two candidates
SUMS = ("probability", "margin", "cross_entropy", "harm")


class Said(NamedTuple):
    """What logits say of given labels, [N] each; probabilities as logarithms, `other` the likeliest other class."""

    given: Tensor
    margin: Tensor
    other: Tensor
    other_given: Tensor


def said(logits: Tensor, labels: Tensor) -> tuple[Said, Tensor]:
    """What logits [N, C] say of `labels` [N], and the log probabilities [N, C] that it was read from."""
    log = logits.float().log_softmax(1)
    given = log.gather(1, labels[:, None])
    top, other = log.scatter(1, labels[:, None], -torch.inf).max(1)
    return Said(given[:, 0], given[:, 0] - top, other, top), log


def without_partner(logits: Tensor, labels: Tensor, target: SoftTarget) -> tuple[Tensor, Tensor]:
    """Logits [N, C] with -inf for the class of a mixed sample's partner; which samples are mostly their base [N]."""
    n, classes = logits.shape
    mass, partner = target.mass[:n], target.classes[:n, 1]
    mixed = (partner != labels) & (mass[:, 1] > 0) & (partner < classes)
    there = torch.where(mixed, partner, labels)[:, None]
    kept = torch.where(mixed[:, None], -torch.inf, logits.gather(1, there))
    return logits.scatter(1, there, kept), (mass[:, 0] >= mass[:, 1]) | ~mixed


class TrainingRecord:
    """The statistics of all images, the same on every process whatever their number.

    Rows of micro-batches are kept on the device until they are `PENDING`, or the epoch ends, and then written, between
    two updates; no step waits for the device.
    """

    def __init__(self, size: int, classes: int, accelerator: Accelerator, largest: int, *, mixes: bool = True) -> None:
        """`size`: images; `largest`: samples of the largest micro-batch of any process; `mixes`: whether any is mixed.

        `classes` below 2^24.
        """
        self.size, self.classes, self.accelerator, self.largest = size, classes, accelerator, largest
        self.mixes = mixes
        kind = torch.int16 if classes <= torch.iinfo(torch.int16).max else torch.int32
        device = accelerator.device
        # One row more than images: what does not count is written there.
        self._sums = torch.zeros(len(SUMS), size + 1, device=device)
        self._masses = torch.zeros(2, size + 1, device=device)  # probability of the candidates, summed
        self._candidates = torch.full((2, size + 1), -1, dtype=kind, device=device)
        self._counts = torch.zeros(size + 1, dtype=torch.int32, device=device)  # visits, forgotten, right at the last
        self._rows: list[Tensor] = []  # [columns, largest] of each micro-batch, the ids [largest] beside them
        self._pending: list[Tensor] = []
        self._harms: list[Tensor] = []  # [largest] of each meta step, likewise
        self._harmed: list[Tensor] = []
        self._ids = torch.empty(0, dtype=torch.int64, device=device)  # the last of `_pending`, not padded
        self._epoch = -1
        self.knows_harm = False

    # ---- in the step ----

    def begin(self, epoch: int) -> None:
        """Writes what is pending if it is much, or of an epoch before; every process must call this before an update.

        Within an update nothing is written, so that `agreement` says the same to all that ask in it.
        """
        if epoch != self._epoch or len(self._rows) >= PENDING:
            self.flush()
        self._epoch = epoch

    @torch.no_grad()
    def add(self, batch: Batch, logits: Tensor, target: SoftTarget) -> None:
        """What the network said in training of a micro-batch under its augmented `target`; every process must call."""
        n = len(batch.ids)
        ids = torch.where(batch.draws == batch.ids, batch.ids, self.size).to(self._sums.device, non_blocking=True)
        logits = logits[:n, : self.classes].float()
        if self.mixes:
            logits, is_most = without_partner(logits, batch.labels, target)
            ids = torch.where(is_most, ids, self.size)
        found, log = said(logits, batch.labels)
        self._ids = torch.where(found.margin.isfinite(), ids, self.size)
        own = self._candidates[:, self._ids].long()
        candidates = torch.where(own >= 0, log.gather(1, own.clamp_min(0).T).exp().T, 0)
        self._rows.append(self._padded(torch.stack([*found, *candidates])))
        self._pending.append(self._padded(self._ids, self.size))

    @torch.no_grad()
    def add_harm(self, chosen: Tensor | None, harm: Tensor) -> None:
        """The derivatives of the validation loss in the weights of samples of the last micro-batch.

        `chosen`: their positions in it; None: all of them. Blank samples behind it do not count.
        """
        self.knows_harm = True
        ids = self._ids if chosen is None else self._ids[chosen.to(self._ids.device)]
        harm = harm[: len(ids)].float()
        known = harm.isfinite()
        self._harms.append(self._padded(torch.where(known, harm, 0)))
        self._harmed.append(self._padded(torch.where(known, ids, self.size), self.size))

    def _padded(self, values: Tensor, blank: float = 0) -> Tensor:
        """Values [..., n] of as many samples as the largest micro-batch has: processes need not ask for sizes then."""
        missing = self.largest - values.shape[-1]
        return values if not missing else torch.nn.functional.pad(values, (0, missing), value=blank)

    # ---- into the table ----

    @torch.no_grad()
    def flush(self) -> None:
        """Writes what is pending of all processes; every process must call this, after the same updates."""
        if self._rows:
            self._write(self._exchanged(self._pending), self._exchanged([rows.T for rows in self._rows]).T)
        if self._harms:
            self._sums[SUMS.index("harm"), self._exchanged(self._harmed)] += self._exchanged(self._harms)
        for kept in (self._rows, self._pending, self._harms, self._harmed):
            kept.clear()

    def _exchanged(self, kept: list[Tensor]) -> Tensor:
        found: Tensor = self.accelerator.gather(torch.cat(kept))
        return found

    def _write(self, ids: Tensor, values: Tensor) -> None:
        """Adds `values` [columns, n] to the rows of `ids` [n], each image once."""
        visits, forgotten, was_right = _unpacked(self._counts[ids])
        ids = torch.where(visits < VISITS, ids, self.size)
        given, margin = values[_GIVEN], values[_MARGIN]
        right = margin > 0
        self._sums[:3, ids] += torch.stack([given.exp(), margin, -given])
        lost = (was_right & ~right).int()
        self._counts[ids] = _packed(visits + 1, (forgotten + lost).clamp_max(FORGOTTEN), right)
        masses, candidates = self._masses[:, ids], self._candidates[:, ids].long()
        masses += values[_CANDIDATES:]
        other, mass = values[_OTHER].long(), values[_OTHER_GIVEN].exp()
        masses, candidates = _contest(masses, candidates, other, mass)
        self._masses[:, ids], self._candidates[:, ids] = masses, candidates.to(self._candidates.dtype)

    def agreement(self, ids: Tensor) -> Tensor:
        """Mean probability of the given label over that of the most probable class, in [0, 1], for `ids` [n].

        Of what is written so far, which for an image is the epochs before the present one; 1 before its first visit.
        """
        ids = ids.to(self._sums.device)
        given, other = self._sums[SUMS.index("probability"), ids], self._masses[0, ids]
        most = torch.maximum(given, other)
        return torch.where(most > 0, given / torch.where(most > 0, most, 1), 1)

    # ---- what is kept and told ----

    def state(self) -> dict[str, Any]:
        """All that continuing needs; every process must call this."""
        self.flush()
        return {name: tensor[..., :-1] for name, tensor in self._tables().items()} | {"knows_harm": self.knows_harm}

    def _tables(self) -> dict[str, Any]:
        return {"sums": self._sums, "masses": self._masses, "candidates": self._candidates, "counts": self._counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from `state`; images that are only evaluated may have come or gone since."""
        known = min(self.size, state["counts"].shape[-1])
        for name, tensor in self._tables().items():
            tensor[..., :known] = state[name][..., :known].to(tensor)
        self.knows_harm = bool(state["knows_harm"])

    def columns(self) -> dict[str, Tensor]:
        """The statistics by name, [size] each; NaN, and class -1, of images that never counted. Every process calls."""
        self.flush()
        visits, forgotten, _ = (value[:-1] for value in _unpacked(self._counts))
        means = {name: self._sums[i, :-1] / visits for i, name in enumerate(SUMS[:3])}
        other = torch.where(visits > 0, self._candidates[0, :-1], -1)
        own = {"other": other, "other_probability": self._masses[0, :-1] / visits}
        harm = {"harm": self._sums[SUMS.index("harm"), :-1]} if self.knows_harm else {}
        return {**means, **own, "forgotten": forgotten, "visits": visits, **harm}


def _contest(masses: Tensor, candidates: Tensor, other: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """The two candidates and their masses [2, N] after class `other` [N] of probability `mass` has been the likeliest.

    A candidate has got its mass of this visit already.
    """
    strange = (candidates != other).all(0)
    left = masses[1] - torch.where(strange, mass, 0)
    replaced = strange & (left < 0)
    masses = torch.stack([masses[0], left.abs()])
    candidates = torch.stack([candidates[0], torch.where(replaced, other, candidates[1])])
    first = masses[0] >= masses[1]
    return torch.where(first, masses, masses.flip(0)), torch.where(first, candidates, candidates.flip(0))


def _packed(visits: Tensor, forgotten: Tensor, right: Tensor) -> Tensor:
    return visits | (forgotten << 18) | (right.int() << 30)


def _unpacked(counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return counts & VISITS, (counts >> 18) & FORGOTTEN, (counts >> 30) > 0


def build_record(
    recipe: Recipe, images: int | None, classes: int, accelerator: Accelerator, largest: int
) -> TrainingRecord | None:
    """The record that run.sample_record asks for; synthetic images, whose number is None, have none.

    Nor have images of any number of classes: it is about the one label that may be wrong.
    """
    if images is None or not recipe.run.sample_record or recipe.data.multi_label != "off":
        return None
    mixes = recipe.augment.mixup > 0 or recipe.augment.cutmix > 0
    return TrainingRecord(images, classes, accelerator, largest, mixes=mixes)
