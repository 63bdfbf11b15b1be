"""Fine-tuning in whole runs: what they begin with, what stands still, and that they continue bit for bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.recipe.reading import read_recipe
from fastaug.training import checkpoint
from fastaug.training.worker import run

RECIPE = """
data: {img_size: 20, crop: center, loader: resident, threads: 1, test_fraction: 0.2, select_fraction: 0.2}
model: {name: test_resnet}
optim: {opt: adamw, lr: 0.01}
train: {epochs: 3, batch_size: 8}
augment: {hflip: 0.5, shift: 0.2}
eval: {every: 1}
run: {log_every: 1, keep: 9}
"""
Train = Callable[..., Path]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of weights for 5 classes."""
    torch.manual_seed(7)
    torch.save({"state_dict": timm.create_model("test_resnet", num_classes=5).state_dict()}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.fixture
def train(tmp_path: Path, jpegs: Callable[..., Path], weights: Path) -> Train:
    """train(name, "key=value", ...) -> run folder, begun with `weights`; code=: the exit code that is expected."""
    images = jpegs(tmp_path / "images", images=20)
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def start(name: str, *overrides: str, code: int = 0) -> Path:
        folder = tmp_path / name
        keys = [f"data.root={images}", f"run.dir={folder}", f"model.initial_checkpoint={weights}", *overrides]
        try:
            assert run(read_recipe(tmp_path / "recipe.yaml", keys)) == code
        finally:
            for state in (AcceleratorState, GradientState, PartialState):
                state._reset_state()
        return folder

    return start


def cut(train: Train, whole: Path, *overrides: str, kept: int) -> Path:
    """The run `whole` again from its checkpoint number `kept` on."""
    folder = whole.parent / "cut"
    shutil.copytree(whole, folder)
    paths = sorted((folder / "checkpoints").glob("step-*"))
    for path in paths[kept + 1 :]:
        shutil.rmtree(path)
    (folder / "checkpoints" / "last").write_text(paths[kept].name)
    return train("cut", *overrides)


def weights_of(folder: Path, number: int = -1) -> dict[str, torch.Tensor]:
    return checkpoint.load(sorted((folder / "checkpoints").glob("step-*"))[number]).weights["model"]


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_the_fit_of_initial_weights_is_told(train: Train, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", "train.epochs=1", "model.freeze=[backbone]")
    said = capsys.readouterr().out
    assert f"tensors of {weights} (state_dict), 100% fit" in said
    assert "new head: 2: fc.weight (" in said
    assert "2 of 47 parameters are trained" in said
    told = json.loads((folder / "status.json").read_text())["initial_checkpoint"]
    assert told["head"]["count"] == 2
    assert told["share"] == 1
    begun = torch.load(weights)["state_dict"]
    assert differing({k: v for k, v in begun.items() if not k.startswith("fc.")}, weights_of(folder)) == set()


def test_another_network_s_weights_end_the_run_with_code_2(train: Train) -> None:
    folder = train("run", "model.name=test_efficientnet", code=2)
    assert "does not fit test_efficientnet: " in json.loads((folder / "status.json").read_text())["reason"]
    assert not list((folder / "checkpoints").iterdir())


@pytest.mark.parametrize("kept", [1, 4])
def test_a_run_cut_before_or_after_the_head_learned_alone_continues_exactly(train: Train, kept: int) -> None:
    keys = ["model.head_first_epochs=1", "optim.layer_decay=0.7", "optim.lr_scale={head: 2}", "run.checkpoint_every=1"]
    keys += ["model.ema=true", "model.ema_decay=0.5"]
    whole = train("whole", *keys)
    steps = len(list((whole / "checkpoints").glob("step-*"))) // 3
    assert differing(weights_of(whole, 0), weights_of(whole, steps - 1)) == {"fc.weight", "fc.bias"}
    assert len(differing(weights_of(whole, steps - 1), weights_of(whole))) > 40
    again = cut(train, whole, *keys, kept=kept)
    assert differing(weights_of(whole), weights_of(again)) == set()
    assert [(whole / n).read_text().count("\n") for n in ("metrics.jsonl",)] == [
        (again / n).read_text().count("\n") for n in ("metrics.jsonl",)
    ]


def test_frozen_random_weights_are_warned_of(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train("run", "train.epochs=1", "model.freeze=[layer1.*]", "model.initial_checkpoint=null")
    assert "warning: frozen weights are random ones" in capsys.readouterr().out
