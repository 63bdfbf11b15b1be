"""Every command that a page shows is one that works.

Those of docs/tutorial.md and of README's everyday ones are executed, in order, on a tiny folder (slow). All others go
through the parser of their command; where they name a recipe that comes with fastaug, it is read with the words behind
it, so that a key that was renamed, or a value out of its limits, fails here. Options of benchmarks, attacks and scripts
of studies, which have their parsers inside, are looked for in their source; those of launchers go through theirs.
"""

import argparse
import csv
import io
import re
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.__main__ import main
from fastaug.errors import RecipeError
from fastaug.recipe.reading import read_recipe
from tests.documented_commands import PAGES, ROOT, Command, commands

THERE = "is not a run folder|there is no folder"  # said of a command line that is well, where nothing has run yet
MADE = re.compile(r"^meta\.reuse=|=file:")  # of files that other commands of the page make
REFUSED = "optim.weigth_decay"  # README shows what a wrong key is told
SCRIPTS = {"benchmarks": "benchmarks", "attacks": "attacks", "tools": "benchmarks attacks tools"}  # where parsers are


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    problems = {found.text: told for found in commands(page.read_text()) if (told := problem(found))}
    assert not problems, "\n".join(f"{text}\n    {told}" for text, told in problems.items())


def test_commands_are_found_and_wrong_ones_told() -> None:
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 180
    for wrong, told in (
        ("fastaug nothing runs/a", "no command"),
        ("fastaug predict runs/a", "required: FILE"),
        ("fastaug evaluate runs/a --colour", "--colour"),
        ("fastaug train quickstart optim.rate=1", "optim.rate"),
        ("fastaug train quickstart optim.lr=-1", "above 0"),
        ("accelerate launch --gpus-of-mine 2 -m fastaug train quickstart", "--gpus-of-mine"),
        ("python -m benchmarks.loader --nothing", "--nothing"),
        ("python tools/nothing.py", "nothing.py"),
    ):
        found = list(commands(f"    {wrong}\n"))
        assert len(found) == 1, wrong
        assert told in problem(found[0]), wrong


def problem(command: Command) -> str:
    """What is wrong with a command; nothing if it is well."""
    if command.launcher and (told := launcher_problem(command.launcher)):
        return told
    if command.kind == "launcher" or command.words == ["--help"]:
        return ""
    if command.kind == "fastaug":
        return fastaug_problem(command)
    file = ROOT / command.name if command.kind == "python" else ROOT / Path(*command.name.split("."))
    places = [place for place in (file, file.with_suffix(".py")) if place.exists()]
    if not places:
        return f"there is no {command.name}"
    folders = SCRIPTS.get(Path(command.name.replace(".", "/")).parts[0], "")
    sources = [*places, *(ROOT / folder for folder in folders.split())]
    text = "".join(
        source.read_text() for place in sources for source in ([place] if place.is_file() else place.rglob("*.py"))
    )
    missing = [word for word in command.words if word.startswith("--") and f'"{word.partition("=")[0]}"' not in text]
    return f"{command.name} knows no {' '.join(missing)}" if missing else ""


def launcher_problem(words: list[str]) -> str:
    """What the launcher's own parser says of its options."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser as parser
    else:
        from accelerate.commands.launch import launch_command_parser as parser
    options = words[1 if words[0] == "torchrun" else 2 :]
    return said(lambda: parser().parse_args([*options, "script.py"])) if options else ""


def fastaug_problem(command: Command) -> str:
    """What the parser of a command says, or the recipe that it would read."""
    if command.name in ("--help", "--version"):
        return ""
    if not (ROOT / "fastaug" / "commands" / f"{command.name.replace('-', '_')}.py").exists():
        return f"no command {command.name}"
    parse = import_module(f"fastaug.commands.{command.name.replace('-', '_')}").parse
    read: list[argparse.Namespace] = []
    if (told := said(lambda: read.append(parse(command.words)))) or not read:
        return told
    arguments = read[0]
    recipe, overrides = getattr(arguments, "recipe", None), getattr(arguments, "overrides", [])
    shipped = recipe is not None and "/" not in str(recipe).removeprefix("recipes/").removeprefix("docs/studies/")
    if not shipped or not ((ROOT / recipe).exists() or (ROOT / "recipes" / f"{recipe}.yaml").exists()):
        return ""
    try:
        read_recipe(recipe, [word for word in overrides if not MADE.search(word)])
    except RecipeError as error:
        return "" if REFUSED in command.text else str(error)
    return ""


def said(parse: Callable[[], object]) -> str:
    """What argparse prints before it gives up."""
    with redirect_stderr(io.StringIO()) as told, redirect_stdout(io.StringIO()):
        try:
            parse()
        except SystemExit as end:
            last = told.getvalue().strip().rpartition("\n")[2] if end.code else ""
            return "" if re.search(THERE, last) else last
    return ""


SMALL = (  # what makes the tutorial's network and images small, behind the words of its commands
    *("model.name=test_resnet", "model.pretrained=false", "data.img_size=32", "data.threads=1"),
    *("train.epochs=1", "train.batch_size=12", "optim.warmup_epochs=0"),
)


@pytest.fixture
def photos_here(jpegs: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos/ and new_photos/, the working directory; study's own processes find the checkout."""
    jpegs(tmp_path / "photos", 2, 30, sizes=(40, 60))
    jpegs(tmp_path / "new_photos", 1, 3, sizes=(40, 60))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_runs_from_top_to_bottom(photos_here: Path) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    for name, content in re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", text, flags=re.S):
        (photos_here / name).write_text(content)
    ran = []
    for command in commands(text, prose=False):
        more = SMALL if "fine_tune" in command.words else ["--seeds", "0"] if command.name == "study" else []
        for state in (AcceleratorState, GradientState, PartialState):  # each was a process of its own
            state._reset_state()
        assert main([command.name, *command.words, *more]) == 0, command.text
        ran.append(command.name)
        if command.name == "label-report":  # somebody ticks a row of its page, and saves
            with open("runs/photos/labels.csv", newline="") as file:
                row = next(row for row in csv.DictReader(file) if row["split"] == "train")
            Path("corrected.tsv").write_text(f"{row['id']}\t{row['predicted_label']}\n")
    assert ran[:6] == ["check", "show-batch", "train", "evaluate", "report", "label-report"]
    assert ran[6:] == ["train", "report", "study", "predict", "export"]
    pages = ("runs/photos/report.html", "runs/photos/labels.html", "both.html")
    assert not [
        name for name in (*pages, "batch.png", "predictions.csv", "study.json") if not Path(name).stat().st_size
    ]
    assert (photos_here / "my_model" / "README.md").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_readme_takes_a_folder_to_its_report_in_three_commands(photos_here: Path) -> None:
    text = (ROOT / "README.md").read_text()
    block = re.search(r"## Your images, in three commands\n[\s\S]*?\n((?: {4}.*\n)+)", text)
    assert block is not None
    found = list(commands(block[1]))
    assert [command.name for command in found] == ["train", "report", "predict"]
    for command in found:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        more = SMALL if command.name == "train" else []
        assert main([command.name, *command.words, *more]) == 0, command.text
    assert (photos_here / "runs" / "photos" / "report.html").stat().st_size > 10_000
