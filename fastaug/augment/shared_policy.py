"""A policy shared by all samples whose operation probabilities and magnitudes are learned.

Each of `slots` applications draws one operation, or none, and for each of the operation's d numbers a noise u, uniform
in the operation's own range, (-1, 1) unless it says otherwise; the operation acts by u * reach * magnitude. Magnitudes
are learned through the pixels (pathwise: draws are kept, amounts are on the graph), probabilities by the score function
from `log_probability`, or, for comparison, by `relaxed`.

The parameters are a few dozen numbers: left on the host, nothing in `sample`, `log_probability` and `apply` needs to
wait for a device; on a device each `sample` reads the probabilities back.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastaug.augment.differentiable_ops import BLACK, EIGHT, Fill, Transform, apply_drawn
from fastaug.errors import NonFiniteError
from fastaug.seeding import IdArray, Key, Stream, uniform

STRENGTH_OF_ONE = 18.0  # its sigmoid is 1 in float32
NEAR_BOUND = 0.02  # a magnitude this close to 0 or 1 counts as saturated


class Draws(NamedTuple):
    """Operations drawn, on the host: op [N,slots] (0: none, k: transforms[k - 1]), noise [N,slots,d] in [-1, 1]."""

    op: Tensor
    noise: Tensor


class SharedPolicy(nn.Module):
    """A learned augmentation policy, the same for all samples: probabilities (by slot) and magnitudes of `transforms`.

    `slots` operations are applied to each sample, one after the other.

    `magnitude` in (0, 1] is every operation's at first (from 1 there is no way to learn), `identity` in (0, 1) the
    probability of drawing none, None for an equal share; the operations share the rest equally. `fill` is what a warp
    uncovers. With `shared_magnitude` there is one for all operations.

    Probabilities are softmax(tau * logits) or (1 - mix) * uniform + mix * softmax(logits): both are uniform at 0 and
    plain softmax at 1. `identity` is that of the plain softmax. With `shared_probabilities` all slots draw by the mean
    of their logits, so that the rows, alike at the start, have the mean of their gradients and stay alike.
    """

    def __init__(
        self,
        transforms: Sequence[Transform] = EIGHT,
        slots: int = 2,
        *,
        magnitude: float = 0.5,
        identity: float | None = 0.2,
        fill: Fill = BLACK,
        tau: float = 1.0,
        mix: float = 1.0,
        shared_magnitude: bool = False,
        shared_probabilities: bool = False,
    ) -> None:
        super().__init__()
        if not transforms or len({t.name for t in transforms}) < len(transforms):
            raise ValueError(f"transforms must have different names, found {[t.name for t in transforms]}")
        if slots < 1:
            raise ValueError(f"slots must be at least 1, found {slots}")
        if not 0 < magnitude <= 1:
            raise ValueError(f"the initial magnitude must be above 0 and at most 1, found {magnitude}")
        if identity is not None and not 0 < identity < 1:
            raise ValueError(
                f"the initial identity must be between 0 and 1, found {identity}; learning never leaves them"
            )
        if not (tau >= 0 and 0 <= mix <= 1) or (tau != 1 and mix != 1):
            raise ValueError(f"tau must be 0 or more and mix in [0, 1], one of them 1; found tau {tau}, mix {mix}")
        self.transforms, self.slots, self.tau, self.mix = tuple(transforms), slots, tau, mix
        self.shared_probabilities = shared_probabilities
        self.fill: Fill = fill if isinstance(fill, str) else tuple(fill)
        self.kinds = 1 + len(transforms)
        self.numbers = max(len(t.reach) for t in transforms)  # d
        self.logits = nn.Parameter(self.logits_of(1 / self.kinds if identity is None else identity))
        strength = math.log(magnitude / (1 - magnitude)) if magnitude < 1 else STRENGTH_OF_ONE
        self.strengths = nn.Parameter(torch.full((1 if shared_magnitude else len(transforms),), strength))

    def logits_of(self, identity: float) -> Tensor:
        """The logits at the start, a row for each slot: `identity` for none, an equal share of the rest for others."""
        others = math.log((1 - identity) / len(self.transforms))
        return torch.tensor([math.log(identity)] + [others] * len(self.transforms)).repeat(self.slots, 1)

    # ---- probabilities ----

    def scores(self, logits: Tensor | None = None) -> Tensor:
        """What the probabilities are the softmax of, by row: `logits`, our own unless given, under tau or mix."""
        logits = self.logits if logits is None else logits
        if self.shared_probabilities:
            logits = logits.mean(0, keepdim=True).expand_as(logits)
        if self.mix < 1:
            return ((1 - self.mix) / logits.shape[1] + self.mix * logits.softmax(1)).log()
        return logits if self.tau == 1 else self.tau * logits

    def probabilities(self) -> Tensor:
        """Probabilities of no operation and of each one, by slot: [slots, 1 + operations]."""
        return self.scores().softmax(1)

    def untouched(self) -> Tensor:
        """The probability of drawing none in every slot."""
        return self.probabilities()[:, 0].double().prod()

    def log_probability(self, draws: Draws) -> Tensor:
        """Log probability of each sample's operations, [N], on the graph of the logits and on their device."""
        chosen = self._one_hot(draws.op)
        return (chosen * self.scores().log_softmax(1)).sum((1, 2))

    def drawn_mean(self, draws: Draws, values: Tensor) -> Tensor:
        """Mean over the slots of what `values`, one for each logit, are for the operations drawn: [N]."""
        return (self._one_hot(draws.op) * values).sum((1, 2)) / self.slots

    # ---- magnitudes ----

    def magnitudes(self) -> Tensor:
        """The magnitude of each operation, in (0, 1), or 1 where it is fixed: [operations]."""
        learned = self.strengths.sigmoid().expand(len(self.transforms))
        if not any(t.fixed for t in self.transforms):
            return learned
        return torch.where(self.fixed().to(learned.device, non_blocking=True), 1, learned)

    def fixed(self) -> Tensor:
        """Which operations have a magnitude that is not learned, on the host: [operations] bool."""
        return torch.tensor([t.fixed for t in self.transforms])

    def sample(self, key: Key, ids: IdArray, logits: Tensor | None = None) -> Draws:
        """Draws of each id by the current probabilities (inverse CDF): a function of (seed, epoch, id) and of them.

        `logits`: others to draw by, of the same shape.
        """
        u = uniform(key.on(Stream.LEARNED), ids, self.slots * (1 + self.numbers))
        bounds = self.scores(self._host_logits(logits)).softmax(1).cumsum(1)[:, :-1].numpy()
        return Draws(torch.from_numpy(self._chosen(u[:, : self.slots], bounds)), self._noise(u))

    def _chosen(self, u: npt.NDArray[np.float64], bounds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Operations [N,slots] by uniform numbers of that shape and the inner bounds of the cumulated probabilities."""
        chosen: npt.NDArray[np.int64] = (u[:, :, None] >= bounds).sum(2)
        return chosen

    def amounts(self, draws: Draws) -> Tensor:
        """Amounts of the drawn operations, in their units: [N,slots,d], on the graph of the magnitudes."""
        reach = [(0.0,) * self.numbers] + [t.reach + (0.0,) * (self.numbers - len(t.reach)) for t in self.transforms]
        scale = self.strengths.new_tensor(reach) * F.pad(self.magnitudes(), (1, 0))[:, None]
        low, high = self.strengths.new_tensor([(-1.0, 1.0)] + [t.noise for t in self.transforms]).unbind(1)
        chosen = self._one_hot(draws.op)
        middle, half = ((chosen * side).sum(2)[..., None] for side in ((low + high) / 2, (high - low) / 2))
        noise = self._beside(draws.noise)
        amounts = (chosen[..., None] * scale).sum(2) * (middle + half * noise)
        if not any(t.free for t in self.transforms):
            return amounts
        free = [(0.0,) * self.numbers] + [self._free_reach(t) for t in self.transforms]
        places = (chosen[..., None] * self.strengths.new_tensor(free)).sum(2)
        return torch.where(places == 0, amounts, places * noise)

    def _free_reach(self, transform: Transform) -> tuple[float, ...]:
        """The reach of those of an operation's numbers that the magnitude does not scale, 0 for the others: d."""
        scaled = len(transform.reach) - transform.free
        return (0.0,) * scaled + transform.reach[scaled:] + (0.0,) * (self.numbers - len(transform.reach))

    def apply(self, images: Tensor, draws: Draws) -> Tensor:  # type: ignore[override]  # as every policy's
        """Augmented float images [N,3,S,S] in [0, 1], see `apply_drawn`; on the graph of the magnitudes."""
        return apply_drawn(images, draws.op, self.amounts(draws), self.transforms, self.fill)

    def relaxed(self, images: Tensor, key: Key, ids: IdArray, temperature: float = 1.0) -> Tensor:
        """`apply`'s images with a gradient in the logits too: straight-through Gumbel-softmax (Jang et al. 2017, 2.2).

        Forward, `gumbel_draws` are applied. Backward, a slot is the mixture of its operations by softmax of the
        perturbed logits over `temperature`, the other slots as drawn. That costs slots * (1 + operations) further
        applications without gradient, whose images are all kept: for comparison, on small batches. None under no_grad.
        """
        if not temperature > 0:
            raise ValueError(f"the temperature must be above 0, found {temperature}")
        perturbed = self._perturbed(key, ids)
        draws = self.gumbel_draws(key, ids)
        shares = (perturbed / temperature).softmax(2).to(images.device, images.dtype)
        out = self.apply(images, draws)
        if not shares.requires_grad:
            return out
        for slot in range(self.slots):
            for kind in range(shares.shape[2]):
                op = draws.op.clone()
                op[:, slot] = kind
                with torch.no_grad():
                    other = self.apply(images, draws._replace(op=op))
                share = shares[:, slot, kind, None, None, None]
                out = out + (share - share.detach()) * other  # adds 0: the value stays exactly that of the draw
        return out

    def gumbel_draws(self, key: Key, ids: IdArray) -> Draws:
        """Draws of `relaxed` (Gumbel-max): distributed as `sample`, with its noise, from other random numbers."""
        u = uniform(key.on(Stream.LEARNED), ids, self.slots * (1 + self.numbers))
        return Draws(self._perturbed(key, ids).detach().argmax(2).cpu(), self._noise(u))

    def _perturbed(self, key: Key, ids: IdArray) -> Tensor:
        """Logits plus Gumbel noise, [N,slots,1 + operations]; its random numbers come after those of `sample`."""
        self._host_logits()
        first = self.slots * (1 + self.numbers)
        u = uniform(key.on(Stream.LEARNED), ids, first + self.slots * self.logits.shape[1])[:, first:]
        gumbel = -np.log(-np.log(np.maximum(u, 2.0**-54)))  # u is at most 1 - 2**-53: finite
        return self.scores() + self._beside(torch.from_numpy(gumbel).view(-1, *self.logits.shape))

    @torch.no_grad()
    def summary(self) -> dict[str, float]:
        """Figures of the policy for the log and its alarms; host sync.

        identity: probability of drawing none, mean over slots; untouched: in all slots; largest of all probabilities;
        entropy of the operations, 1 is uniform, mean over slots; magnitude: mean of those that are not fixed;
        saturated: share of these within NEAR_BOUND of 0 or 1; and probability/NAME (mean over slots) and magnitude/NAME
        of each operation.
        """
        p, magnitudes = self.probabilities().double().cpu(), self.magnitudes().double().cpu()
        free = magnitudes[~self.fixed()]
        near = torch.minimum(free, 1 - free) <= NEAR_BOUND
        found = {
            "identity": float(p[:, 0].mean()),
            "untouched": float(self.untouched()),
            "largest": float(p.max()),
            "entropy": float(torch.special.entr(p).sum(1).mean()) / math.log(p.shape[1]),
            "magnitude": float(free.mean()) if len(free) else 1.0,
            "saturated": float(near.double().mean()) if len(free) else 0.0,
        }
        for k, transform in enumerate(self.transforms):
            found[f"probability/{transform.name}"] = float(p[:, k + 1].mean())
            found[f"magnitude/{transform.name}"] = float(magnitudes[k])
        return found

    def _host_logits(self, logits: Tensor | None = None) -> Tensor:
        """The logits, our own unless given, in float64 on the host; NonFiniteError where one is not finite."""
        logits = (self.logits if logits is None else logits).detach().cpu().double()
        if not logits.isfinite().all():
            raise NonFiniteError(f"the logits of the learned policy are not finite: {logits.tolist()}")
        return logits

    def _noise(self, u: npt.NDArray[np.float64]) -> Tensor:
        """The noise [N,slots,d] in [-1, 1) among the uniform numbers of `sample`."""
        noise = u[:, self.slots : self.slots * (1 + self.numbers)].reshape(len(u), self.numbers, self.slots)
        return torch.from_numpy(2 * noise - 1).float().transpose(1, 2)

    def _one_hot(self, op: Tensor) -> Tensor:
        """[N,slots,1 + operations] beside the parameters; sums over it are exact, and the same on every run."""
        return self._beside(F.one_hot(op, self.kinds))

    def _beside(self, values: Tensor) -> Tensor:
        return values.to(self.logits.device, self.logits.dtype, non_blocking=True)
