"""Where the time of a step goes: on real steps of a small network, with parts made slow on purpose."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from fastaug.batch import Batch
from fastaug.commands import profile_step
from fastaug.console import Console
from fastaug.data.sampler import Request
from fastaug.recipe.reading import read_recipe
from fastaug.step_profile import page as profile_view
from fastaug.step_profile.measure import Profile, Waits, Watch, device_work, profile, watched
from fastaug.training.build import Trainer, assemble
from fastaug.training.loop import train_step
from fastaug.training.run_folder import RunFolder

REPO = Path(__file__).resolve().parents[2]
SYNTHETIC = """
data: {img_size: 32, threads: 1, loader: synthetic, synthetic_classes: 4, synthetic_images: 64}
model: {name: test_resnet, ema: true}
optim: {opt: sgd, lr: 0.05, clip_grad: 1}
train: {epochs: 2, batch_size: 4, accumulate: 2}
"""
MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tmp_path: Path) -> Iterator[MakeTrainer]:
    (tmp_path / "recipe.yaml").write_text(SYNTHETIC)
    states, threads = (AcceleratorState, GradientState, PartialState), torch.get_num_threads()
    torch.set_num_threads(1)

    def make(*words: str) -> Trainer:
        for state in states:
            state._reset_state()
        recipe = read_recipe(tmp_path / "recipe.yaml", [f"run.dir={tmp_path / 'run'}", *words])
        return assemble(recipe, Accelerator(cpu=True), RunFolder(tmp_path / "run"), Console(False))

    yield make
    torch.set_num_threads(threads)
    for state in states:
        state._reset_state()


def slept(seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return call(*args, **kwargs)

    return slow


class SlowLoader:
    """Waits before every batch, in the thread that asks for it."""

    def __init__(self, loader: Any, seconds: float) -> None:
        self.loader, self.seconds, self.skipped = loader, seconds, loader.skipped

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        for batch in self.loader.batches(requests):
            time.sleep(self.seconds)
            yield batch


# ---- the clock ----


def test_stages_do_not_overlap_and_add_up() -> None:
    watch = Watch(torch.device("cpu"))
    inner = watch.during("inner", lambda: time.sleep(0.01))
    outer = watch.during("outer", lambda: (inner(), time.sleep(0.01)))
    for _ in range(2):
        watch.step(lambda: (outer(), inner(), inner()))
    for step in watch.seconds():
        assert set(step) == {"outer", "inner", "rest", "step"}
        assert step["outer"] + step["inner"] + step["rest"] == pytest.approx(step["step"])
        assert step["outer"] >= 0.02  # the call inside of it is its own time
        assert step["inner"] >= 0.02
        assert step["rest"] >= 0


def test_a_stage_that_fails_is_closed() -> None:
    watch = Watch(torch.device("cpu"))

    def fails() -> None:
        with pytest.raises(ZeroDivisionError):
            watch.during("one", lambda: 1 / 0)()
        watch.during("two", lambda: None)()

    watch.step(fails)
    assert {"one", "two"} <= set(watch.seconds()[0])


def test_the_clock_changes_nothing_of_the_training(make_trainer: MakeTrainer) -> None:
    ends = []
    for clocked in (False, True):
        trainer = make_trainer()
        batches, step = trainer.loader.batches(trainer.order.requests(0, 3)), trainer
        if clocked:
            watch = Watch(trainer.accelerator.device)
            step, batches = watched(trainer, watch), Waits(batches, watch)
            for _ in range(3):
                watch.step(lambda step=step, batches=batches: train_step(step, batches))
        else:
            for _ in range(3):
                train_step(step, batches)
        assert trainer.progress.step == 3
        ends.append([*trainer.network.state_dict().values(), *trainer.weights("ema").state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


# ---- real steps ----


def test_only_what_ran_counts_as_measured(make_trainer: MakeTrainer) -> None:
    found = profile(make_trainer(), 3)
    assert list(found.stages()) == ["load", "augment", "forward", "backward", "optimizer", "rest"]
    assert len(found.steps) == 3
    assert all(value > 0 for value in (*found.stages().values(), found.loader_alone, found.compute_alone))
    assert found.copy is None
    assert set(found.not_measured) == {"copy", "meta"}
    numbers = profile_view.figures(found)
    assert not [name for name in numbers if name.startswith(("copy", "meta"))]
    assert sum(share for name, _, share in profile_view.rows(found) if name != "idle") == pytest.approx(1)


WITH_META = [
    *("data.loader=resident", "data.crop=whole", "data.threads=1", "data.img_size=32", "data.test_fraction=0.25"),
    *("data.meta_fraction=0.25", "meta.batch_size=4", "model.ema=false", "train.accumulate=1"),
]


def test_the_meta_step_is_a_stage_over_whole_cadences(
    make_trainer: MakeTrainer, jpeg_folder: Callable[..., Path]
) -> None:
    words = ["meta.learn=[softness]", "augment.shift=0.2", "meta.every=2", "meta.start_epochs=1", "meta.engine=forward"]
    trainer = make_trainer(*WITH_META, f"data.root={jpeg_folder(images=16)}", *words)
    found = profile(trainer, 3)
    assert len(found.steps) == 4  # two cadences
    assert not any(line.get("skipped") for line in trainer.meta.log.read())  # nor on a batch that is shown again
    assert ["meta" in step for step in found.steps].count(True) == 2
    assert found.mean("meta") > 0
    assert "meta" not in found.not_measured


def test_a_training_pass_that_the_meta_step_takes_is_its_stage(
    make_trainer: MakeTrainer, jpeg_folder: Callable[..., Path]
) -> None:
    words = ["meta.learn=[instant_weights]", "meta.every=1", "meta.fraction=1", "meta.engine=fused"]
    found = profile(make_trainer(*WITH_META, f"data.root={jpeg_folder(images=16)}", *words), 2)
    assert all("meta" in step for step in found.steps)
    assert found.mean("meta") > found.mean("forward")


def test_a_slow_loader_limits(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("train.accumulate=1")
    found = profile(replace(trainer, loader=SlowLoader(trainer.loader, 0.25)), 2)
    assert found.mean("load") >= 0.25
    assert found.loader_alone >= 0.25
    assert profile_view.limit(found) == "load"
    assert any("data.threads" in text for text in profile_view.advice(found, trainer.recipe)) == (found.cores > 1)
    said = "\n".join(profile_view.sentences(found, trainer.recipe))
    assert "does not hide behind" in said
    assert "limited by: load" in said


def test_a_slow_stage_limits(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("train.accumulate=1")
    trainer.augment.training = slept(0.3, trainer.augment.training)  # type: ignore[method-assign]
    found = profile(trainer, 2)
    assert found.mean("augment") >= 0.3
    assert max(found.stages(), key=found.stages().__getitem__) == "augment"
    assert found.idle > 0  # a core sleeps


# ---- what it means ----


def made_up(step: dict[str, float], device: str = "cpu", **fields: Any) -> Profile:
    whole = {**step, "step": sum(step.values())}
    usual = {
        "loader_alone": 0.01,
        "compute_alone": whole["step"],
        "images": 8,
        "idle": 0.0,
        "cores": 4,
        "busy_cores": 4.0,
    }
    return Profile(steps=[whole], device=device, **{**usual, **fields})


@pytest.mark.parametrize(
    ("found", "limit"),
    [
        (made_up({"load": 0.5, "forward": 0.5}), "load"),
        (made_up({"load": 0.01, "forward": 0.3, "backward": 0.6}), "backward"),
        (made_up({"load": 0.01, "forward": 0.6, "backward": 0.3}, compute_alone=0.5), "cores"),
        (made_up({"load": 0.01, "forward": 0.3, "optimizer": 0.6}), "optimizer"),
        (made_up({"load": 0.01, "forward": 0.3, "meta": 0.6}), "meta"),
        (made_up({"load": 0.01, "augment": 0.6, "rest": 0.1}), "augment"),
        (made_up({"load": 0.01, "augment": 0.1, "rest": 0.6}), "rest"),
        (made_up({"load": 0.01, "forward": 0.9}, "cuda", idle=0.5), "launch"),
        (made_up({"load": 0.01, "forward": 0.9}, "cuda", idle=0.05, compute_alone=0.1), "forward"),
    ],
)
def test_limits_and_their_remedies(make_trainer: MakeTrainer, found: Profile, limit: str) -> None:
    assert profile_view.limit(found) == limit
    assert profile_view.advice(found, make_trainer().recipe)
    assert profile_view.as_json(found, make_trainer().recipe)["limited_by"] == limit


def test_best_possible_step() -> None:
    """Side by side on a GPU, one after the other where both need the same cores."""
    assert made_up({"forward": 0.5}, "cuda", loader_alone=0.2, compute_alone=0.5).bound == 0.5
    assert made_up({"forward": 0.5}, "cpu", loader_alone=0.2, compute_alone=0.5).bound == pytest.approx(0.7)


def test_work_of_a_device_in_a_trace() -> None:
    """Overlapping work counts once; copies from the host by themselves; what the host does not at all."""
    spans = [("kernel", "a", 0, 10), ("kernel", "b", 5, 10), ("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 20, 4)]
    spans += [("gpu_memcpy", "Memcpy DtoD", 40, 6), ("gpu_memset", "Memset", 41, 2), ("cpu_op", "aten::mm", 0, 900)]
    spans += [("gpu_user_annotation", "forward", 0, 900)]
    events = [{"cat": cat, "name": name, "ts": ts, "dur": dur} for cat, name, ts, dur in reversed(spans)]
    found = device_work({"traceEvents": [*events, {"ph": "M", "name": "process_name"}]})
    assert found["busy"] * 5 * 1e6 == pytest.approx(15 + 4 + 6)
    assert found["copy"] * 5 * 1e6 == pytest.approx(4)
    assert device_work({"traceEvents": []}) == {"busy": 0, "copy": 0}


def test_bars_are_as_long_as_the_times() -> None:
    found = made_up({"load": 0.1, "forward": 0.3, "backward": 0.6})
    pixels = np.asarray(profile_view.picture(found, "title"))
    lengths = {}
    for name in ("load", "backward"):
        colour = [int(profile_view.COLOURS[name][i : i + 2], 16) for i in (1, 3, 5)]
        rows = (pixels == colour).all(-1).sum(1)
        lengths[name] = rows[rows > 0][0]
    assert lengths["backward"] / lengths["load"] == pytest.approx(6, rel=0.03)


# ---- the tool ----


def run(*words: str, code: int = 0) -> str:
    command = [sys.executable, str(REPO / "tools/profile_step.py"), *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.slow
def test_the_tool(tmp_path: Path, jpeg_folder: Callable[..., Path]) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(SYNTHETIC.replace("synthetic,", "dali,"))
    out.mkdir()
    files = [f"--{kind}={out / kind}" for kind in ("trace", "png", "json")]
    words = [f"data.root={jpeg_folder(images=10)}", "data.test_fraction=0.3", "train.accumulate=1"]
    said = run(str(recipe), *words, f"run.dir={tmp_path / 'run'}", "--steps", "3", *files)
    assert "limited by" in said
    assert "the recipe has no meta step" in said
    assert not (tmp_path / "run").exists()
    written = json.loads((out / "json").read_text())
    assert len(written["steps"]) == 3
    assert {"gates", "figures", "versions", "commit", "machine"} <= set(written)
    with Image.open(out / "png") as picture:
        assert picture.format == "PNG"
    spans = {event.get("name") for event in json.loads((out / "trace").read_text())["traceEvents"]}
    assert {"step", "load", "augment", "forward", "backward", "optimizer"} <= spans


def test_the_tool_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(SYNTHETIC)
    refused = {
        "--steps must be at least 1": ["--steps", "0"],
        "there is no folder": ["--png", str(tmp_path / "no" / "where.png")],
        "data.img_sice": ["data.img_sice=3"],
    }
    for message, words in refused.items():
        monkeypatch.setattr(sys, "argv", ["profile_step.py", str(tmp_path / "recipe.yaml"), *words])
        with pytest.raises(SystemExit) as end:  # argparse's, or of the code that main returns
            sys.exit(profile_step.main())
        assert end.value.code == 2
        assert message in capsys.readouterr().err
