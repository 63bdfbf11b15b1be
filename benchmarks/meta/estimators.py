"""How operations' probabilities learn from one step of training: estimators of their hypergradient at equal passes.

A network trained for a while and one direction u stay as they are; batches and draws of operations are always new. The
hypergradient in a logit is the mean over samples of share * (drawn - probability), share = <u, grad l> of a sample. An
estimator's noise is the variance of its mean over one batch of passes, summed over the logits and beside that of
today's; its cosine is that of the mean over GROUP batches with today's mean over all the others, averaged over such
groups. From the unbiased estimate of the squared length of the mean follows how many samples a cosine of .8 takes.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.meta.overhead import NEVER
from benchmarks.meta.scene import Size, Steps, new_scene
from benchmarks.peers import report
from fastaug.batch import Batch
from fastaug.hypergrad import checked_cotangent, hypergradient
from fastaug.hypergrad.problem import Weights, network_logits
from fastaug.meta.one_step import OneStep, samples_of
from fastaug.meta.parts.policy import SharedPolicyPart
from fastaug.seeding import copies_of
from fastaug.training.build import Trainer

WARM, SEED = 150, 0  # updates before; of dropout masks
PLAIN = ["meta.learn=[policy]", "meta.probabilities=score", "meta.magnitudes=false"]
PLAIN += ["augment.shift=0", "augment.cutmix=0", "optim.lr=0.02"]
COPIES = 4  # operations on each image
BEFORE = 5  # batches that an operation's own baseline is taken from
SEEN = 160  # samples that training shows for one that a meta step differentiates: K = 40, f = 1/4
FLAT = 0.05  # added to a steepness
LARGEST = 3.0  # root mean squares at which a share is cut
GROUP = 5  # batches: of 64, as many samples as 20 hypergradients at f = 1/4


@dataclass(frozen=True)
class Passes:
    """What batches of samples have shown, [batches, samples]: for each its operations and what one pass says of it.

    `score` [batches, samples, slots, operations]: drawn - probability. `share` of the whole network, `head` of its last
    layer; `loss`, and `steepness`: the norm of the loss's gradient in the network's logits.
    """

    score: Tensor
    share: Tensor
    head: Tensor
    loss: Tensor
    steepness: Tensor
    label: Tensor


Estimator = Callable[[Passes], Tensor]  # one estimate for each batch: [batches, logits]


def section(args: argparse.Namespace, size: Size, found: dict[str, Any]) -> None:
    """Noise, cosine and bias of every estimator at one frozen point."""
    with new_scene(replace(size, model="test_resnet", side=28), digits=True) as scene:
        keys = [f"meta.operations={args.operations}", f"meta.magnitude={args.magnitude}", f"meta.slots={args.slots}"]
        given = scene.trainer(*PLAIN, *keys, NEVER)
        Steps(given)(WARM)
        u = direction(given)
        independent = passes(given, u, args.draws)
        estimates = {name: of(independent) for name, of in ESTIMATORS.items()}
        estimates["stratified draws"] = others(stratified(given, u, args.draws))
        copied = passes(given, u, args.draws, COPIES)
        estimates["several operations an image, less its others' mean"] = by_image(copied)
        for temperature in args.temperatures:
            gumbel = ["meta.probabilities=gumbel", f"meta.temperature={temperature}"]
            trainer = scene.trainer(*PLAIN, *keys, *gumbel, NEVER)
            trainer.network.load_state_dict(given.network.state_dict())
            estimates[gumbel_name(temperature)] = pathwise(trainer, u, args.draws // 4)
    today = estimates[TODAY]
    rows = {name: figures(name, one, today) for name, one in estimates.items()}
    share, score = independent.share, independent.score
    alike = batches_for(today, 0.8) * share.shape[1]
    of_operations = explained(share, score)
    found["estimators"] = {"rows": rows, "samples for .8": alike, "explained by operations": of_operations}
    print(
        f"{args.operations}: operations explain {of_operations:.5f} of the variance of shares between samples; ", end=""
    )
    print(f"a cosine of .8 takes {alike:.0f} samples of today's estimator")
    table = [(n, f"{row['noise']:.2f}", f"{row['cosine']:.3f}", "yes" * (n not in UNBIASED)) for n, row in rows.items()]
    header = ("probabilities by", "noise", f"cosine, {GROUP * share.shape[1]} samples", "biased")
    report.print_table("hypergradient in probabilities, one frozen point", header, table)


# ---- what is estimated from ----


def direction(trainer: Trainer) -> Weights:
    """u of plain gradient descent: -v, on one meta batch."""
    meta = trainer.meta
    assert isinstance(meta, OneStep)
    meta.validation.renew(meta.weights(trainer.network))
    return {name: -value for name, value in meta.validation.value().items()}


def batches(trainer: Trainer, count: int, copies: int = 1) -> Iterator[Batch]:
    """New batches after those that were trained on; of `copies` images each, if so, under other draws."""
    for batch in trainer.loader.batches(trainer.order.requests(WARM + 1, WARM + 1 + count)):
        images = len(batch.ids) // copies
        labels, ids = batch.labels[:images].repeat(copies), batch.ids[:images].repeat(copies)
        number = torch.arange(copies).repeat_interleave(images)
        draws = torch.from_numpy(copies_of(ids.numpy(), number.numpy()))
        yield Batch(batch.images[:images].repeat(copies, 1, 1, 1), labels, ids, draws)


def passes(trainer: Trainer, u: Weights, count: int, copies: int = 1) -> Passes:
    """What `count` batches show; copy after copy of an image stand len / copies apart."""
    meta = trainer.meta
    assert isinstance(meta, OneStep)
    part_of, rows = policy_part(trainer), []
    probabilities = part_of.policy.probabilities().detach()
    weights, head = meta.weights(trainer.network), {n: d * n.startswith("fc.") for n, d in u.items()}
    for number, batch in enumerate(batches(trainer, count, copies)):
        part = trainer.augment.part(batch, WARM + number, torch.arange(len(batch.ids)))
        problem = meta.problem(weights, samples_of(part), SEED)
        shares = [len(batch.ids) * checked_cotangent(problem, way, "forward").weight for way in (u, head)]
        with torch.no_grad():
            z = network_logits(problem, weights, problem.samples.images, twice=False)
        loss = F.cross_entropy(z, batch.labels, reduction="none")
        steepness = (z.softmax(1) - F.one_hot(batch.labels, z.shape[1])).norm(dim=1)
        drawn = F.one_hot(part_of.draw(part.view).op, probabilities.shape[1])
        rows.append((drawn - probabilities, *shares, loss, steepness, batch.labels))
    return Passes(*(torch.stack(column).double() for column in zip(*rows, strict=True)))


def stratified(trainer: Trainer, u: Weights, count: int) -> Passes:
    """`passes` with each operation as often as its probability says."""
    policy = policy_part(trainer).policy
    own = policy._chosen
    policy._chosen = lambda u, bounds: own(evened(u), bounds)  # type: ignore[method-assign]
    found = passes(trainer, u, count)
    policy._chosen = own  # type: ignore[method-assign]
    return found


def evened(uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Uniform numbers [n, slots] in their own order, spread evenly over (0, 1) in each slot: systematic sampling.

    Where the even numbers begin is drawn by the low bits of the first, which say nothing of its rank.
    """
    ranks: npt.NDArray[np.float64] = (uniform.argsort(0).argsort(0) + uniform[:1] * 2**20 % 1) / len(uniform)
    return ranks


