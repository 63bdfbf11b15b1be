"""Trains the recipe behind it up to update argv[1], or to the end where that is 0; ends with the run's exit code."""

import sys

from fastaug.recipe.reading import read_recipe
from fastaug.training.listeners import Line, Listeners
from fastaug.training.worker import attempt

LAST = int(sys.argv[1])


def stop(line: Line) -> None:
    """Ends the run, saved, behind update LAST."""
    if line["event"] == "train" and line["step"] == LAST:
        raise RuntimeError("enough")


if __name__ == "__main__":
    sys.exit(attempt(read_recipe(sys.argv[2], sys.argv[3:]), Listeners([stop])).code)
