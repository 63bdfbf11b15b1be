"""The end of a training on the screen: figures, where things are, what may come next; or nothing."""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from fastaug.commands.train import main
from fastaug.training.result import whereabouts

RECIPE = """
data: {loader: synthetic, synthetic_images: 16, synthetic_classes: 2, img_size: 20}
model: {name: test_resnet}
optim: {lr: 0.01, warmup_epochs: 0}
train: {epochs: 1, batch_size: 8}
eval: {every: 0}
"""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def words(folder: Path, *more: str) -> list[str]:
    (folder / "recipe.yaml").write_text(RECIPE)
    return [str(folder / "recipe.yaml"), f"run.dir={folder / 'a run'}", *more]


def test_a_training_ends_with_where_things_are_and_commands_that_can_be_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path)) == 0
    said = capsys.readouterr().out
    for name in re.findall(r"(?:figures|weights): (.+?)(?:;|$)", said, flags=re.M):
        assert Path(name).exists()
    told = re.findall(r"^  (fastaug .+)$", said.partition("next:")[2], flags=re.M)
    assert [line.split()[1] for line in told] == ["report", "predict"]  # synthetic images have no labels to mend
    for line in told:
        _, name, *given = shlex.split(line)
        assert import_module(f"fastaug.commands.{name}").parse(given)
        assert given[0] == str(tmp_path / "a run")


def test_what_a_run_has_learned_can_be_shown(tmp_path: Path) -> None:
    assert not any("show-policy" in line for line in whereabouts(tmp_path, keeps_samples=True))
    (tmp_path / "policy.json").touch()
    assert f"  fastaug show-policy {tmp_path}" in whereabouts(tmp_path, keeps_samples=True)


def test_a_quiet_training_says_nothing_unless_it_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words(tmp_path, "--quiet")) == 0
    said = capfd.readouterr()
    assert said.out == ""
    assert (tmp_path / "a run" / "result.json").exists()
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "photos" / name / "0.png")
    photos = [f"data.root={tmp_path / 'photos'}", f"run.dir={tmp_path / 'c'}"]
    assert main(["quickstart", *photos, "--quiet"]) == 3  # no test split: refused once the images are indexed
    assert capfd.readouterr().err == ""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    gone = [f"data.root={tmp_path / 'nowhere'}", f"run.dir={tmp_path / 'b'}"]
    assert main(["quickstart", *gone, "--quiet"]) == 3
    assert "nowhere" in capfd.readouterr().out
