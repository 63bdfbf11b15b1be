"""Recipes that come with fastaug, found by name: `quickstart`, wherever it is installed and from any folder.

What is written as the path of a file that exists is always that file. A name is `quickstart`, `quickstart.yaml` or, as
the documentation has it, `recipes/quickstart.yaml`; any other path that leads nowhere is an error.
"""

import difflib
import os
import sys
from pathlib import Path

from fastaug.errors import RecipeError

FOLDER = Path(__file__).resolve().parents[1] / "recipes"  # in a checkout a link to its recipes/
MOST_NEAR = 5  # names of a message


def shipped_names() -> list[str]:
    """The names of the recipes that come with fastaug; base/, what they share, is not among them."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_recipe(given: str | Path) -> Path:
    """The file that `given`, a path or the name of a shipped recipe, stands for; RecipeError when there is none.

    Told on standard error where a path that does not exist is taken as a name.
    """
    path = Path(given)
    bare = path.suffix != ".yaml" and len(path.parts) == 1
    if _is_file(path) or not (bare or path.parts[:-1] in ((), ("recipes",))):
        return path
    name = path.name if bare else path.stem
    if name not in shipped_names():
        raise RecipeError([_unknown(given, name)])
    here = Path(f"{name}.yaml")
    if bare and _is_file(here):
        which = f"write {here} for the file in this folder, recipes/{here} for the one that comes with fastaug"
        raise RecipeError([f"{given}: can be two recipes; {which}"])
    if not bare:
        print(f"{given}: no such file here; taking the recipe {name!r} that comes with fastaug", file=sys.stderr)
    return FOLDER / f"{name}.yaml"


def _is_file(path: Path) -> bool:
    """Whether there is something to read at `path`: a pipe too."""
    return os.path.exists(path) and not os.path.isdir(path)


def _unknown(given: str | Path, name: str) -> str:
    """What is said of a name that no recipe has, with those that are near."""
    if _is_file(here := Path(f"{name}.yaml")):
        return f"{given}: no such recipe comes with fastaug; for the file in this folder write {here}"
    near = difflib.get_close_matches(name[:100], shipped_names(), n=MOST_NEAR, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}? Or" if near else ""
    remedy = "give the path of a YAML file, or a name that `fastaug recipes` lists"
    return f"{str(given)[:100]}: no such recipe{hint or ';'} {remedy}"
