"""Who may import whom. The table is the plan of `fastaug/`; CONTRIBUTING.md says what each room is for.

Imports inside functions and for type checking count: a type is knowledge. A new room gets a line here.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALL_BEFORE = "everything in the lines before"
MAY_IMPORT = {  # from the bottom of the house to the top: a room knows only rooms in lines before its own
    "errors": "",
    "seeding": "",
    "atomic_files": "",
    "console": "",
    "batch": "",
    "targets": "",
    "provenance": "",
    "recipe": "errors atomic_files",
    "losses": "targets recipe",
    "ops": "targets seeding",
    "distributed": "errors recipe",
    "data": "seeding errors batch atomic_files console",
    "augment": "ops targets seeding errors batch recipe",
    "hypergrad": "targets",
    "nets": "errors recipe atomic_files",
    "meta": "hypergrad augment data recipe targets losses distributed seeding errors batch",
    "evaluation": ALL_BEFORE,
    "reports": ALL_BEFORE,
    "training": ALL_BEFORE,
    "inference": ALL_BEFORE,
    "step_profile": ALL_BEFORE,
    "lightning_callback": "ops seeding",
    "api": "errors recipe training",
    "commands": ALL_BEFORE,
    "train": "commands",
    "__main__": "commands",
}
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "fastaug").rglob("*.py"))
}


def allowed(room: str) -> set[str]:
    """The rooms that `room` may import, itself among them."""
    before = list(takewhile(lambda other: other != room, MAY_IMPORT))
    return {room, *(before if MAY_IMPORT[room] == ALL_BEFORE else MAY_IMPORT[room].split())}


def imports(name: str, text: str) -> Iterator[tuple[str, int]]:
    """Every module that the text of module `name` imports, and in which line; of `from a import b` the longer a.b."""
    package = name if FILES.get(name, Path()).name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            longer = {f"{base}.{alias.name}" for alias in node.names}
            yield from ((module, node.lineno) for module in {x if x in FILES else base for x in longer})


def room_of(module: str) -> str:
    """fastaug.data.index -> data."""
    return module.split(".")[1] if "." in module else ""


def trespasses(name: str, text: str) -> list[str]:
    """What a module imports and may not, with its line."""
    found = []
    for module, line in imports(name, text):
        ours = module.split(".")[0] == "fastaug" and room_of(module) not in {*allowed(room_of(name)), ""}
        if ours or module.split(".")[0] in ("benchmarks", "tools", "tests", "attacks"):
            found.append(f"line {line}: {module}")
    return found


def test_a_room_imports_only_what_it_may_know() -> None:
    names = [name for name in FILES if name != "fastaug"]
    new = {room_of(name) for name in names} - MAY_IMPORT.keys()
    assert not new, "a new room: give it a line in the table"
    assert {name: found for name in names if (found := trespasses(name, FILES[name].read_text()))} == {}


def test_no_room_knows_one_above_it() -> None:
    """So no circle of rooms can keep to the table."""
    rooms = list(MAY_IMPORT)
    assert all(rooms.index(other) <= rooms.index(room) for room in rooms for other in allowed(room))
    assert set(rooms) == {room_of(name) for name in FILES} - {""}


def test_contributing_shows_this_table() -> None:
    shown: dict[str, str] = {}
    for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines():
        if row := re.fullmatch(r"\| (`.+`) \| (.+) \|", line):
            others = {"all above": ALL_BEFORE, "nothing of fastaug": ""}.get(row[2], row[2].replace("`", ""))
            shown |= dict.fromkeys(row[1].replace("`", "").split(), others)
    assert list(shown.items()) == list(MAY_IMPORT.items())


def test_no_circle_of_modules() -> None:
    graph = {name: {m for m, _ in imports(name, file.read_text())} & set(FILES) for name, file in FILES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize(
    "text",
    [
        "import fastaug.training.loop",
        "from fastaug.training import loop",
        "from fastaug import training",
        "from ..training.loop import train_step",
        "def late():\n    from fastaug.training.loop import train_step",
        "if TYPE_CHECKING:\n    from fastaug.training.build import Trainer",
        "from benchmarks.child import command",
    ],
)
def test_every_way_of_importing_is_seen(text: str) -> None:
    assert len(trespasses("fastaug.data.index", text)) == 1
    assert not trespasses("fastaug.data.index", "import torch\nfrom fastaug.seeding import Key\nfrom . import splits")
