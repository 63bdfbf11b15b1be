"""Early stopping and the best checkpoint: which figure decides, when training ends, and that a kill changes nothing."""

import json
import math
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.errors import RecipeError
from fastaug.recipe.reading import read_recipe
from fastaug.training import loop, reporting
from fastaug.training.reporting import is_better
from fastaug.training.worker import run

RECIPE = """
data: {img_size: 20, crop: center, loader: resident, threads: 1, test_fraction: 0.2, select_fraction: 0.25}
model: {name: test_resnet}
optim: {opt: sgd, lr: 0.02}
train: {epochs: 6, batch_size: 8, patience: 2}
eval: {best_metric: nll}
run: {keep: 1}
"""
NLL = [0.5, 0.6, 0.4, 0.7, 0.4, 0.1]  # of select by epoch: the best is that of the third, two later are no better


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, jpegs) -> Path:
    return jpegs(tmp_path_factory.mktemp("patience"), images=16, sizes=(24, 30))


@pytest.fixture
def train(tmp_path, root, monkeypatch):
    """train(name, "key=value", ...) -> run folder; the NLL of select is that of NLL, whatever the network says."""
    measure = reporting.measure
    monkeypatch.setattr(
        reporting,
        "measure",
        lambda trainer, split, *args, **kwargs: (
            measure(trainer, split, *args, **kwargs)
            | ({"nll": NLL[trainer.progress.step // trainer.order.steps_per_epoch - 1]} if split == "select" else {})
        ),
    )
    (tmp_path / "r.yaml").write_text(RECIPE)

    def start(name: str, *overrides: str, code: int = 0) -> Path:
        folder = tmp_path / name
        keys = [f"data.root={root}", f"run.dir={folder}", *overrides]
        assert run(read_recipe(tmp_path / "r.yaml", keys)) == code, (folder / "status.json").read_text()
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return folder

    return start


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize(
    ("metric", "value", "best", "wanted"),
    [
        ("top1", 0.5, None, True),
        ("top1", 0.5, 0.5, False),
        ("f1_macro", 0.6, 0.5, True),
        ("nll", 0.6, 0.5, False),
        ("ece", 0.4, 0.5, True),
        ("nll", math.nan, None, False),
        ("top1", math.nan, 0.5, False),
    ],
)
def test_better_is_higher_but_for_losses(metric, value, best, wanted):
    assert is_better(metric, value, best) is wanted


def test_a_run_ends_when_select_has_not_improved_for_the_patience(train, capsys):
    folder = train("run")
    per_epoch = read(folder, "status.json")["step"] // 5
    result, status = read(folder, "result.json"), read(folder, "status.json")
    assert status["reason"].startswith("done, stopped early after epoch 5 of 6: 2 evaluations of select without")
    assert "better nll, the best of epoch 3; the learning rate's schedule was that of 6 epochs" in status["reason"]
    assert result["stopped_early"] in status["reason"]
    assert result["stopped_early"] in capsys.readouterr().out
    assert result["best"] == {"step": 3 * per_epoch, "metric": "nll", "select_nll": 0.4}
    kept = {path.name for path in (folder / "checkpoints").glob("step-*")}
    assert kept == {f"step-{3 * per_epoch:08d}", f"step-{5 * per_epoch:08d}"}
    assert result["seconds_per_epoch"] == pytest.approx(result["train_seconds"] / 5)
    rates = [json.loads(line)["lr"] for line in (folder / "metrics.jsonl").read_text().splitlines() if '"lr"' in line]
    assert rates[-1] > 0.05 * rates[0]  # of 6 epochs, not of 5


def test_without_patience_all_epochs_are_trained_and_the_best_is_by_the_metric(train):
    folder = train("run", "train.patience=0")
    result = read(folder, "result.json")
    assert result["stopped_early"] is None
    assert read(folder, "status.json")["reason"] == "done"
    assert result["best"]["select_nll"] == 0.1
    assert result["best"]["step"] == read(folder, "status.json")["step"]


@pytest.mark.parametrize("epochs", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_cut_short_stops_where_it_would_have_stopped(train, monkeypatch, epochs):
    """Cut in the epoch behind the first evaluation without a gain, and between the last one and the result."""
    whole = train("whole")
    ended = loop.evaluate_end if epochs == 5 else loop.train_step

    def cut(trainer, *args):
        if epochs == 5 or trainer.progress.step == 4 * trainer.order.steps_per_epoch + 1:
            raise KeyboardInterrupt
        return ended(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, ended.__name__, cut)
        train("cut", code=1)
    folder = train("cut")
    for name in ("best", "stopped_early", "test"):
        assert read(folder, "result.json")[name] == read(whole, "result.json")[name]
    assert read(folder, "status.json") == read(whole, "status.json")
    again = train("cut")  # a run that has ended ends again, without training
    assert read(again, "result.json")["test"] == read(whole, "result.json")["test"]
    assert read(again, "status.json") == read(whole, "status.json")


RANK = """
import sys
from fastaug.recipe.reading import read_recipe
from fastaug.training.worker import run
sys.exit(run(read_recipe(sys.argv[1], sys.argv[2:])))
"""


@pytest.mark.slow
def test_two_processes_stop_together_on_the_images_of_one(tmp_path, root, in_processes):
    """Under a learning rate of next to nothing no evaluation is better than the first one."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "rank.py").write_text(RANK)
    keys = [
        "optim.lr=1e-12",
        "eval.best_metric=top1",
        "data.sampling=balanced",
        "run.log_ids=true",
        "train.drop_last=true",
    ]
    steps, ids = [], []
    for count in (1, 2):
        folder = tmp_path / str(count)
        in_processes(count, tmp_path / "rank.py", tmp_path / "r.yaml", f"data.root={root}", f"run.dir={folder}", *keys)
        status = read(folder, "status.json")
        assert "stopped early after epoch 3 of 6" in status["reason"]
        steps.append(status["step"])
        ranks = [(folder / f"ids-{rank}.jsonl").read_text().splitlines() for rank in range(count)]
        ids.append([sorted(i for line in lines for i in json.loads(line)["ids"]) for lines in zip(*ranks, strict=True)])
    assert steps[0] == steps[1]
    assert ids[0] == ids[1]


def test_patience_without_a_select_split_is_refused_with_the_remedy(train):
    folder = train("run", "data.select_fraction=0", code=3)
    assert read(folder, "status.json")["reason"] == (
        "train.patience: 2 counts evaluations of the select split, and there is none; set data.select_fraction, say to "
        "0.1, or train.patience to 0"
    )
    assert not (folder / "checkpoints").exists() or not list((folder / "checkpoints").iterdir())


def test_a_metric_that_is_not_known_is_told_with_those_that_are(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    with pytest.raises(RecipeError, match=r"eval\.best_metric: 'acc' is not one of top1, top5, balanced_top1"):
        read_recipe(tmp_path / "r.yaml", ["data.root=x", "eval.best_metric=acc"])
