"""What a meta step costs: whole training steps with and without it, taking turns."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.meta.scene import Scene, Steps
from fastaug.recipe.schema import Meta

SHARED = ["meta.learn=[policy,softness]", "meta.probabilities=score"]
PER_SAMPLE = ["meta.learn=[weights]", "meta.every=1", "meta.fraction=1"]
STILL = ["meta.policy_lr=0", "meta.softness_lr=0"]
EVIDENCE_EVERY = Meta(learn=["policy"]).every
NEVER = "meta.start_epochs=999"  # the same augmentation, and no meta step


def timed_blocks(
    scene: Scene, arms: Mapping[str, Sequence[str]], *, block: int, rounds: int, warm: int
) -> dict[str, list[dict[str, float]]]:
    """Seconds per step of each arm in every round, on the clock and of the processor; one untimed block of `warm`."""
    steps = {name: Steps(scene.trainer(*overrides)) for name, overrides in arms.items()}
    for run in steps.values():
        run(warm)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for number in range(rounds):
        for name in list(steps) if number % 2 == 0 else reversed(list(steps)):
            wall, cpu = time.perf_counter(), time.process_time()
            steps[name](block)
            seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            found[name].append({clock: value / block for clock, value in seconds.items()})
    return found


def ratios(blocks: Mapping[str, list[dict[str, float]]], plain: str, clock: str = "wall") -> dict[str, float]:
    """Median over rounds of each arm's seconds over those of `plain` in the same round."""
    return {
        name: statistics.median(one[clock] / other[clock] for one, other in zip(rounds, blocks[plain], strict=True))
        for name, rounds in blocks.items()
    }


def shared_arms(points: Sequence[tuple[int, float, int]]) -> dict[str, list[str]]:
    """K = 10, f = 1/4 with and without magnitudes, and the chosen points (K, f, meta images) of the frontier.

    At meta rates of 0: a policy that moves draws other operations, so that augmenting would cost more or less.
    """
    k10 = ["meta.every=10", "meta.fraction=0.25", "meta.batch_size=16"]
    arms = {
        "plain": [*SHARED, *STILL, NEVER],
        "K=10 f=1/4 all": [*SHARED, *STILL, *k10],
        "K=10 f=1/4 forward-only": [*SHARED, *STILL, *k10, "meta.magnitudes=false"],
    }
    for every, fraction, images in points:
        point = [f"meta.every={every}", f"meta.fraction={fraction}", f"meta.batch_size={images}"]
        arms[point_name(every, fraction, images)] = [*SHARED, *STILL, *point]
    return arms


def point_name(every: int, fraction: float, images: int) -> str:
    """How a point of the frontier is called."""
    return f"K={every} f={fraction:g} m={images}"


def cost_of_parts(scene: Scene, fractions: Sequence[float], sizes: Sequence[int]) -> dict[tuple[float, int], float]:
    """What one meta step adds, in plain steps, by f and meta images: a meta step after every update, against none."""
    arms = {"plain": [*SHARED, *STILL, NEVER]}
    keys = {f"{fraction} {images}": (fraction, images) for fraction in fractions for images in sizes}
    for name, (fraction, images) in keys.items():
        arms[name] = [*SHARED, *STILL, "meta.every=1", f"meta.fraction={fraction}", f"meta.batch_size={images}"]
    found = ratios(timed_blocks(scene, arms, block=3, rounds=5, warm=2), "plain")
    return {key: found[name] - 1 for name, key in keys.items()}


def evidence_arms() -> dict[str, list[str]]:
    """A policy that learns from evidence after every update, v from 64 meta images, and what makes that cheaper."""
    last = ["meta.learn=[policy]", "meta.operations=broad", "meta.engine=auto", "meta.every=1", "augment.cutmix=0"]
    whole = [*last, "meta.layers=[]"]
    return {
        "plain": [*last, NEVER],
        "whole network, v every time": [*whole, "meta.renew=1"],
        "whole network, v every third time": whole,
        "last stage and classifier, v every time": [*last, "meta.renew=1"],
        "last stage and classifier, v every second time": [*last, "meta.renew=2"],
        "last stage and classifier, v every third time": last,
    }


def sample_arms() -> dict[str, list[str]]:
    """Sample weights at every step: exact and approximate, with the validation gradient renewed now and then."""
    fives = [*PER_SAMPLE, "meta.renew=5", "meta.half_life=5"]
    tens = [*PER_SAMPLE, "meta.renew=10", "meta.half_life=10"]
    last = ["meta.engine=fused", "meta.layers=[layer4,fc]"]
    return {
        "plain": [*PER_SAMPLE, NEVER],
        "forward, v every step": PER_SAMPLE,
        "forward, v every 5": fives,
        "fused, v every 5": [*fives, "meta.engine=fused"],
        "difference, v every 5": [*fives, "meta.engine=difference"],
        "fused on layer4 and fc, v every 5": [*fives, *last],
        "fused on layer4 and fc, v every 10": [*tens, *last],
    }


def rows(blocks: Mapping[str, list[dict[str, float]]]) -> list[tuple[Any, ...]]:
    """Name, milliseconds on the clock, ratio to plain on the clock and in processor time."""
    wall, cpu = ratios(blocks, "plain"), ratios(blocks, "plain", "cpu")
    return [
        (name, f"{1000 * statistics.median(r['wall'] for r in rounds):.1f}", f"{wall[name]:.3f}", f"{cpu[name]:.3f}")
        for name, rounds in blocks.items()
    ]
