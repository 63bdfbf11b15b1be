"""Recipes that stand on a base, and what the recipes of the project say of themselves."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from fastaug.errors import RecipeError
from fastaug.recipe.reading import read_recipe, to_yaml
from fastaug.recipe.strict_yaml import parse_yaml

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
BASES = sorted((FOLDER / "base").glob("*.yaml"))
BASE = """
data: {root: images, std: [0.1, 0.2, 0.3]}
model: {kwargs: {a: 1, b: 2}}
optim: {lr: 1, momentum: 0.5}
"""


def write(folder: Path, recipe: str, base: str = BASE) -> Path:
    (folder / "base").mkdir(exist_ok=True)
    (folder / "base" / "b.yaml").write_text(base)
    (folder / "r.yaml").write_text(recipe)
    return folder / "r.yaml"


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, list(overrides))
    return caught.value.problems


def test_a_recipe_replaces_keys_of_its_base(tmp_path: Path) -> None:
    path = write(tmp_path, "base: base/b.yaml\noptim: {lr: 2}\ndata: {std: [1, 2, 3]}\nmodel: {kwargs: {c: 3}}\n")
    recipe = read_recipe(path, ["optim.weight_decay=0.5"])
    assert (recipe.optim.lr, recipe.optim.momentum, recipe.optim.weight_decay) == (2, 0.5, 0.5)
    assert (recipe.data.root, recipe.data.std) == ("images", [1, 2, 3])
    assert recipe.model.kwargs == {"c": 3}  # a mapping is one value, like a list
    assert recipe.run.dir == str(Path("runs") / "r")
    assert "base" not in parse_yaml(to_yaml(recipe))


def test_a_base_that_lies_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, "")
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(["../base/b.yaml", str(tmp_path / "base" / "b.yaml")]):
        path = tmp_path / "deep" / f"{number}.yaml"
        path.write_text(f"base: {name}\n")
        assert read_recipe(path).optim.lr == 1


@pytest.mark.parametrize(
    ("recipe", "base", "message"),
    [
        ("base: base/c.yaml", BASE, "c.yaml: no such recipe"),
        ("base: 3", BASE, "base: expected the path of a YAML file, got 3 (int)"),
        ("base:", BASE, "base: expected the path of a YAML file, got None (NoneType)"),
        ("base: base/b.yaml", "base: ../other.yaml", "base: base/b.yaml has a base of its own, '../other.yaml'; write"),
        ("base: base/b.yaml", "- a", "base: base/b.yaml is not a mapping of sections"),
        ("base: base/b.yaml", "data: {root: x", "b.yaml: not valid YAML"),
        ("base: base/b.yaml", "data: {root: x, rot: y}", "data.rot: unknown key; did you mean 'root'?"),
        ("base: base/b.yaml\noptim: 3", BASE, "optim: expected a mapping of keys, got 3 (int)"),
        ("base: base/b.yaml", f"{BASE}\nrun: 3", "run: expected a mapping of keys, got 3 (int)"),
    ],
)
def test_bases_that_cannot_be_read(tmp_path: Path, recipe: str, base: str, message: str) -> None:
    (problem,) = problems(write(tmp_path, recipe, base))
    assert message in problem


def test_a_base_is_named_in_the_file_alone(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, "data: {root: x}"), "base=base/b.yaml")
    assert problem.startswith("base: unknown key")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_states_its_source_command_hardware_and_result(path: Path) -> None:
    head = path.read_text().partition("\n\n")[0]
    lines = [line for line in head.splitlines() if line.startswith("#")]
    assert re.fullmatch(r"# .{40,}", lines[0])
    said = re.findall(r"^# ([A-Z][a-z]+): +(\S.*)$", "\n".join(lines), re.MULTILINE)
    assert {"Command", "Hardware", "Result"} <= {name for name, _ in said}
    assert f"fastaug/train.py recipes/{path.name}" in "\n".join(lines)


def test_the_documentation_lists_every_recipe() -> None:
    text = (FOLDER.parent / "docs" / "recipes.md").read_text()
    table = text.split("## The recipes that come with fastaug")[1].split("\n## ")[0]
    patterns = [
        name for row in table.splitlines() if row.startswith("| `") for name in row.split("|")[1].split("`")[1::2]
    ]
    names = [path.stem for path in RECIPES]
    assert [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)] == []


@pytest.mark.parametrize("path", BASES, ids=lambda path: path.name)
def test_a_base_says_what_it_is_and_serves_recipes(path: Path) -> None:
    assert "Not a recipe by itself" in path.read_text()
    assert "base" not in parse_yaml(path.read_text())
    users = [recipe for recipe in RECIPES if parse_yaml(recipe.read_text()).get("base") == f"base/{path.name}"]
    assert len(users) >= 2
    shared = parse_yaml(path.read_text())
    for user in users:
        own = parse_yaml(user.read_text())
        again = [
            f"{section}.{key}"
            for section, keys in shared.items()
            for key, value in keys.items()
            if own.get(section, {}).get(key) == value
        ]
        assert again == [], f"{user.name} repeats its base"