def pathwise(trainer: Trainer, u: Weights, count: int) -> Tensor:
    """Estimates by the policy's own relaxed form, [batches, logits]."""
    meta = trainer.meta
    assert isinstance(meta, OneStep)
    logits, rows = {"logits": policy_part(trainer).policy.logits}, []
    for number, batch in enumerate(batches(trainer, count)):
        samples = samples_of(trainer.augment.part(batch, WARM + number, torch.arange(len(batch.ids))))
        problem = meta.problem(meta.weights(trainer.network), samples, SEED)
        rows.append(hypergradient(problem, u, logits, "forward")["logits"].flatten().double())
    return torch.stack(rows)


def policy_part(trainer: Trainer) -> SharedPolicyPart:
    """The learned policy of a trainer."""
    assert trainer.meta.learned is not None
    return next(part for part in trainer.meta.learned.parts.values() if isinstance(part, SharedPolicyPart))


# ---- estimators ----


def scored(values: Tensor, seen: Passes) -> Tensor:
    """Mean over the samples of a batch of values times score: [batches, logits], slot after slot."""
    return (values[..., None, None] * seen.score).mean(1).flatten(1)


def less_others(values: Tensor) -> Tensor:
    """Values [batches, samples] less the mean of the others of their batch."""
    return (values - values.mean(1, keepdim=True)) * values.shape[1] / (values.shape[1] - 1)


def others(seen: Passes) -> Tensor:
    """Today's: share less the mean of the other samples."""
    return scored(less_others(seen.share), seen)


def by_class(seen: Passes) -> Tensor:
    """Share less the mean of the other samples of its class; of all others where there is none."""
    same = (seen.label[:, :, None] == seen.label[:, None]).double() - torch.eye(seen.label.shape[1])
    count = same.sum(2)
    mean = (same * seen.share[:, None]).sum(2) / count.clamp_min(1)
    return scored(torch.where(count > 0, seen.share - mean, less_others(seen.share)), seen)


def by_operation(seen: Passes) -> Tensor:
    """Share less its operation's mean in the BEFORE batches before, whose own term is added in closed form."""
    drawn = (seen.score > 0).double()
    probability = (drawn - seen.score)[0, 0]
    sums, count = (drawn * seen.share[..., None, None]).sum(1), drawn.sum(1)
    window = [torch.stack([values.roll(n, 0) for n in range(1, BEFORE + 1)]).sum(0) for values in (sums, count)]
    before = window[0] / window[1].clamp_min(1)
    known = probability * (before - (probability * before).sum(2, keepdim=True))
    return scored(less_others(seen.share - (drawn * before[:, None]).sum((2, 3))), seen) + known.flatten(1)


