"""The project as users install it, wheel and editable, in environments of their own and away from the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("fastaug", "recipes", "tools", "tests", "benchmarks", "attacks", "pyproject.toml", "README.md", "LICENSE")
TINY = ["data.img_size=32", "data.test_fraction=0.25", "data.meta_fraction=0", "train.epochs=2", "train.batch_size=4"]
SCRIPT = """
import fastaug
heard = []
keys = {"data.root": "images", "run.dir": "other", "run.log_every": 1, **TINY}
result = fastaug.train("quickstart", callbacks=heard.append, **keys)
print(fastaug.evaluate("run")["images"], result.figures["top1"] == fastaug.evaluate(result)["top1"], len(heard) > 6)
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
Run = Callable[..., str]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, in which building leaves its files."""
    folder = tmp_path_factory.mktemp("checkout")
    kept = [name for name in SOURCES if (ROOT / name).exists()]
    subprocess.run(["cp", "-a", *(str(ROOT / name) for name in kept), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built with what is installed here."""
    out = tmp_path_factory.mktemp("dist")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(checkout)], check=True)
    (file,) = out.glob("fastaug-*.whl")
    return file


def installed(folder: Path, *words: str) -> Path:
    """The bin/ of a new environment with fastaug installed by pip's `words`; what it depends on is this one's."""
    venv.create(folder, with_pip=True, symlinks=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Python 3.11 brings an old setuptools.
    subprocess.run([*pip, "uninstall", "--yes", "setuptools"], check=True, env=environment())
    subprocess.run([*pip, "install", "--no-deps", "--no-build-isolation", *words], check=True, env=environment())
    return folder / "bin"


def environment() -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module", params=["wheel", "editable"])
def place(
    request: pytest.FixtureRequest, checkout: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory, jpegs
) -> tuple[Path, Path]:
    """bin/ of an environment with fastaug in it, and a folder to work in with images and nothing else."""
    folder = tmp_path_factory.mktemp(request.param)
    words = [str(wheel)] if request.param == "wheel" else ["--editable", str(checkout)]
    bin = installed(folder / "venv", *words)
    jpegs(folder / "work" / "images")
    return bin, folder / "work"


@pytest.fixture
def run(place: tuple[Path, Path]) -> Run:
    """run("fastaug", ..., code=0): what a program of that environment says, started in that folder."""
    bin, work = place

    def start(program: str, *words: str, code: int = 0) -> str:
        command = [str(bin / program), *words]
        ended = subprocess.run(command, cwd=work, env=environment(), capture_output=True, text=True, check=False)
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stdout + ended.stderr

    return start


def test_the_wheel_holds_the_package_and_nothing_beside(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"fastaug", "fastaug-0.1.0.dist-info"}
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")}
    assert recipes == {name.removeprefix("fastaug/") for name in names if name.startswith("fastaug/recipes/")}
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "fastaug/reports/templates").iterdir()}
    assert templates == {name for name in names if name.startswith("fastaug/reports/templates/")}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fastaug").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


def test_the_command_works_from_any_folder(run: Run, place: tuple[Path, Path]) -> None:
    assert "evaluate" in run("fastaug", "--help")
    assert "quickstart" in run("fastaug", "recipes")
    assert "did you mean quickstart" in run("fastaug", "train", "quikstart", code=2)
    said = run("fastaug", "check", "recipes/mnist5k_sa.yaml")
    assert "recipes/mnist5k_sa.yaml: no such file here; taking the recipe 'mnist5k_sa' that comes" in said
    settings = [*TINY, "data.root=images", "run.dir=run"]
    assert "test top1" in run("fastaug", "train", "quickstart", *settings)
    assert "f1_macro" in run("fastaug", "evaluate", "run", "--json", "figures.json")
    assert run("fastaug", "same-run", "run", "run").count("equal") >= 2
    assert (place[1] / "figures.json").exists()


def test_several_processes_are_launched_by_the_module(run: Run) -> None:
    settings = ["fastaug", "train", "quickstart", *TINY, "data.root=images"]
    assert "on 1 x cpu" in run("python", "-m", "accelerate.commands.launch", "--cpu", "-m", *settings, "run.dir=one")
    said = run("python", "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", *settings, "run.dir=two")
    assert "on 2 x cpu" in said


def test_a_study_starts_its_runs(run: Run, place: tuple[Path, Path]) -> None:
    arms = "arms: {plain: [], sa: [augment.shift=0.3]}"
    keys = ", ".join([*TINY, "data.root=images"])
    (place[1] / "study.yaml").write_text(f"recipe: quickstart\nseeds: 1\noverrides: [{keys}]\n{arms}\n")
    assert "seed 0  sa: error" in run("fastaug", "study", "study.yaml")


def test_it_works_from_a_script(run: Run) -> None:
    run("fastaug", "train", "quickstart", *TINY, "data.root=images", "run.dir=run")
    tiny = {key: float(value) if "." in value else int(value) for key, value in (word.split("=") for word in TINY)}
    script = f"TINY = {tiny}{SCRIPT}"
    assert run("python", "-c", script).splitlines()[-1] == "4 True True"


def test_no_other_package_comes_with_it(run: Run, request: pytest.FixtureRequest) -> None:
    names = ["pipelines", "recipes"] if "editable" in request.node.name else ["pipelines", "tools", "benchmarks"]
    for name in names:
        code = f"import importlib.util, sys; sys.path.remove(''); print(importlib.util.find_spec({name!r}))"
        assert run("python", "-c", code).strip() == "None"
