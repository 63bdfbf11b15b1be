"""What a meta step adds to an update, and where its time goes: `python -m benchmarks.meta.stages RECIPE KEY=VALUE ...`.

The real step of a recipe, on one batch that is there already: updates with a meta step against those without, first
undisturbed, then with a wait for the device at the border of each stage, which makes the sum of the stages longer.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastaug.batch import Batch
from fastaug.console import Console
from fastaug.distributed import build_accelerator
from fastaug.meta.step import MetaStep
from fastaug.recipe.reading import UNTRAINED, read_recipe
from fastaug.step_profile.measure import loader_alone, settle, shown_again
from fastaug.training.build import Trainer, assemble
from fastaug.training.loop import train_step
from fastaug.training.run_folder import RunFolder

# Methods of a meta step, outermost first, by what they do; those that a strategy has.
STAGES = {
    "before_forward": "before the pass",
    "before_update": "record of the update",
    "after_update": "rest",
    "renew": "validation gradient",
    "gradients": "back through augmentation",
    "cotangent": "engine",
    "observation": "evidence",
    "move": "meta-optimizer",
}
CADENCES = (10, 6)  # K for which the cost is told


class Updates(NamedTuple):
    """Seconds of updates without a meta step and with one."""

    plain: list[float]
    meta: list[float]

    def cost(self, every: int) -> float:
        """What a meta step every so many updates adds to an update, relative. Not each one renews v, hence means."""
        plain = statistics.median(self.plain)
        return (statistics.mean(self.meta) - plain) / plain / every


class Stopwatch:
    """Seconds of each call of methods, less what others take inside of them; waits for the device at every border."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._inside: list[float] = []

    def watch(self, owner: Any, method: str, stage: str) -> None:
        """Times the calls of a method of `owner` as `stage`."""
        call: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            settle(self.device)
            self._inside.append(0.0)
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                settle(self.device)
                whole, others = time.perf_counter() - start, self._inside.pop()
                self.seconds[stage].append(whole - others)
                if self._inside:
                    self._inside[-1] += whole

        setattr(owner, method, timed)


def run(trainer: Trainer, batch: Batch, updates: int) -> Updates:
    """So many updates on a batch."""
    device, again, found = trainer.accelerator.device, shown_again(trainer, batch, updates), Updates([], [])
    for _ in range(updates):
        due = trainer.meta.acts(trainer.progress.step)
        settle(device)
        start = time.perf_counter()
        train_step(trainer, again)
        settle(device)
        (found.meta if due else found.plain).append(time.perf_counter() - start)
    return found


def measured(trainer: Trainer, updates: int) -> tuple[Updates, dict[str, list[float]]]:
    """Updates undisturbed, and seconds of the stages by name; ValueError without a meta step."""
    meta = trainer.meta
    if not isinstance(meta, MetaStep):
        raise ValueError("the recipe has no meta step: name meta.learn")
    meta.first_step = 0
    _, batch = loader_alone(trainer, 2)
    run(trainer, batch, 3 * trainer.recipe.meta.every + 1)  # what is chosen, compiled or recorded once
    undisturbed = run(trainer, batch, updates)
    watch = Stopwatch(trainer.accelerator.device)
    watch.watch(meta.augment, "part", "images once more")
    for method, stage in STAGES.items():
        if hasattr(meta, method):
            watch.watch(meta, method, stage)
    run(trainer, batch, updates)
    return undisturbed, watch.seconds


def main() -> None:
    """Prints milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--updates", type=int, default=40, help="of each part (default 40)")
    arguments = parser.parse_intermixed_args()
    recipe = read_recipe(arguments.recipe, [*arguments.overrides, *UNTRAINED])
    if not recipe.meta.learn:
        parser.error("the recipe has no meta step: name meta.learn")
    if arguments.updates <= recipe.meta.every:
        parser.error(f"--updates must be more than meta.every, {recipe.meta.every}; found {arguments.updates}")
    accelerator = build_accelerator(recipe)
    with tempfile.TemporaryDirectory() as folder:
        trainer = assemble(recipe, accelerator, RunFolder(folder), Console(False))
        updates, stages = measured(trainer, arguments.updates)
    for name, seconds in (("without", updates.plain), ("with", updates.meta)):
        print(f"update {name} a meta step: {1000 * statistics.mean(seconds):.1f} ms")
    print(*(f"at K = {every}: {updates.cost(every):+.1%}" for every in CADENCES), sep="; ")
    for stage, seconds in stages.items():
        spent = f"{1000 * statistics.mean(seconds):.1f} ms a call, {len(seconds)} calls"
        print(f"  {stage:<26} {spent}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
