"""Fine-tuning in whole runs: what they begin with, what stands still, and that they continue bit for bit."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.recipe.reading import read_recipe
from fastaug.training import checkpoint, loop
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


@pytest.mark.parametrize("kept", [1, pytest.param(4, marks=pytest.mark.slow)])
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


PLATEAU = ["optim.sched=plateau", "optim.patience_epochs=0", "optim.decay_rate=0.5", "train.epochs=6"]


def rates(folder: Path) -> list[float]:
    """The learning rate of each epoch's last update."""
    text = (folder / "metrics.jsonl").read_text().splitlines()
    steps = {line["step"]: line["lr"] for line in map(json.loads, text) if line["event"] == "train"}
    return [steps[step] for step in sorted(steps)][2::3]


@pytest.mark.slow
def test_the_plateau_schedule_follows_select_and_continues(train: Train) -> None:
    whole = train("whole", *PLATEAU)
    found = rates(whole)
    assert found[0] == 0.01
    assert 0 < found[-1] < 0.01
    assert all(after in (before, before / 2) for before, after in pairwise(found))
    assert rates(cut(train, whole, *PLATEAU, kept=3)) == found


def test_the_plateau_schedule_needs_a_select_split(train: Train) -> None:
    folder = train("run", *PLATEAU, "data.select_fraction=0", code=2)
    reason = json.loads((folder / "status.json").read_text())["reason"]
    assert reason.startswith(
        "optim.sched: plateau follows the select split, and there is none; set data.select_fraction"
    )


RESIZED = ["data.loader=dali", "data.crop=rrc", "train.resize=[[0, 16], [2, 24]]", "augment.reprob=0.5"]


def test_sizes_rise_and_a_cut_run_continues(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = loop.log_ids

    def watched(trainer: Any, ids: Any, epoch: int) -> None:
        before(trainer, ids, epoch)
        seen.append(trainer.augment.size[0])

    monkeypatch.setattr(loop, "log_ids", watched)
    whole = train("whole", *RESIZED)
    assert seen == [16] * 6 + [24] * 3
    again = cut(train, whole, *RESIZED, kept=1)
    assert seen[9:] == [24] * 3
    assert differing(weights_of(whole), weights_of(again)) == set()


@pytest.mark.slow
def test_one_size_written_as_a_stage_changes_nothing(train: Train) -> None:
    """Windows and draws do not know of stages."""
    keys = ["data.loader=dali", "data.crop=rrc", "augment.cutmix=1", "train.epochs=2"]
    one, staged = train("one", *keys), train("staged", *keys, "train.resize=[[0, 20], [1, 20]]")
    assert differing(weights_of(one), weights_of(staged)) == set()


@pytest.mark.slow
def test_checkpointing_of_activations_changes_no_bit_of_a_run(train: Train) -> None:
    keys = ["model.drop_path=0.3", "train.epochs=2", "train.plain_step=true"]
    kept, again = train("kept", *keys), train("again", *keys, "model.grad_checkpointing=true")
    assert differing(weights_of(kept), weights_of(again)) == set()


def test_a_taught_run_continues_exactly_and_its_teacher_has_to_know_the_classes(train: Train, tmp_path: Path) -> None:
    torch.manual_seed(3)
    torch.save(timm.create_model("test_efficientnet", num_classes=2).state_dict(), tmp_path / "teacher.pth")
    keys = ["distill.teacher=test_efficientnet", f"distill.checkpoint={tmp_path / 'teacher.pth'}"]
    keys += ["augment.cutmix=1", "distill.mean=[0.5, 0.5, 0.5]"]
    whole = train("whole", *keys)
    assert differing(weights_of(whole), weights_of(cut(train, whole, *keys, kept=0))) == set()
    unmoved = train("unmoved", *keys, "distill.weight=0")
    plain = train("plain", "augment.cutmix=1")
    assert differing(weights_of(unmoved), weights_of(plain)) == set()
    assert differing(weights_of(unmoved), weights_of(whole))
    torch.save(timm.create_model("test_efficientnet", num_classes=5).state_dict(), tmp_path / "teacher.pth")
    folder = train("refused", *keys, code=2)
    reason = json.loads((folder / "status.json").read_text())["reason"]
    assert "distill.checkpoint: " in reason
    assert "its head does not fit 2 classes: classifier.weight ([5, " in reason
