"""fastaug from Python: figures come back, errors are raised, and the process is afterwards as it was before."""

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

import fastaug
import fastaug.training.evaluate_run
import fastaug.training.worker
from fastaug.errors import DataError, FastaugError, RecipeError, StorageError
from fastaug.training.evaluation_checks import Checks

TIMES = ("images_per_second", "wait_share", "epoch_seconds", "peak_memory_mib")
RECIPE = """
data: {img_size: 32, threads: 1, loader: resident, crop: whole, test_fraction: 0.25}
model: {name: test_resnet}
optim: {opt: adamw, lr: 1e-3}
train: {epochs: 2, batch_size: 4}
run: {log_every: 1, log_ids: true}
"""
Train = Callable[..., fastaug.Result]


@pytest.fixture(scope="module")
def root(tmp_path_factory, jpegs) -> Path:
    """Two classes of eight images."""
    return jpegs(tmp_path_factory.mktemp("api") / "images")


@pytest.fixture
def train(tmp_path: Path, root: Path) -> Train:
    """train("run", ...): a training into tmp_path/run."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)

    def start(name: str = "run", /, **settings: Any) -> fastaug.Result:
        return fastaug.train(path, **{"data.root": root, "run.dir": tmp_path / name, **settings})

    return start


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_times(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines(run)]


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def process_state() -> dict[str, Any]:
    """What a training could leave changed in the process of a script."""
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "generator": torch.get_rng_state().tolist(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32),
        "products": torch.get_float32_matmul_precision(),
        "accelerate": [dict(state._shared_state) for state in (AcceleratorState, GradientState, PartialState)],
        "threads": torch.get_num_threads(),
    }


def test_figures_and_lines_come_back_and_the_next_training_is_as_the_first(train: Train, tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    before = process_state()
    first = train("first", callbacks=heard.append)
    assert process_state() == before
    assert first.run == tmp_path / "first"
    assert first.figures == json.loads((first.run / "result.json").read_text())
    assert first.figures["test"]["images"] == 4
    assert heard == lines(first.run)
    assert {line["event"] for line in heard} == {"train", "epoch", "test"}
    assert first.checkpoint == first.run / "checkpoints" / "step-00000006"
    assert status(first.run) == {"code": 0, "reason": "done", "step": 6}

    other = train("other", train={"precision": "bf16"})  # Accelerate would keep the precision of the first
    assert "precision: bf16" in (other.run / "recipe.yaml").read_text()
    second = train("second", callbacks=[lambda _: None, heard.append])
    assert without_times(second.run) == without_times(first.run)
    assert without_times(other.run) != without_times(first.run)

    for run in (first, first.run, str(first.run), first.checkpoint):
        assert fastaug.evaluate(run)["top1"] == first.figures["top1"]
    assert fastaug.evaluate(first, split="train", weights="raw")["images"] == 12
    assert fastaug.evaluate(first, **{"data.test_fraction": 0.5})["images"] == 8
    checked = fastaug.evaluate(first, checks=Checks(occlusion=1))
    assert checked["occlusion"]["box"][0]["top1"] == first.figures["top1"]
    assert process_state() == before


def test_an_accelerator_of_the_script_goes_on_working(train: Train) -> None:
    own = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        train(**{"train.precision": "no"})
        assert own.mixed_precision == "bf16"
        assert Accelerator(cpu=True).state.mixed_precision == "bf16"
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


def test_the_same_call_again_continues_and_another_recipe_is_refused(train: Train) -> None:
    first = train()
    again = train()
    assert again.figures["test"] == first.figures["test"]
    assert len(lines(again.run)) == len(lines(first.run))
    with pytest.raises(RecipeError, match=r"optim\.lr: is 0\.5 but this run was started with 0\.001") as caught:
        train(optim={"lr": 0.5})
    assert caught.value.code == 2
    assert status(first.run)["code"] == 0


class Refused(Exception):
    """What a callback of a test raises."""


def test_a_callback_that_raises_ends_the_run_saved_and_the_same_call_goes_on(train: Train, tmp_path: Path) -> None:
    whole, heard = train("whole"), []

    def refuse(line: dict[str, Any]) -> None:
        heard.append(line)
        if line["step"] == 2:
            raise Refused("enough")

    before = process_state()
    with pytest.raises(Refused, match="enough"):
        train("cut", callbacks=[refuse, heard.append])
    assert process_state() == before
    cut = tmp_path / "cut"
    assert [line["step"] for line in heard] == [1, 1, 2]  # no callback is called again after the error
    ended = status(cut)
    assert (ended["code"], ended["step"]) == (75, 2)
    assert ended["reason"].startswith("a callback raised Refused: enough")
    assert (cut / "checkpoints" / "step-00000002" / "manifest.json").exists()
    assert train("cut").figures["test"] == whole.figures["test"]
    assert without_times(cut) == without_times(whole.run)


def test_a_callback_that_raises_at_the_end_loses_no_result(train: Train, tmp_path: Path) -> None:
    def refuse(line: dict[str, Any]) -> None:
        if line["event"] == "test" and line["step"] == 6:
            raise Refused

    with pytest.raises(Refused):
        train(callbacks=refuse)
    assert status(tmp_path / "run")["code"] == 0
    assert (tmp_path / "run" / "result.json").exists()


def test_ctrl_c_saves_and_comes_through(train: Train, tmp_path: Path) -> None:
    def interrupt(line: dict[str, Any]) -> None:
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = process_state()
    with pytest.raises(KeyboardInterrupt, match="SIGINT; the same command continues"):
        train(callbacks=interrupt)
    assert process_state() == before
    assert status(tmp_path / "run")["step"] == 2
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").exists()
    assert train().figures["images_seen"] == 24


def test_sigterm_is_raised_as_stopped(train: Train, tmp_path: Path) -> None:
    with pytest.raises(fastaug.errors.Stopped, match="SIGTERM"):
        train(callbacks=lambda _: os.kill(os.getpid(), signal.SIGTERM))
    assert status(tmp_path / "run")["code"] == 75


def test_a_thread_can_train_but_not_beside_another(train: Train) -> None:
    found: list[Any] = []

    def nested(line: dict[str, Any]) -> None:
        if line["step"] == 1:
            fastaug.evaluate("anything")

    def work() -> None:
        try:
            found.append(train("alone"))
            train("nested", callbacks=nested)
        except FastaugError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].figures["images_seen"] == 24
    assert "another training or evaluation runs in this process" in str(found[1])
    train("alone")  # what refused it is over


def test_two_trainings_into_one_folder_at_a_time_are_refused(train: Train, tmp_path: Path) -> None:
    from fastaug.recipe.reading import read_recipe
    from fastaug.training.run_folder import RunFolder

    folder = RunFolder(tmp_path / "run")
    folder.open(read_recipe(tmp_path / "small.yaml", [("run.dir", tmp_path / "run"), ("data.root", tmp_path)]))
    try:
        with pytest.raises(StorageError, match="is in use by another process"):
            train()
    finally:
        folder.close()


def test_data_that_cannot_be_used_are_raised_and_not_printed(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="nowhere"):
        train(**{"data.root": tmp_path / "nowhere"})
    assert status(tmp_path / "run")["code"] == 3
    said = capsys.readouterr()
    assert "nowhere" not in said.out + said.err


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("quikstart", {}, "quikstart: no such recipe; did you mean quickstart or"),
        ("absent/quickstart.yaml", {}, r"absent/quickstart\.yaml: no such recipe"),
        ("quickstart", {"optim.lrr": 1}, r"optim\.lrr: unknown key; did you mean 'lr'\?"),
        ("quickstart", {"optim": {"lrr": 1}}, r"optim\.lrr: unknown key; did you mean 'lr'\?"),
        ("quickstart", {"optm": {"lr": 1}}, r"optm: unknown key; did you mean 'optim'\?"),
        ("quickstart", {"lr": 1}, "lr: unknown key"),
        ("quickstart", {"optim.": 1}, r'a setting is written \{"section.key": value\}'),
        ("quickstart", {"optim": 3}, "optim: expected a mapping of keys, got 3"),
        ("quickstart", {"optim.lr": "fast"}, r"optim\.lr: expected float, got 'fast' \(str\)"),
        ("quickstart", {"data.mean": (0.5, -1)}, "data.mean"),
        ("quickstart", {"data.root": object}, r"data\.root: expected str, got <class 'object'>"),
    ],
)
def test_what_is_written_wrong_is_told_before_anything_starts(
    recipe: str, settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=message):
        fastaug.train(recipe, **settings)
    assert not list(tmp_path.iterdir())


def test_other_wrong_calls(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="callbacks: 3 cannot be called"):
        fastaug.train("quickstart", callbacks=[3])  # type: ignore[list-item]
    with pytest.raises(RecipeError, match="split: 'val' is not one of train, meta, select, test"):
        fastaug.evaluate(tmp_path, split="val")
    with pytest.raises(RecipeError, match="weights: 'best' is neither raw nor ema"):
        fastaug.evaluate(tmp_path, weights="best")
    with pytest.raises(StorageError, match="neither a run folder with a checkpoint nor a checkpoint of a run"):
        fastaug.evaluate(tmp_path)
    with pytest.raises(AttributeError, match="'fastaug' has no attribute 'fit'; it offers Result, evaluate,"):
        fastaug.fit  # noqa: B018
    assert {"train", "evaluate", "Result", "errors", "__version__"} <= set(dir(fastaug))


def test_the_function_is_never_the_script_of_the_same_name() -> None:
    code = (
        "import sys, fastaug\n"
        "try:\n    import fastaug.train\nexcept ImportError as error:\n    print(error)\n"
        "print(fastaug.errors.EXIT_DONE, 'torch' in sys.modules)\n"
        "from fastaug import train\nprint(train.__module__, callable(train), 'torch' in sys.modules)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        "fastaug/train.py is a script; the function is `from fastaug import train` (docs/python.md)",
        "0 False",
        "fastaug.api True False",
    ]


TWICE = """
import fastaug, os, sys

def refuse(line):
    if line["step"] == 2:
        raise ValueError("enough")

try:
    fastaug.train(sys.argv[1], callbacks=refuse, **{"data.root": sys.argv[2], "run.dir": sys.argv[3]})
except (ValueError, fastaug.errors.Stopped) as error:
    said = type(error).__name__
found = fastaug.train(sys.argv[1], **{"data.root": sys.argv[2], "run.dir": sys.argv[3]})
same = fastaug.evaluate(found)["nll"] == found.figures["test"]["nll"]
assert same and said == ("ValueError" if os.environ["RANK"] == "0" else "Stopped"), said
"""


@pytest.mark.slow
def test_several_processes_stop_together_and_train_again(
    train: Train, tmp_path: Path, root: Path, in_processes: Callable[..., str]
) -> None:
    del train  # it has written the recipe
    said = in_processes(2, "-c", TWICE, tmp_path / "small.yaml", root, tmp_path / "run")
    assert "continuing from" in said
    assert status(tmp_path / "run") == {"code": 0, "reason": "done", "step": 6}
