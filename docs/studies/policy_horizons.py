"""Do longer horizons predict what an operation does for a network? Signals of many updates, beside policy_signals.py.

    python docs/studies/policy_horizons.py data/letters --out horizons
    python docs/studies/policy_signals.py compare docs/studies/policy_responses.jsonl horizons-*.npz

One training under the uniform policy of all operations, as in policy_signals.py. In windows of K updates, with pauses
of 2 K, every sample's term of the hypergradient through all K updates of AdamW (hypergrad/engines/unroll.py). And over
longer horizons with the Jacobian of an update taken for a decayed identity, as in DrMAD and HyperDistill: a sample of
update j has the term <sum_t decay^t v_{j+t}, grad l_i / D_j>, so nothing is unrolled. Printed is the price of each, in
trainings, of which it takes part in one third of the updates.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from policy_signals import Notes, Set, figures, policy_of, read_split, train
from torch import Tensor, nn

from fastaug.augment.shared_policy import Draws
from fastaug.hypergrad.engines.unroll import Window, present_settings
from fastaug.hypergrad.problem import Samples, Weights
from fastaug.targets import SoftTarget, hard_target, soft_cross_entropy

FLAT = 0.05  # added to the steepness of a loss, as in policy_signals.py
EVERY = 3  # updates for one that is looked at
LATEST = 3.0  # horizons of a decay after which nothing is added


class Seen(NamedTuple):
    """What an update trained on: images and labels, operations drawn, steepness of the losses, share of training."""

    inputs: Tensor
    labels: Tensor
    op: Tensor
    steepness: Tensor
    done: float


class Horizon:
    """A signal of a training: notes of samples, and the seconds that they took."""

    def __init__(self, meta: Set, seed: int) -> None:
        self.notes = Notes(meta, seed)
        self.seconds = 0.0

    def note(self, seen: Seen, terms: Tensor, size: Tensor) -> None:
        """Keeps terms [n], less their mean, in units of `size`."""
        self.notes.note("terms", (terms - terms.mean()) / size)
        self.notes.note("op", seen.op)
        self.notes.note("done", torch.full((len(terms),), seen.done, dtype=torch.float64))

    def look(self, network: nn.Module, optimizer: torch.optim.Optimizer, step: int, seen: Seen) -> None:
        """Called before each update of training."""
        raise NotImplementedError

    def finish(self, network: nn.Module) -> None:
        """Called after the last update."""


class Unrolled(Horizon):
    """The hypergradient through windows of K = `updates`: each sample's derivative of <v, w_K> in its loss weight."""

    def __init__(self, meta: Set, seed: int, updates: int) -> None:
        super().__init__(meta, seed)
        self.updates = updates
        self.window: Window | None = None
        self.inside: list[tuple[Seen, Tensor]] = []

    def look(self, network: nn.Module, optimizer: torch.optim.Optimizer, step: int, seen: Seen) -> None:
        """Closes a window that is full, begins one where it is time, adds the coming update to it."""
        if self.window is not None and len(self.window) == self.updates:
            self.close(network)
        if step >= EVERY and (step - EVERY) % (EVERY * self.updates) == 0:
            self.window, self.inside = Window(optimizer, network.named_parameters()), []
        if self.window is not None:
            weight = torch.ones(len(seen.labels), requires_grad=True)
            samples = Samples(seen.inputs, hard_target(seen.labels, weight))
            self.inside.append((seen, weight))
            self.window.add(lambda: samples, seed=0, total=len(weight), settings=present_settings(optimizer))

    def close(self, network: nn.Module) -> None:
        """Notes the terms of a window."""
        assert self.window is not None
        v = self.notes.validation_gradient(network, trained(network))
        leaves = {str(number): weight for number, (_, weight) in enumerate(self.inside)}
        slopes = self.window.gradients(network, losses, v, leaves)
        terms = [-slopes[str(n)] / (seen.steepness + FLAT) for n, (seen, _) in enumerate(self.inside)]
        size = torch.cat([values - values.mean() for values in terms]).square().mean().sqrt()
        for (seen, _), values in zip(self.inside, terms, strict=True):
            self.note(seen, values, size)
        self.window = None


