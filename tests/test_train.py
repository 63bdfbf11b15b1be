"""Whole runs as users start them: encoded files through DALI, small networks; real processes where those matter."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from safetensors.torch import load_file

from fastaug.recipe.reading import read_recipe
from fastaug.training import worker

REPO = Path(__file__).resolve().parents[1]
TRAIN = [sys.executable, str(REPO / "fastaug/train.py")]
RECIPE = """
data: {img_size: 28, crop: rrc, scale: [0.5, 1.0], threads: 1, test_fraction: 0.3}
model: {name: test_resnet}
optim: {opt: adamw, lr: 1e-3, weight_decay: 0.05}
train: {epochs: 1, batch_size: 8}
augment: {hflip: 0.5, shift: 0.1, cutmix: 1.0}
eval: {batch_size: 16}
run: {log_every: 1, log_ids: true}
"""


@pytest.fixture
def images(tmp_path, photos):
    """28 small JPEG crops of each of two photographs, a class each; 20 of each class are training images."""
    generator = np.random.default_rng(0)
    for name, photo in zip(("flower", "temple"), photos, strict=True):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(28):
            y, x = generator.integers(0, 300, 2)
            Image.fromarray(photo[y : y + 40, x : x + 48]).save(tmp_path / "images" / name / f"{i:02}.jpg", quality=90)
    return tmp_path / "images"


@pytest.fixture
def recipe(tmp_path, images):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return [str(path), f"data.root={images}"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def start(command: list[str], **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(command: list[str], expected: int = 0, **more: str) -> str:
    process = start(command, **more)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == expected, output[-3000:]
    return output


def run_here(words: list[str]) -> int:
    """The exit code of the same run in this process, which has imported torch already."""
    try:
        return worker.run(read_recipe(words[0], words[1:]))
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


def torchrun(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl that two equal runs share."""
    times = ("images_per_second", "wait_share", "epoch_seconds", "peak_memory_mib")
    return [{k: v for k, v in line.items() if k not in times} for line in lines(folder / "metrics.jsonl")]


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


def last_weights(folder: Path) -> dict:
    path = folder / "checkpoints" / (folder / "checkpoints" / "last").read_text()
    return {f"{stem}.{k}": v for stem in ("model", "ema") for k, v in load_file(path / f"{stem}.safetensors").items()}


def kill_at(command: list[str], folder: Path, step: int) -> bool:
    """Starts `command` and kills it by SIGKILL once it has done update `step` itself; whether it got there."""
    ids, log = folder / "ids-0.jsonl", folder.with_suffix(".log")
    with open(log, "w") as output:
        process = subprocess.Popen(command, env=environment(), stdout=output, stderr=subprocess.STDOUT)
    fresh = not (folder / "checkpoints" / "last").exists()
    while process.poll() is None:
        begun = fresh or "continuing from" in log.read_text()  # only then is the log of ids this process's own
        if begun and ids.exists() and ids.read_text().count("\n") >= step:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.wait()
    return process.returncode == -signal.SIGKILL


RESUME = [
    *("model.ema=true", "model.ema_decay=0.9", "train.accumulate=2", "train.epochs=8"),
    *("run.checkpoint_every=3", "run.log_every=2", "run.keep=2"),
]


