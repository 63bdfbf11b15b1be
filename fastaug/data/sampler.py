"""The training order: which ids are trained on in which step, a pure function of (seed, epoch, position).

The order of an epoch is a keyed permutation of the split's ids. The state of the data is one integer, the number of
samples consumed since the start of training, so nothing that a loader has prefetched leaks into a checkpoint. Every
process cuts its pieces out of the same global batches: their sequence does not depend on the number of processes or
micro-batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.data.class_sampling import ClassDraws
from fastaug.errors import DataError
from fastaug.seeding import Key, Stream, copies_of, parts_of, permuted

Ids = npt.NDArray[np.int64]


class Request(NamedTuple):
    """One micro-batch that a loader is to deliver."""

    epoch: int
    ids: Ids
    copies: Ids | None = None  # with repeated augmentation or several views: which copy of its image each one is

    def draws(self) -> Ids:
        """The numbers [N] that keyed draws are made for: the ids, told apart where an image is repeated."""
        return self.ids if self.copies is None else copies_of(self.ids, self.copies)

    def keep(self, kept: npt.NDArray[np.bool_] | slice) -> "Request":
        """The request for a part of its images."""
        return Request(self.epoch, self.ids[kept], None if self.copies is None else self.copies[kept])


def piece_bounds(size: int, parts: int, group: int = 1) -> npt.NDArray[np.int64]:
    """Bounds [parts + 1] that cut `size` positions into nearly equal parts, each cut at a multiple of `group`."""
    groups = -(-size // group)
    return np.minimum(np.arange(parts + 1) * groups // parts * group, size)


@dataclass(frozen=True, eq=False)
class Order:
    """The training order of one split, seen by one process.

    `ids` [N]; `batch_size` images an update over all processes; each update is cut into `world * accumulate` pieces of
    consecutive positions: the first `world` are the first micro-batches of all processes, and so on, so that what all
    of them do last does not depend on their number. Mixing partners stay inside `group` positions.
    `repeats` > 1 is repeated augmentation (Hoffer et al., arXiv:1901.09335): every update holds that many copies of
    each of its images, and an epoch has the images of a `repeats`-th of the split.
    `views` > 1: all views of an image are in one micro-batch, itself as copy 0 and `views` - 1 others: first all
    images, then all first copies, and so on. Everything but `requests`, `spread` and the pieces counts images.
    `drawn`: what an epoch holds instead of every image once; goes with neither repeats nor views.
    """

    ids: Ids
    seed: int
    batch_size: int
    world: int = 1
    rank: int = 0
    accumulate: int = 1
    drop_last: bool = False
    group: int = 1
    repeats: int = 1
    views: int = 1
    drawn: ClassDraws | None = None

    @property
    def samples_per_epoch(self) -> int:
        """Samples of an epoch over all processes, copies counted."""
        n = len(self.ids) // self.repeats * self.repeats
        return n // self.batch_size * self.batch_size if self.drop_last else n

    @property
    def steps_per_epoch(self) -> int:
        """Updates of an epoch."""
        return -(-self.samples_per_epoch // self.batch_size)

    def check(self, smallest: int) -> None:
        """DataError unless every micro-batch of an epoch has `smallest` images or more (BatchNorm needs two)."""
        pieces = self.world * self.accumulate
        spread = f"{self.world} processes x {self.accumulate} micro-batches"
        if len(self.ids) < self.batch_size:
            raise DataError(
                f"train.batch_size: {self.batch_size} is larger than the training split of {len(self.ids)} images; "
                f"set it to {len(self.ids)} or less"
            )
        for name, size in (
            ("every", self.batch_size),
            ("the last", self.samples_per_epoch % self.batch_size),
        ):
            least = int(np.diff(piece_bounds(size, pieces, self.group)).min()) if size else smallest
            if least < smallest:
                remedy = "or train.drop_last=true" if name == "the last" else "fewer micro-batches or processes"
                remedy += f", or an augment.mix_group below {self.group}" if self.group > 1 else ""
                raise DataError(
                    f"train.batch_size: {name} batch of an epoch has {size} images for {spread}, which leaves one "
                    f"of them with {least}; choose another train.batch_size, {remedy}"
                )

    def position(self, step: int) -> int:
        """Samples consumed when `step` updates are done."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return epoch * self.samples_per_epoch + within * self.batch_size

    def step(self, position: int) -> int:
        """Updates done when `position` samples are consumed; ValueError when it is not the end of an update."""
        epoch, within = divmod(position, self.samples_per_epoch)
        if within % self.batch_size:
            raise ValueError(f"position {position} is inside an update of {self.batch_size} images")
        return epoch * self.steps_per_epoch + within // self.batch_size

    def size(self, step: int) -> int:
        """Images of update `step` over all processes."""
        return min(self.batch_size, self.samples_per_epoch - step % self.steps_per_epoch * self.batch_size)

    @cached_property
    def piece_sizes(self) -> frozenset[int]:
        """Images of the micro-batches of a whole update, all views counted: one size, or two."""
        bounds = piece_bounds(self.batch_size, self.world * self.accumulate, self.group)
        return frozenset((self.views * np.diff(bounds)).tolist())

    def largest_piece(self) -> int:
        """Images of the largest micro-batch of any process, all views counted."""
        return max(self.piece_sizes)

    def epoch_ids(self, epoch: int) -> Ids:
        """The ids of one epoch in the order they are consumed, every update's copies one after the other.

        Of `drawn`, those with their copies, see `seeding.copies_of`.
        """
        held = self.ids if self.drawn is None else self.drawn.epoch(epoch)
        ids = permuted(Key(self.seed, epoch, Stream.ORDER), held)[: self.samples_per_epoch // self.repeats]
        if self.repeats == 1:
            return ids
        images = self.batch_size // self.repeats
        return np.concatenate([np.tile(ids[i : i + images], self.repeats) for i in range(0, len(ids), images)])

    def update(self, step: int) -> Request:
        """The images of update `step` over all processes."""
        epoch, within = divmod(step, self.steps_per_epoch)
        ids = _epoch_ids(self, epoch)
        batch = Request(epoch, ids[within * self.batch_size : (within + 1) * self.batch_size])
        if self.repeats > 1:
            batch = batch._replace(copies=np.arange(len(batch.ids)) // (len(batch.ids) // self.repeats))
        if self.drawn is not None:
            batch = Request(epoch, *parts_of(batch.ids))
        return batch

    def spread(self, step: int, share: float, least: int) -> Ids:
        """The draws of a share of the last micro-batches of update `step`, `least` or more, the same at any world size.

        They are as far apart as can be, so that every process has its part of them; those of an image's views stay
        together.
        """
        batch = self.update(step)
        draws = batch.draws()[int(piece_bounds(len(batch.ids), self.accumulate, self.group)[-2]) :]
        n = min(len(draws), max(least, round(share * len(draws))))
        chosen = draws[(np.arange(n) * len(draws) + len(draws) // 2) // n] if n else draws[:0]
        return chosen if self.views == 1 else in_views(Request(batch.epoch, chosen), self.views).draws()

    def requests(self, first_step: int, last_step: int) -> Iterator[Request]:
        """This process's micro-batches of the updates in [first_step, last_step), `accumulate` for each."""
        for step in range(first_step, last_step):
            batch = self.update(step)
            bounds = piece_bounds(len(batch.ids), self.world * self.accumulate, self.group)
            for piece in range(self.rank, self.world * self.accumulate, self.world):
                own = batch.keep(slice(bounds[piece], bounds[piece + 1]))
                yield own if self.views == 1 else in_views(own, self.views)


class FileOrder(Order):
    """The order of evaluation: every image once, in the order of ids, cut over the processes as a training order is."""

    def epoch_ids(self, epoch: int) -> Ids:  # noqa: ARG002
        """The ids of the split as they are."""
        return self.ids[: self.samples_per_epoch]


def in_views(request: Request, views: int) -> Request:
    """The request for `views` copies of each of its images, one after the other; copy 0 is the image itself."""
    copies = np.repeat(np.arange(views), len(request.ids))
    return Request(request.epoch, np.tile(request.ids, views), copies)


@lru_cache(maxsize=2)  # a loader may be an epoch ahead of the training
def _epoch_ids(order: Order, epoch: int) -> Ids:
    return order.epoch_ids(epoch)


def evaluation_requests(ids: Ids, batch_size: int, world: int, rank: int) -> Iterator[Request]:
    """Fixed batches of `ids` in order, dealt to the processes in turn: a batch is the same at any process count."""
    for start in range(rank * batch_size, len(ids), world * batch_size):
        yield Request(0, ids[start : start + batch_size])