class Ahead(Horizon):
    """Validation gradients of later updates, decayed over `horizon` updates, as the direction of each sample's term."""

    def __init__(self, meta: Set, seed: int, horizon: int) -> None:
        super().__init__(meta, seed)
        self.decay, self.longest = 1 - EVERY / horizon, round(LATEST * horizon / EVERY)
        self.waiting: deque[tuple[Seen, Weights, Weights, Weights]] = deque()  # ..., weights, D, sum of v

    def look(self, network: nn.Module, optimizer: torch.optim.Optimizer, step: int, seen: Seen) -> None:
        """Adds today's v to all that wait, and notes the one that has waited longest."""
        if step % EVERY or step < EVERY:
            return
        weights = {name: weight.clone() for name, weight in trained(network).items()}
        v = self.notes.validation_gradient(network, weights)
        for age, (*_, total) in enumerate(reversed(self.waiting), 1):
            torch._foreach_add_(list(total.values()), list(v.values()), alpha=self.decay**age)
        roots = {name: self.notes.root(optimizer, weight) for name, weight in network.named_parameters()}
        self.waiting.append((seen, weights, roots, {name: value.clone() for name, value in v.items()}))
        if len(self.waiting) > self.longest:
            self.take(network)

    def take(self, network: nn.Module) -> None:
        """Notes the samples that have waited longest."""
        seen, weights, roots, total = self.waiting.popleft()
        direction = {name: value / roots[name] for name, value in total.items()}
        tangent = self.notes.tangent(network, weights, direction, seen.inputs)
        with torch.no_grad():
            logits = torch.func.functional_call(network, weights | copied(network), (seen.inputs,))
        steep = logits.softmax(1) - F.one_hot(seen.labels, logits.shape[1])
        terms = (steep * tangent).sum(1) / (seen.steepness + FLAT)
        self.note(seen, terms, (terms - terms.mean()).square().mean().sqrt())

    def finish(self, network: nn.Module) -> None:
        """Notes those that still wait, with as much of the future as there was."""
        while self.waiting:
            self.take(network)


def trained(network: nn.Module) -> Weights:
    """The weights by name, off the graph."""
    return {name: weight.detach() for name, weight in network.named_parameters()}


def copied(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers."""
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def losses(logits: Tensor, target: SoftTarget) -> Tensor:
    """Weight times cross-entropy, [n]."""
    return soft_cross_entropy(logits, target, reduction="none")


def looked_at(horizons: Mapping[str, Horizon]) -> Any:
    """A hook of `train` that shows every update to all horizons."""

    def hook(
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: int,
        done: float,
        inputs: Tensor,
        labels: Tensor,
        draws: Draws,
        logits: Tensor,
    ) -> None:
        steepness = (logits.softmax(1) - F.one_hot(labels, logits.shape[1])).norm(dim=1)
        seen = Seen(inputs, labels, draws.op[:, 0], steepness, done)
        for horizon in horizons.values():
            start = time.process_time()
            horizon.look(network, optimizer, step, seen)
            horizon.seconds += time.process_time() - start

    return hook


def main() -> int:
    """The exit code: 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with train, meta and test of class folders")
    parser.add_argument("--out", required=True, help="files OUT-SIGNAL.npz")
    parser.add_argument("--operations", default="broad", help="packaged set or file (default broad)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unrolled", type=int, nargs="*", default=[1, 2, 5, 10, 20], help="updates of a window, K")
    parser.add_argument("--ahead", type=int, nargs="*", default=[30, 300], help="updates of a decayed horizon")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    splits = {split: read_split(arguments.root / split) for split in ("train", "meta", "test")}
    horizons: dict[str, Horizon] = {f"K{k:02}": Unrolled(splits["meta"], arguments.seed, k) for k in arguments.unrolled}
    horizons |= {f"ahead{n}": Ahead(splits["meta"], arguments.seed, n) for n in arguments.ahead}
    policy, start = policy_of(None, arguments.operations), time.process_time()
    network = train(splits, policy, arguments.epochs, arguments.seed, looked_at(horizons))
    plain = time.process_time() - start - sum(horizon.seconds for horizon in horizons.values())
    print(f"test error {figures(network, splits['test'])['error']:.4f} under the uniform policy")
    names = ["none", *(transform.name for transform in policy.transforms)]
    for name, horizon in horizons.items():
        start = time.process_time()
        horizon.finish(network)
        price = 1 + (horizon.seconds + time.process_time() - start) / plain
        kept: dict[str, Any] = {key: np.concatenate(rows) for key, rows in horizon.notes.kept.items()}
        np.savez(f"{arguments.out}-{name}.npz", names=names, **kept)
        print(f"{name}: {price:.1f} trainings, {len(kept['op'])} samples noted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
