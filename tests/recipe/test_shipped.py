"""Recipes by name: what is a file is that file, what is a name is the shipped one, and everything else is an error."""

import re
from pathlib import Path

import pytest

from fastaug.errors import RecipeError
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.shipped import FOLDER, find_recipe, shipped_names

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_shipped_recipes_are_those_of_the_repository() -> None:
    assert FOLDER.resolve() == REPO / "recipes"
    assert {"quickstart", "imagenet_sa", "mnist5k_policy"} < set(shipped_names())
    assert all((REPO / "recipes" / f"{name}.yaml").is_file() for name in shipped_names())


@pytest.mark.parametrize(
    ("given", "told"), [("quickstart", False), ("quickstart.yaml", True), ("recipes/quickstart.yaml", True)]
)
def test_a_name_is_found_from_any_folder(given: str, told: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_recipe(given) == FOLDER / "quickstart.yaml"
    said = f"{given}: no such file here; taking the recipe 'quickstart' that comes with fastaug\n"
    assert capsys.readouterr().err == (said if told else "")
    assert read_recipe(given).run.dir == "runs/quickstart"


def test_every_shipped_recipe_finds_its_base() -> None:
    for name in shipped_names():
        read_recipe(name, ["data.root=images"])


def test_a_file_goes_before_a_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (here / "quickstart.yaml", here / "recipes" / "quickstart.yaml", here / "sub" / "quickstart"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("data: {root: mine}\n")
        given = path.relative_to(here)
        assert find_recipe(given) == given
        assert read_recipe(str(given)).data.root == "mine"
    assert not capsys.readouterr().err


def test_a_bare_name_that_can_be_two_recipes_is_refused(here: Path) -> None:
    (here / "quickstart.yaml").write_text("data: {root: mine}\n")
    message = "can be two recipes; write quickstart.yaml for the file in this folder, recipes/quickstart.yaml for"
    with pytest.raises(RecipeError, match=message):
        find_recipe("quickstart")
    (here / "quickstart").mkdir()  # a run folder, say
    with pytest.raises(RecipeError, match=message):
        find_recipe("quickstart")


@pytest.mark.parametrize(
    "given", ["elsewhere/quickstart.yaml", "/recipes/quickstart.yaml", "../recipes/quickstart.yaml"]
)
def test_another_path_is_never_taken_as_a_name(given: str) -> None:
    with pytest.raises(RecipeError, match="no such recipe; give the path of a YAML file"):
        read_recipe(given)


def test_a_name_that_no_recipe_has_lists_those_that_are_near(here: Path) -> None:
    with pytest.raises(
        RecipeError, match="cifar10_base: no such recipe; did you mean cifar10_baseline or cifar100_base"
    ):
        find_recipe("cifar10_base")
    with pytest.raises(
        RecipeError, match=r"recipes/zzz\.yaml: no such recipe; give the path of a YAML file, or a name"
    ):
        find_recipe("recipes/zzz.yaml")
    (here / "mine.yaml").write_text("data: {root: mine}\n")
    with pytest.raises(RecipeError, match=r"no such recipe comes with fastaug; for the file in this folder write mine"):
        find_recipe("mine")


@pytest.mark.parametrize("given", ["x" * 5000, "a\0b", "", ".", "base/mnist5k"])
def test_odd_names_are_refused(given: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(given)
    assert len(str(caught.value)) < 6000


PAGE = Path(__file__).resolve().parents[2] / "docs" / "autodo.md"
TABLE = PAGE.read_text().partition("### The methods")[2].partition("### ")[0]
METHODS = {row: found for row in re.findall(r"^\| .*", TABLE, re.M) if (found := re.findall(r"`([a-z.]+=[^`]+)`", row))}


@pytest.mark.parametrize("recipe", ["mnist5k_autodo", "letters_autodo", "quickstart"])
@pytest.mark.parametrize("row", METHODS)
def test_methods_of_autodo_are_overrides_as_documented(recipe: str, row: str, here: Path) -> None:
    (here / "PATH").write_text("- [[ShearX, 0.9, 0.5], [Invert, 0.2, 0.1]]")
    for words in METHODS[row]:
        read_recipe(recipe, words.split())


@pytest.mark.parametrize("recipe", ["mnist5k_autodo", "letters_autodo"])
@pytest.mark.parametrize("part", ["sample_policy", "sample_policy,weights,labels"])
def test_what_is_said_of_an_engine_that_does_not_suffice_is_a_way_out(recipe: str, part: str) -> None:
    words = [f"meta.learn=[{part}]"]
    with pytest.raises(RecipeError, match="or choose engine forward or implicit"):
        read_recipe(recipe, words)
    for engine in ("forward", "implicit"):
        assert read_recipe(recipe, [*words, f"meta.engine={engine}"]).meta.engine == engine