@pytest.mark.slow  # CI runs attacks.kills, which compares whole folders after more kills
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("cuts", [2, pytest.param(20, marks=pytest.mark.timeout(1200))])
def test_killed_runs_end_bit_equal_to_the_uninterrupted_one(recipe, tmp_path, cuts, asynchronous):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_here([*recipe, *RESUME, f"run.dir={whole}"]) == 0
    command = [*TRAIN, *recipe, *RESUME, f"run.dir={cut}", *["run.checkpoint_async=true"] * asynchronous]
    steps = random.Random(cuts).sample(range(1, 40), cuts)
    killed = [kill_at(command, cut, step) for step in sorted(steps)]
    assert sum(killed) >= cuts - 1
    assert run_here(command[len(TRAIN) :]) == 0
    expected = lines(whole / "ids-0.jsonl")
    assert len(expected) == 40
    assert lines(cut / "ids-0.jsonl") == expected
    for epoch in range(8):
        ids = [i for line in expected if line["epoch"] == epoch for i in line["ids"]]
        assert len(ids) == len(set(ids)) == 40
    losses = [[line["loss"] for line in lines(folder / "metrics.jsonl") if "loss" in line] for folder in (whole, cut)]
    assert losses[0] == losses[1]
    weights, after = last_weights(whole), last_weights(cut)
    assert weights.keys() == after.keys()
    assert all((weights[name] == after[name]).all() for name in weights)
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, cut)]
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["test_ema"] == results[1]["test_ema"]
    for seconds in random.Random(cuts).sample(range(2, 12), cuts // 4):  # of the ended run, which evaluates again
        process = start(command)
        time.sleep(seconds)
        process.kill()
        process.communicate()
        run(command)
    assert without_times(cut) == without_times(whole)
    assert {path.relative_to(cut) for path in cut.rglob("*")} == {path.relative_to(whole) for path in whole.rglob("*")}
    assert status(cut) == status(whole)


def test_a_signal_saves_and_the_same_command_continues(recipe, tmp_path):
    folder = tmp_path / "run"
    command = [*TRAIN, *recipe, "train.epochs=200", "eval.every=0", f"run.dir={folder}"]
    process = start(command)
    while not (folder / "ids-0.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output[-3000:]
    ended = status(folder)
    assert ended["code"] == 75
    assert "SIGTERM" in ended["reason"]
    assert (folder / "checkpoints" / f"step-{ended['step']:08d}" / "manifest.json").exists()

    def interrupt() -> None:
        while len(lines(folder / "ids-0.jsonl")) <= ended["step"]:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt, daemon=True)
    watcher.start()
    assert run_here(command[len(TRAIN) :]) == 75
    watcher.join()
    assert [line["step"] for line in lines(folder / "ids-0.jsonl")] == list(range(1, status(folder)["step"] + 1))


@pytest.mark.slow  # tests of signals see what a process does whose launcher is gone
def test_a_worker_whose_launcher_is_killed_saves_and_ends(recipe, tmp_path):
    folder = tmp_path / "run"
    launcher = start([*torchrun(1), *TRAIN[1:], *recipe, "train.epochs=500", "eval.every=0", f"run.dir={folder}"])
    while not (folder / "ids-0.jsonl").exists():
        assert launcher.poll() is None
        time.sleep(0.05)
    launcher.kill()
    launcher.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while status(folder)["code"] is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert status(folder)["code"] == 75
    assert "launcher" in status(folder)["reason"]


@pytest.mark.slow
def test_a_process_that_stands_still_ends_the_job_and_is_named(recipe, tmp_path):
    folder = tmp_path / "run"
    settings = ["train.epochs=5000", "eval.every=0", "run.peer_timeout=3", f"run.dir={folder}"]
    launcher = start([*torchrun(2), *TRAIN[1:], *recipe, *settings])
    while not (folder / "ids-1.jsonl").exists():
        assert launcher.poll() is None
        time.sleep(0.05)
    workers = [child for child in psutil.Process(launcher.pid).children() if child.environ().get("RANK") == "1"]
    workers[0].send_signal(signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 60
        while status(folder)["code"] is None and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        workers[0].kill()  # the launcher would wait half a minute for it
        output, _ = launcher.communicate(timeout=60)
    assert status(folder)["code"] == 6, output[-3000:]
    assert f"process 1 on {socket.gethostname()} did not answer for 3 s" in status(folder)["reason"]
    log = (folder / "errors.log").read_text()  # gloo's own words for who waits, and for who had begun to send
    assert "Timed out waiting 3000ms" in log or "Application timeout caused pair closure" in log


def test_tasks_of_a_scheduler_that_would_each_train_alone_are_refused(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert run_here([*recipe, f"run.dir={tmp_path / 'run'}"]) == 6
    assert "SLURM_NTASKS is 2: every task would train the whole run alone" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


GROUP_NORM = ["model.kwargs={norm_layer: groupnorm1}", "optim.lr=1e-4", "train.epochs=10", "eval.every=0"]


def test_two_processes_train_as_one_does(recipe, tmp_path, in_processes):
    one, two = tmp_path / "one", tmp_path / "two"
    settings = [*GROUP_NORM, "augment.cutmix=0", "augment.shift=0.2"]
    assert run_here([*recipe, *settings, f"run.dir={one}"]) == 0
    in_processes(2, *TRAIN[1:], *recipe, *settings, f"run.dir={two}")
    expected = lines(one / "ids-0.jsonl")
    parts = zip(lines(two / "ids-0.jsonl"), lines(two / "ids-1.jsonl"), strict=True)
    assert [a["ids"] + b["ids"] for a, b in parts] == [line["ids"] for line in expected]
    assert all(len(line["ids"]) == 4 for line in lines(two / "ids-0.jsonl"))
    losses = [[line["loss"] for line in lines(folder / "metrics.jsonl") if "loss" in line] for folder in (one, two)]
    assert len(losses[0]) == 50
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-5
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    assert results[0]["test"]["top1"] == results[1]["test"]["top1"]


@pytest.mark.slow  # that two processes evaluate as one does, the test above and those of the metrics see
@pytest.mark.parametrize("counts", [(2,), (1, 2, 3)])
def test_evaluation_is_the_same_with_any_number_of_processes(recipe, tmp_path, counts):
    folder = tmp_path / "run"
    assert run_here([*recipe, "data.test_fraction=0.5", "eval.batch_size=5", f"run.dir={folder}"]) == 0
    figures = []
    for processes in counts:
        file = tmp_path / f"{processes}.json"
        run([*torchrun(processes), str(REPO / "tools/evaluate.py"), str(folder), "--json", str(file)])
        figures.append(json.loads(file.read_text())["figures"])
    trained = json.loads((folder / "result.json").read_text())["test"]
    for found in figures:
        assert found["images"] == trained["images"] == 28
        assert found["top1"] == trained["top1"]
        assert found["top5"] == trained["top5"]
        assert found["nll"] == pytest.approx(trained["nll"], abs=1e-12)
        assert found["ece"] == pytest.approx(trained["ece"], abs=1e-6)


def test_a_run_ends_with_its_result(recipe, tmp_path):
    folder = tmp_path / "run"
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", "1"]
    output = run([*accelerate, *TRAIN[1:], *recipe, "run.trackers=[tensorboard]", f"run.dir={folder}"])
    result = json.loads((folder / "result.json").read_text())
    assert status(folder) == {"code": 0, "reason": "done", "step": 5}
    assert {"top1", "top5", "nll", "ece", "ece_bins", "test", "select", "versions", "commit"} <= result.keys()
    assert result["images_seen"] == 40
    assert result["skipped_images"] == 0
    assert result["source"].startswith("encoded files, decoded by DALI")
    assert result["images_per_second"] == pytest.approx(40 / result["train_seconds"])
    assert "test top1" in output
    assert list((folder / "fastaug").glob("events.out.tfevents.*"))
    found = lines(folder / "metrics.jsonl")
    assert len(found) == 7
    (epoch,) = [line for line in found if line["event"] == "epoch"]
    assert epoch["epoch_seconds"] == pytest.approx(result["train_seconds"], rel=0.2)
    assert 100 < epoch["peak_memory_mib"] <= result["peak_memory_mib"]
    assert result["f1_macro"] == pytest.approx(sum(result["test"]["f1_by_class"]) / 2)


def test_a_loss_that_is_not_finite_stops_all_processes_before_the_update(recipe, tmp_path, in_processes):
    folder = tmp_path / "run"
    settings = ["optim.opt=sgd", "optim.lr=1e30", "optim.sched=constant", "run.checkpoint_every=1", "eval.every=0"]
    in_processes(2, *TRAIN[1:], *recipe, *settings, f"run.dir={folder}", code=4)
    ended = status(folder)
    assert ended["code"] == 4
    assert "not finite" in ended["reason"]
    assert f"update {ended['step']};" in ended["reason"]


def test_processes_that_do_not_see_each_other_are_refused(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_here([*recipe, f"run.dir={tmp_path / 'run'}"]) == 6
    assert "torchrun" in capsys.readouterr().out
    assert status(tmp_path / "run")["code"] == 6


def test_a_launcher_that_splits_the_network_is_refused(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert run_here([*recipe, f"run.dir={tmp_path / 'run'}"]) == 2
    assert "ACCELERATE_USE_FSDP: splits the network" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("told", ["typed", "configured"])
def test_accelerate_launch_that_wants_another_precision_is_refused(recipe, tmp_path, told):
    (tmp_path / "default.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: bf16\nnum_processes: 1\n"
    )
    options = {
        "typed": ["--mixed_precision", "bf16", "--gradient_accumulation_steps", "4"],
        "configured": ["--config_file", str(tmp_path / "default.yaml")],
    }
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", *options[told]]
    run([*launch, *TRAIN[1:], *recipe, f"run.dir={tmp_path / 'run'}"], expected=1)
    ended = status(tmp_path / "run")
    assert ended["code"] == 2
    assert "train.precision: is 'no' and mixed_precision of accelerate launch" in ended["reason"]
    assert ("gradient_accumulation_steps" in ended["reason"]) == (told == "typed")
    if told == "configured":
        run([*launch, *TRAIN[1:], *recipe, "train.precision=bf16", f"run.dir={tmp_path / 'run'}"])
        assert status(tmp_path / "run")["code"] == 0


@pytest.mark.slow
def test_accelerate_launch_that_starts_too_few_processes_is_refused(recipe, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    output = run([*launch, *TRAIN[1:], *recipe, f"run.dir={tmp_path / 'run'}"], expected=1)
    assert "asked for 2 processes but this one sees 1" in output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart_reaches_97_percent(tmp_path):
    folder = tmp_path / "run"
    run([*TRAIN, str(REPO / "recipes/quickstart.yaml"), f"run.dir={folder}"], OMP_NUM_THREADS="2")
    result = json.loads((folder / "result.json").read_text())
    assert result["test"]["images"] == 1500
    assert result["top1"] >= 0.97
    assert result["loader"] == "dali"
    assert result["train_seconds"] <= 120
