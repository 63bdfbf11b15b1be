"""find-lr and linear-probe, in this process, on a few tiny images."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from fastaug.commands import find_lr, linear_probe
from fastaug.recipe.reading import read_recipe
from fastaug.training import rate_sweep

RECIPE = """
data: {img_size: 20, crop: center, loader: resident, threads: 1, test_fraction: 0.2, select_fraction: 0.2}
model: {name: test_resnet}
optim: {opt: adamw, lr: 0.01, warmup_epochs: 1, layer_decay: 0.8}
train: {epochs: 3, batch_size: 8}
"""


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def words(tmp_path: Path, jpegs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A recipe and where its images are; the present folder is one of its own."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return [str(tmp_path / "recipe.yaml"), f"data.root={jpegs(tmp_path / 'images', images=20)}"]


def test_a_rate_is_suggested_and_no_run_folder_left(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "lr.json"), "--png", str(tmp_path / "lr.png")]
    assert find_lr.main([*words, "--low", "1e-5", "--high", "10", "--updates", "30", *files]) == 0
    found = json.loads((tmp_path / "lr.json").read_text())
    assert found["rates"][0] == pytest.approx(1e-5)
    assert found["rates"] == sorted(found["rates"])
    assert len(found["rates"]) == len(found["losses"]) <= 30
    assert found["suggestion"] == found["lowest"] / 10
    assert f"suggestion: optim.lr={found['suggestion']:.2g}" in capsys.readouterr().out
    with Image.open(tmp_path / "lr.png") as picture:
        assert picture.size[0] > 500
    assert not list(Path.cwd().iterdir())


def test_a_loss_that_never_falls_is_told(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_sweep, "turning_points", lambda *_: (None, None))
    assert find_lr.main([*words, "--updates", "20"]) == 3
    assert "no rate is suggested: the loss did not fall; lower --low" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        find_lr.main([*words, "--low", "1", "--high", "0.1"])
    assert "--low must be above 0 and below --high, found 1.0 and 0.1" in capsys.readouterr().err


def test_the_probe_computes_features_once(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTAUG_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=9).state_dict(), tmp_path / "w.pth")
    words = [*words, f"model.initial_checkpoint={tmp_path / 'w.pth'}"]
    said, figures = [], []
    for keys in ([], [], ["data.crop_pct=1.0"]):
        assert linear_probe.main([*words, *keys, "--json", str(tmp_path / "probe.json")]) == 0
        said.append(capsys.readouterr().out)
        figures.append(json.loads((tmp_path / "probe.json").read_text()))
    assert [text.count("computed") for text in said] == [3, 0, 3]
    assert figures[0] == figures[1]
    assert figures[0]["test"]["images"] == 8
    assert not list(Path.cwd().iterdir())


def test_what_cannot_be_probed_is_named(words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert linear_probe.main(words) == 2
    assert "model.initial_checkpoint: the features of random weights say nothing" in capsys.readouterr().err
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    assert linear_probe.main([*words, f"model.initial_checkpoint={tmp_path / 'w.pth'}", "data.select_fraction=0"]) == 3
    assert "data.select_fraction: the probe chooses C on select" in capsys.readouterr().err
    several = ["data.table=t.csv", "data.multi_label=columns", "augment.loss=bce", "augment.smoothing=0"]
    assert linear_probe.main([*words, f"model.initial_checkpoint={tmp_path / 'w.pth'}", *several]) == 2
    assert "data.multi_label: a probe tells one class of an image" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*_smart.yaml")))
def test_a_recipe_with_copies_under_a_learned_policy_has_a_rate_too(recipe: Path) -> None:
    swept = read_recipe(recipe, [*find_lr.SWEPT, "data.root=x"])
    assert (swept.augment.copies, swept.eval.tta, swept.meta.learn) == (0, 0, [])
