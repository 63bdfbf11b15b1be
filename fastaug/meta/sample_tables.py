"""Tables by stable id: numbers learned for every training image, moved only where a batch met the image.

A table is a `RowTable` and the step that its rows take, a `RowUpdate`: free of the gradient's scale, or RMSprop as
AutoDO has it. A step costs what its batch costs, whatever the number of images.
"""

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

RowOptimizer = Literal["normalised", "rmsprop"]
RHO, EPS = 0.99, 1e-8  # of RMSprop, torch's and AutoDO's


class SampleTable(Protocol):
    """A table by stable id: learned numbers of every image. A learned part may keep several, each under a name."""

    def rows(self, ids: Tensor) -> Tensor:
        """The rows [n, ...] of `ids` [n] (on the host), a leaf of their own: gradients stop here."""

    def move(self, ids: Tensor, gradient: Tensor) -> None:
        """One step against the hypergradient [n, ...] in the rows of `ids` [n], those of all processes, each once.

        `ids` may lie on any device.
        """


class ById(nn.Module):
    """A module whose buffers have a row for each id."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Rows of ids by number: images behind them, which are only evaluated, may have come or gone since."""
        present = dict(state_dict)
        for name, own in self._buffers.items():
            stored = present.get(f"{prefix}{name}")
            if own is not None and own.ndim and stored is not None and stored.shape[1:] == own.shape[1:]:
                rows, known = own.clone(), min(len(own), len(stored))
                rows[:known] = stored[:known]
                present[f"{prefix}{name}"] = rows
        super()._load_from_state_dict(present, prefix, *args)


class RowUpdate(ById):
    """The step that rows of a table take against their hypergradient, of rate `lr` times `share` (meta.anneal)."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr, self.share = lr, 1.0

    def moved(self, rows: Tensor, gradient: Tensor, ids: Tensor) -> Tensor:
        """Where the `rows` [n, ...] of `ids` [n] go; a row whose gradient is not finite stays."""
        raise NotImplementedError


class ScaleFreeStep(RowUpdate):
    """A step in units of the gradient's root mean square over the batch, at most 3 lr: it knows no scale.

    `levels` is for rows that are loss weights. Where smaller weights for the whole batch would help (a lower learning
    rate in disguise), their mean, weighted by the weights, is taken out of the gradient: weights cannot all shrink.
    """

    def __init__(self, lr: float, *, levels: bool = False) -> None:
        super().__init__(lr)
        self.levels = levels

    def moved(self, rows: Tensor, gradient: Tensor, ids: Tensor) -> Tensor:  # noqa: ARG002
        """Where the `rows` go."""
        finite = finite_rows(gradient)
        gradient = torch.where(finite, gradient, 0)
        if self.levels:
            shrinking = (rows * gradient).sum() / (rows * finite).sum().clamp_min(torch.finfo(rows.dtype).tiny)
            gradient = torch.where(finite, gradient - shrinking.clamp_min(0), 0)
        scale = (gradient.square().sum() / finite.sum().clamp_min(1)).sqrt()
        return rows - self.lr * self.share * (gradient / torch.where(scale > 0, scale, 1)).clamp(-3, 3)


class RowRMSprop(RowUpdate):
    """RMSprop of the whole table, as torch has it (AutoDO's outer optimizer), at the cost of the rows that are met.

    A row without a gradient does not move, and its square average falls by `rho` in every step: that is made up for
    when the row is met again, so that a row met once an epoch takes steps of up to 10 lr. `start`: the table's rows.
    """

    square: Tensor
    met: Tensor
    steps: Tensor

    def __init__(self, lr: float, start: Tensor) -> None:
        super().__init__(lr)
        self.register_buffer("square", torch.zeros_like(start))
        self.register_buffer("met", torch.zeros(len(start), dtype=torch.int32))  # in which step a row was met last
        self.register_buffer("steps", torch.zeros((), dtype=torch.int32))

    def moved(self, rows: Tensor, gradient: Tensor, ids: Tensor) -> Tensor:
        """Where the `rows` go; counts a step of the whole table."""
        self.steps += 1
        finite = finite_rows(gradient)
        gradient = torch.where(finite, gradient, 0)
        decay = RHO ** beside(self.steps - self.met[ids], rows).to(rows.dtype)
        square = self.square[ids] * decay + (1 - RHO) * gradient.square()
        self.square[ids], self.met[ids] = square, self.steps
        return rows - self.lr * self.share * gradient / (square.sqrt() + EPS)


def finite_rows(gradient: Tensor) -> Tensor:
    """Whether the whole row that each number of `gradient` [n, ...] is of is finite: [n, ...] bool."""
    return beside(gradient[..., None].isfinite().flatten(1).all(1), gradient).expand_as(gradient)


def beside(numbers: Tensor, rows: Tensor) -> Tensor:
    """Numbers [n], one for each row of `rows` [n, ...], in the shape [n, 1, ...]."""
    return numbers.view(-1, *[1] * (rows.ndim - 1))


class StoredTable(ById):
    """A table that a checkpoint keeps in a file of its own: all buffers of its state have a row for each id, or none.

    `update` moves its rows. `changed` [size]: whose rows have changed since that file was written; not in the state.
    """

    update: RowUpdate
    changed: Tensor


class RowTable(StoredTable):
    """A table of one row for each id, `weight` as in nn.Embedding, which `update` moves; cut off at `bounds`.

    `start` [size, ...]: the rows at the start, copied.
    """

    weight: Tensor

    def __init__(self, start: Tensor, update: RowUpdate, bounds: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.update, self.bounds = update, bounds
        self.register_buffer("weight", start.detach().clone(memory_format=torch.contiguous_format))
        self.register_buffer("changed", torch.zeros(len(start), dtype=torch.bool), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """The rows [n, ...] of `ids` [n], a copy."""
        return self.weight[ids.to(self.weight.device)]

    def rows(self, ids: Tensor) -> Tensor:
        """The rows [n, ...] of `ids`, a leaf."""
        return self(ids).requires_grad_()

    def move(self, ids: Tensor, gradient: Tensor) -> None:
        """One step of the rows of `ids` [n] against their hypergradient [n, ...]."""
        ids, gradient = ids.to(self.weight.device), gradient.to(self.weight.device)
        moved = self.update.moved(self.weight[ids], gradient, ids)
        self.weight[ids] = moved if self.bounds is None else moved.clamp(*self.bounds)
        self.changed[ids] = True


def row_update(kind: RowOptimizer, lr: float, start: Tensor, *, levels: bool = False) -> RowUpdate:
    """The update that meta.table_optimizer names for a table that begins with `start`; `levels`: of ScaleFreeStep."""
    return RowRMSprop(lr, start) if kind == "rmsprop" else ScaleFreeStep(lr, levels=levels)
