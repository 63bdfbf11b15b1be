"""Finds a learning rate for a recipe: its training loss while the rate rises exponentially.

    fastaug find-lr quickstart --updates 60

Trains the recipe's own step, network, augmentation and freezing, without schedule, meta step and run folder.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastaug.commands._argument_types import output_file
from fastaug.errors import DataError, told
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Augment

if TYPE_CHECKING:
    from fastaug.training.rate_sweep import Sweep

OF_COPIES = ("copies", "clean_loss", "copies_loss", "consistency", "consistency_detach")
SWEPT = [
    *("run.trackers=[]", "run.log_ids=false", "run.sample_record=false", "run.plant=0", "run.plant_like=null"),
    *("optim.sched=constant", "optim.patience_epochs=10", "optim.warmup_epochs=0", "optim.min_lr=0"),
    *("optim.cooldown_epochs=0", "augment.mixup_off_epoch=0"),
    *("model.head_first_epochs=0", "augment.start_epochs=0", "augment.anneal_epochs=0", "augment.anneal_factor=1000"),
    # Without what is learned copies may be the images themselves, which is refused.
    *("eval.tta=0", *(f"augment.{key}={json.dumps(getattr(Augment(), key))}" for key in OF_COPIES)),
    *("augment.trust=0", "meta.learn=[]", "meta.reuse=null", "meta.frozen=false", "meta.train_weight=1"),
]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug find-lr", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="YAML file; recipes/ has examples")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces one value of the recipe")
    parser.add_argument("--low", type=float, default=1e-7, help="first learning rate (default 1e-7)")
    parser.add_argument("--high", type=float, default=10.0, help="last learning rate (default 10)")
    parser.add_argument("--updates", type=int, default=100, metavar="N", help="updates of the sweep (default 100)")
    parser.add_argument("--png", type=output_file, metavar="FILE", help="write the curve as a picture")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write rates, losses and the suggestion")
    arguments = parser.parse_intermixed_args(argv)
    if not 0 < arguments.low < arguments.high < math.inf:
        parser.error(f"--low must be above 0 and below --high, found {arguments.low} and {arguments.high}")
    if arguments.updates < 20:
        parser.error(f"--updates must be 20 or more, found {arguments.updates}")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Sweeps, prints, writes what is asked for."""
    recipe = read_recipe(arguments.recipe, [*arguments.overrides, *SWEPT])  # before the slow imports
    from fastaug.console import Console
    from fastaug.distributed import build_accelerator
    from fastaug.training.build import assemble
    from fastaug.training.rate_sweep import sweep
    from fastaug.training.run_folder import RunFolder

    accelerator = build_accelerator(recipe)
    with tempfile.TemporaryDirectory() as folder:
        trainer = assemble(recipe, accelerator, RunFolder(folder), Console(accelerator.is_main_process))
        found = sweep(trainer, arguments.low, arguments.high, arguments.updates)
    if accelerator.is_main_process:
        tell(found, recipe.optim.lr)
        write(arguments, found)
    accelerator.end_training()
    if found.steepest is None:
        raise DataError("no rate is suggested: the loss did not fall; lower --low, raise --high, or raise --updates")


def tell(found: "Sweep", given: float) -> None:
    """Prints the curve and the suggestion."""
    rows = max(1, len(found.rates) // 20)
    top, bottom = max(found.smoothed, default=1.0), min(found.smoothed, default=0.0)
    for rate, loss in list(zip(found.rates, found.smoothed, strict=True))[::rows]:
        print(f"lr {rate:9.3g}  loss {loss:8.4f}  {'#' * round(40 * (loss - bottom) / (top - bottom or 1))}")
    print(f"{'the loss diverged' if found.diverged else 'the loss did not diverge'} after {len(found.rates)} updates")
    if found.steepest is not None and found.lowest is not None:
        print(f"the loss falls fastest at {found.steepest:.2g} and is lowest at {found.lowest:.2g}")
        print(f"suggestion: optim.lr={found.suggestion:.2g}, a tenth of that")
        print(f"the recipe has optim.lr={given:g}")


def write(arguments: argparse.Namespace, found: "Sweep") -> None:
    """The files that are asked for."""
    if arguments.png:
        from fastaug.reports.charts import lines_chart

        xs = [math.log10(rate) for rate in found.rates]
        title = f"training loss of {Path(arguments.recipe).name} over log10 of the learning rate"
        bounds = (min(found.smoothed), max(found.smoothed[: len(found.smoothed) * 3 // 4 + 1]) * 1.05)
        curves = {"loss": [min(max(loss, bounds[0]), bounds[1]) for loss in found.smoothed]}
        lines_chart(title, xs, curves, bounds=bounds, across="log10 lr").save(arguments.png, "PNG")
    if arguments.json:
        values: dict[str, Any] = {**found._asdict(), "suggestion": found.suggestion}
        arguments.json.write_text(json.dumps(values, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    return told(lambda: run(parse(argv)))