def controlled(*names: str) -> Estimator:
    """Share less a multiple of what costs nothing in training, whose own term comes from SEEN times the samples."""

    def estimate(seen: Passes) -> Tensor:
        share, free = less_others(seen.share), torch.stack([less_others(getattr(seen, name)) for name in names])
        slopes = torch.linalg.lstsq(free.flatten(1).T, share.flatten()[:, None]).solution[:, 0]
        control = (slopes[:, None, None] * free).sum(0)
        of_all = scored(control, seen).repeat(2, 1).cumsum(0)
        return scored(share - control, seen) + (of_all[SEEN:] - of_all[:-SEEN])[: len(control)] / SEEN

    return estimate


def per_steepness(seen: Passes) -> Tensor:
    """Share over the steepness of the sample's loss, less the mean of the others."""
    return scored(less_others(seen.share / (seen.steepness + FLAT)), seen)


def cut(seen: Passes) -> Tensor:
    """Share less the mean of the others, cut at LARGEST root mean squares of the batch."""
    share = less_others(seen.share)
    bound = LARGEST * share.square().mean(1, keepdim=True).sqrt()
    return scored(share.clamp(-bound, bound), seen)


def by_image(seen: Passes) -> Tensor:
    """Share less the mean of the same image's others; passes with COPIES of each image."""
    share = seen.share.unflatten(1, (COPIES, -1))
    return scored(((share - share.mean(1, keepdim=True)) * COPIES / (COPIES - 1)).flatten(1), seen)


def gumbel_name(temperature: float) -> str:
    """How the arm is called."""
    return f"straight-through Gumbel, temperature {temperature:g}"


def over_slots(seen: Passes) -> Tensor:
    """Today's for probabilities that are the same in all slots: the mean over the slots, in each."""
    slots = seen.score.shape[2]
    return others(seen).unflatten(1, (slots, -1)).mean(1).repeat(1, slots)


TODAY = "share less the mean of the others"
ESTIMATORS: dict[str, Estimator] = {
    TODAY: others,
    "share, no baseline": lambda seen: scored(seen.share, seen),
    "less the mean of its class": by_class,
    "less its operation's mean before": by_operation,
    "controlled by loss and steepness": controlled("loss", "steepness"),
    "controlled by the last layer's term": controlled("head"),
    "controlled by all three": controlled("head", "loss", "steepness"),
    "over steepness": per_steepness,
    "cut at three root mean squares": cut,
    "the same for all slots": over_slots,
}
UNBIASED = {  # the others are of another mean, or of one for all slots
    TODAY,
    "share, no baseline",
    "less the mean of its class",
    "less its operation's mean before",
    "controlled by loss and steepness",
    "controlled by the last layer's term",
    "controlled by all three",
    "stratified draws",
    "several operations an image, less its others' mean",
}


# ---- figures ----


def explained(share: Tensor, score: Tensor) -> float:
    """Share of the variance between samples that is between the operations of the first slot, corrected for chance."""
    drawn = (score[:, :, 0] > 0).double().flatten(0, 1)
    values = share.flatten() - share.mean()
    sums, count = values @ drawn, drawn.sum(0)
    between = (sums.square() / count.clamp_min(1)).sum() / values.square().sum()
    chance = (drawn.shape[1] - 1) / len(values)
    return ((between - chance) / (1 - chance)).item()


def figures(name: str, one: Tensor, today: Tensor) -> dict[str, float]:
    """Of the estimates of an estimator and those of today's, [batches, logits] each.

    noise: variance for each pass at the same length of the mean along today's, in that of today's; cosine: of the mean
    over GROUP batches with today's mean over all the others.
    """
    length, cosines = squared_length(today), []
    along = sum((one[first::2].mean(0) * today[1 - first :: 2].mean(0)).sum() for first in (0, 1)) / 2
    scale = along / length if name not in UNBIASED else 1.0
    for first in range(0, len(one) - GROUP + 1, GROUP):
        rest = (today.sum(0) - today[first : first + GROUP].sum(0)) / (len(today) - GROUP)
        cosines.append(F.cosine_similarity(one[first : first + GROUP].mean(0), rest, dim=0).item())
    return {"noise": (spread(one) / scale**2 / spread(today)).item(), "cosine": statistics.mean(cosines)}


def spread(one: Tensor) -> Tensor:
    """Variance of the estimate of one batch, summed over the logits."""
    return one.var(0).sum()


def squared_length(one: Tensor) -> Tensor:
    """That of the mean of an unbiased estimator, without the part of its noise."""
    return one.mean(0).square().sum() - spread(one) / len(one)


def batches_for(one: Tensor, cosine: float) -> float:
    """How many batches give a mean with this cosine, for an unbiased estimator whose noise has no direction."""
    return (cosine**2 / (1 - cosine**2) * spread(one) / squared_length(one)).item()
