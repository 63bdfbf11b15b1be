"""How operations' probabilities learn: score function against straight-through Gumbel-softmax, draw by draw.

A network trained for a while, one batch, one direction u: only the operations are drawn again and again. The mean over
many draws by the score function is the gradient, but for how BatchNorm lets samples act on one another.
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.meta.overhead import NEVER
from benchmarks.meta.scene import Size, Steps, new_scene
from benchmarks.peers import report
from fastaug.batch import Batch
from fastaug.hypergrad import hypergradient
from fastaug.meta.one_step import OneStep, samples_of
from fastaug.training.build import Trainer

WARM, SEED = 150, 0
PLAIN = ["meta.learn=[policy]", "meta.probabilities=score", "meta.magnitudes=false"]
PLAIN += ["augment.shift=0", "augment.cutmix=0", "optim.lr=0.02"]
ARMS = {
    "score function": [],
    **{f"Gumbel, temperature {t:g}": ["meta.probabilities=gumbel", f"meta.temperature={t:g}"] for t in (0.25, 0.5, 1)},
}


def section(args: argparse.Namespace, size: Size, found: dict[str, Any]) -> None:
    """Cosine with the gradient, for the mean of 1, 16 and all draws, and milliseconds a draw."""
    small = replace(size, model="test_resnet", side=28)
    with new_scene(small, digits=True) as scene:
        given = scene.trainer(*PLAIN, NEVER)
        Steps(given)(WARM)
        batch = next(given.loader.batches(given.order.requests(WARM + 1, WARM + 2)))
        assert isinstance(given.meta, OneStep)
        given.meta.validation.renew(given.meta.weights(given.network))
        u = {name: -value for name, value in given.meta.validation.value().items()}
        reference, _ = draws(given, batch, u, range(args.draws, 2 * args.draws))
        truth, table = reference.mean(0), []
        for name, keys in ARMS.items():
            trainer = scene.trainer(*PLAIN, *keys)
            trainer.network.load_state_dict(given.network.state_dict())
            single, seconds = draws(trainer, batch, u, range(args.draws))
            cosines = [agreement(single, truth, count) for count in (1, 16, args.draws)]
            found.setdefault("estimators", {})[name] = {"cosines": cosines, "seconds": seconds}
            table.append((name, *(f"{c:.3f}" for c in cosines), f"{1000 * seconds:.0f}"))
    header = ("probabilities by", "one draw", "mean of 16", f"of {args.draws}", "ms a draw")
    report.print_table("cosine with the gradient", header, table)


def draws(trainer: Trainer, batch: Batch, u: dict[str, Tensor], numbers: range) -> tuple[Tensor, float]:
    """The hypergradient in the logits for each draw, [draws, numbers], and seconds a draw."""
    meta = trainer.meta
    assert isinstance(meta, OneStep)
    logits = {"logits": meta.learned.shared()["policy.policy.logits"]}
    rows, start = [], time.perf_counter()
    for number in numbers:  # an epoch's operations each
        samples = samples_of(trainer.augment.part(batch, number, torch.arange(len(batch.ids))))
        problem = meta.problem(meta.weights(trainer.network), samples, SEED)
        rows.append(hypergradient(problem, u, logits, "forward")["logits"].flatten().double())
    return torch.stack(rows), (time.perf_counter() - start) / len(numbers)


def agreement(single: Tensor, truth: Tensor, count: int) -> float:
    """Mean cosine of `truth` and means of `count` rows of `single`."""
    means = single.unflatten(0, (-1, count)).mean(1)
    return F.cosine_similarity(means, truth[None]).mean().item()
