"""What damaged images and failing reports may do to a run: never take from it what it has trained."""

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.batch import Batch
from fastaug.errors import NoImageError
from fastaug.evaluation.evaluate import Evaluator
from fastaug.recipe.reading import read_recipe
from fastaug.training import build, reporting
from fastaug.training.worker import run

RECIPE = """
run: {log_every: 1, log_ids: true}
data: {img_size: 20, threads: 1, test_fraction: 0.25}
model: {name: test_resnet}
optim: {lr: 0.01}
train: {epochs: 2, batch_size: 8}
eval: {batch_size: 4, every: 0}
"""
SYNTHETIC = ["data.loader=synthetic", "data.synthetic_images=16", "data.synthetic_classes=2", "data.test_fraction=0"]


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """train("key=value", ...) -> exit code and run folder."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def start(*overrides: str) -> tuple[int, Path]:
        folder = tmp_path / "run"
        code = run(read_recipe(tmp_path / "recipe.yaml", [f"run.dir={folder}", *overrides]))
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return code, folder

    return start


def result(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return read


def status(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return read


class Emptied:
    """A loader whose batches, from number `first` to before `last`, have no image that can be decoded."""

    def __init__(self, loader: Any, first: int, last: int) -> None:
        self.loader, self.first, self.last = loader, first, last
        self.torn: dict[int, str] = {}

    @property
    def skipped(self) -> dict[int, str]:
        found: dict[int, str] = self.loader.skipped | self.torn
        return found

    def batches(self, requests: Any) -> Iterator[Batch]:
        for number, batch in enumerate(self.loader.batches(requests)):
            if self.first <= number < self.last:
                self.torn.update(dict.fromkeys(batch.ids.tolist(), "torn"))
                batch = Batch(*(field[:0] for field in batch))
            yield batch


def empty(monkeypatch: pytest.MonkeyPatch, loader: str, first: int = 0, last: int = 10**6) -> None:
    """Empties batches of the run's training_loader, evaluation_loader or meta_loader."""
    built = getattr(build, loader)
    monkeypatch.setattr(build, loader, lambda *args: Emptied(built(*args), first, last))


