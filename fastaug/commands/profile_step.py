"""Tells where the time of a training step goes, and which stage limits it.

    fastaug profile-step quickstart

Whether loading hides behind computing, too.

Runs the real step: data, network and optimizer of the recipe, without its run folder, trackers and initial weights.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path

from fastaug.commands._argument_types import output_file
from fastaug.errors import told
from fastaug.recipe.reading import UNTRAINED, read_untrained


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug profile-step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="YAML file, or the name of one that `fastaug recipes` lists")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces one value of the recipe")
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="timed steps of each pass (default 30)")
    parser.add_argument("--trace", type=output_file, metavar="FILE", help="write a Chrome trace of a few more steps")
    parser.add_argument("--png", type=output_file, metavar="FILE", help="write the bars as a picture")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write everything that was measured")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, found {arguments.steps}")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints, writes what is asked for."""
    recipe = read_untrained(arguments.recipe, [*arguments.overrides, *UNTRAINED])  # before the slow imports
    from rich.console import Console as Terminal

    from fastaug.console import Console
    from fastaug.distributed import build_accelerator
    from fastaug.provenance import commit, versions
    from fastaug.step_profile import page as profile_view
    from fastaug.step_profile.measure import profile
    from fastaug.training.build import assemble
    from fastaug.training.run_folder import RunFolder

    accelerator = build_accelerator(recipe)
    with tempfile.TemporaryDirectory() as folder:
        trainer = assemble(recipe, accelerator, RunFolder(folder), Console(False))
        found = profile(trainer, arguments.steps, arguments.trace)
    if accelerator.is_main_process:
        terminal = Terminal(highlight=False, soft_wrap=True)
        terminal.print(profile_view.table(found))
        for line in profile_view.sentences(found, recipe):
            terminal.print(line, markup=False)
        if arguments.png:
            profile_view.picture(found, Path(arguments.recipe).name).save(arguments.png, "PNG")
        if arguments.json:
            about = {"machine": platform.platform(), "device": found.device, "cores": found.cores}
            about |= {"versions": versions(), "commit": commit()}
            text = json.dumps({**about, **profile_view.as_json(found, recipe)}, indent=1)
            arguments.json.write_text(text + "\n")
    accelerator.end_training()


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    return told(lambda: run(parse(argv)))