def test_without_git_there_is_a_result_that_names_no_commit(
    train: Callable[..., tuple[int, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, folder = train(*SYNTHETIC)
    assert code == 0
    assert result(folder)["commit"] is None


def test_a_class_folder_whose_name_is_no_text_is_trained_and_reported(
    train: Callable[..., tuple[int, Path]], jpeg_folder: Callable[..., Path]
) -> None:
    root = os.fsencode(jpeg_folder(images=12))
    os.rename(os.path.join(root, b"class0"), os.path.join(root, b"caf\xe9"))
    code, folder = train(f"data.root={os.fsdecode(root)}", "run.log_losses=true")
    assert code == 0
    with open(folder / "samples.csv", newline="", encoding="utf-8") as file:
        assert {row["class"] for row in csv.DictReader(file)} == {"caf\\udce9", "class1"}


def test_a_report_that_fails_is_told_and_costs_nothing_but_itself(
    train: Callable[..., tuple[int, Path]], jpeg_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"data.root={jpeg_folder(images=12)}", "run.log_losses=true"]
    with monkeypatch.context() as patch:
        patch.setattr(reporting, "samples_table", lambda *_: 1 / 0)
        code, folder = train(*settings)
    assert code == status(folder)["code"] == 1
    assert status(folder)["step"] == 6
    figures = result(folder)
    assert (folder / "checkpoints" / "step-00000006").is_dir()
    assert "ZeroDivisionError" in (folder / "errors.log").read_text()
    assert train(*settings)[0] == status(folder)["code"] == 0
    assert result(folder)["test"] == figures["test"]
    assert (folder / "samples.csv").exists()


def test_batches_without_an_image_are_left_out_of_an_evaluation(
    train: Callable[..., tuple[int, Path]], jpeg_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty(monkeypatch, "evaluation_loader", first=1, last=2)
    code, folder = train(f"data.root={jpeg_folder(images=12)}", "eval.batch_size=2", "train.epochs=1")
    assert code == 0
    assert (result(folder)["test"]["images"], result(folder)["test"]["skipped"]) == (4, 2)
    assert result(folder)["skipped_images"] == len((folder / "skipped.jsonl").read_text().splitlines()) == 2


def test_a_test_split_without_an_image_ends_the_run_behind_its_training(
    train: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        empty(patch, "evaluation_loader")
        code, folder = train(*SYNTHETIC)
    assert code == status(folder)["code"] == 3
    assert "test: no image of the split could be decoded" in status(folder)["reason"]
    assert "torn" in status(folder)["reason"]
    assert not (folder / "result.json").exists()
    assert train(*SYNTHETIC)[0] == 0  # once they are repaired it only evaluates
    assert "continuing" not in (folder / "errors.log").read_text()
    assert len((folder / "ids-0.jsonl").read_text().splitlines()) == 4


def test_a_select_split_without_an_image_does_not_cost_the_figures_of_test(
    train: Callable[..., tuple[int, Path]], jpeg_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Evaluator.run

    def torn(self: Evaluator, network: Any, split: str, *more: Any, details: bool = False) -> dict[str, Any]:
        if split == "select":
            raise NoImageError("select: no image")
        return evaluate(self, network, split, *more, details=details)

    monkeypatch.setattr(Evaluator, "run", torn)
    code, folder = train(f"data.root={jpeg_folder(images=12)}", "data.select_fraction=0.2")
    assert code == status(folder)["code"] == 3
    assert result(folder)["test"]["images"] == 6
    assert result(folder)["select"] is None


def test_an_evaluation_that_fails_between_two_epochs_keeps_what_was_trained(
    train: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        empty(patch, "evaluation_loader")
        code, folder = train(*SYNTHETIC, "eval.every=1")
    assert code == status(folder)["code"] == 3
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-00000002"]
    assert train(*SYNTHETIC, "eval.every=1")[0] == 0
    assert len((folder / "ids-0.jsonl").read_text().splitlines()) == 4


def test_an_epoch_without_an_image_ends_the_run_and_a_batch_without_one_does_not(
    train: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        empty(patch, "training_loader", first=1, last=3)  # of batches 0, 1 and 2, 3
        code, folder = train(*SYNTHETIC)
    assert code == 0
    sizes = [len(json.loads(line)["ids"]) for line in (folder / "ids-0.jsonl").read_text().splitlines()]
    assert sizes == [8, 0, 0, 8]
    empty(monkeypatch, "training_loader", first=2)
    code, folder = train(*SYNTHETIC, f"run.dir={folder}-2")
    folder = Path(f"{folder}-2")
    assert code == status(folder)["code"] == 3
    assert "no image of epoch 2 could be decoded, of 16 to train on" in status(folder)["reason"]
    assert "torn" in status(folder)["reason"]
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-00000002"]


META = ["data.meta_fraction=0.3", "meta.batch_size=4", "meta.every=1", "meta.fraction=1", "train.batch_size=5"]


@pytest.mark.parametrize(
    "learn",
    [
        pytest.param(["meta.learn=[weights]", "meta.engine=reverse"], marks=pytest.mark.slow),
        pytest.param(["meta.learn=[instant_weights]", "meta.engine=reverse"], marks=pytest.mark.slow),
        ["meta.learn=[weights]", "meta.engine=fused"],
        ["meta.learn=[weights]", "meta.steps=2", "meta.every=2"],
    ],
    ids=["one step", "instant", "fused", "unrolled"],
)
def test_a_meta_step_goes_on_after_batches_without_an_image(
    train: Callable[..., tuple[int, Path]],
    jpeg_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    learn: list[str],
) -> None:
    empty(monkeypatch, "meta_loader", first=1, last=2)
    empty(monkeypatch, "training_loader", first=3, last=4)
    code, folder = train(f"data.root={jpeg_folder(images=12)}", *META, *learn, "train.epochs=4")
    assert code == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    taken = [line for line in lines if line["event"] == "meta"]
    assert 0 < taken[-1]["hypergradient"] < 1e9
    assert "skipped" not in taken[-1]


def test_a_meta_split_without_an_image_ends_the_run_with_its_name(
    train: Callable[..., tuple[int, Path]], jpeg_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty(monkeypatch, "meta_loader")
    settings = [*META, "meta.learn=[weights]", "meta.engine=reverse"]
    code, folder = train(f"data.root={jpeg_folder(images=12)}", *settings)
    assert code == status(folder)["code"] == 3
    assert "meta split: no image of its 2 batches could be decoded (torn)" in status(folder)["reason"]
