"""Trackers: what is read back from what the real packages wrote, over a kill, and what a tracker that fails costs."""

import csv
import io
import json
import os
import re
import resource
import signal
import sqlite3
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.utils.summary import update_summary

from fastaug.console import Console
from fastaug.errors import RecipeError
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Run, Tracker
from fastaug.training.run_folder import RunFolder
from fastaug.training.trackers import Trackers

PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
UNTIL_KILL, AFTER = (5, 10, 15), (15, 20)  # updates of log lines; the checkpoint is that of update 10

Begin = Callable[..., Trackers]


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """begin(name, ..., step=0): the trackers of the run folder tmp_path / "run", started at `step`."""
    PartialState()
    (tmp_path / "recipe.yaml").write_text("model: {name: test_resnet}\n")

    def start(*names: str, step: int = 0, project: str = "fastaug") -> Trackers:
        words = [
            f"run.project={project}",
            "data.root=embedded:mnist5k",
            f"run.dir={tmp_path / 'run'}",
            f"run.trackers=[{', '.join(names)}]",
        ]
        recipe = read_recipe(tmp_path / "recipe.yaml", words)
        folder = RunFolder(tmp_path / "run")
        folder.path.mkdir(exist_ok=True)
        folder.cut_after(step)
        trackers = Trackers(recipe, folder, Console(True), main=True)
        trackers.start(step)
        return trackers

    return start


def tell(trackers: Trackers, steps: tuple[int, ...]) -> None:
    """Log lines of a training, whose loss is 1 / update."""
    for step in steps:
        values = {"loss": 1 / step, "note": "no number"}
        trackers.folder.append("metrics.jsonl", {"event": "train", "step": step, "epoch": step / 10, **values})
        trackers.log("train", step, values)


def in_a_process(life: Callable[[], None], wait: float = 0.0) -> None:
    """Calls `life` in a process of its own, which is killed `wait` seconds later."""
    if (child := os.fork()) == 0:
        try:
            life()
            time.sleep(wait)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)


def killed_and_continued(begin: Begin, name: str, finish: bool, wait: float = 1.0) -> None:
    """A run that ends after update 15 and goes on from its checkpoint of update 10; unless `finish` it is killed."""

    def first() -> None:
        trackers = begin(name)
        trackers.log_picture("batch", PICTURE, 0)
        tell(trackers, UNTIL_KILL)
        if finish:
            trackers.__exit__(None, None, None)

    def second() -> None:
        with begin(name, step=10) as trackers:
            tell(trackers, AFTER)

    in_a_process(first, wait)
    in_a_process(second)


EXPECTED = {step: pytest.approx(1 / step) for step in (5, 10, 15, 20)}


def test_tensorboard_has_every_update_once_and_the_picture(begin: Begin, tmp_path: Path) -> None:
    killed_and_continued(begin, "tensorboard", finish=False)
    events = EventAccumulator(str(tmp_path / "run/fastaug")).Reload()
    scalars = events.Scalars("train/loss")
    assert [event.step for event in scalars] == sorted(EXPECTED)
    assert {event.step: event.value for event in scalars} == EXPECTED
    (picture,) = events.Images("batch")
    assert (np.asarray(Image.open(io.BytesIO(picture.encoded_image_string))) == np.asarray(PICTURE)).all()


def test_a_run_that_begins_again_begins_its_curves_again(begin: Begin, tmp_path: Path) -> None:
    for steps in ((5, 10, 15), (5, 10)):
        with begin("tensorboard") as trackers:
            tell(trackers, steps)
    events = EventAccumulator(str(tmp_path / "run/fastaug")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [5, 10]


def test_summary_csv_is_that_of_timm(begin: Begin, tmp_path: Path) -> None:
    trackers = begin("csv")
    assert not trackers.show_pictures
    lines = [
        {"event": "train", "step": 5, "epoch": 0.5, "loss": 3.0, "lr": 0.1},
        {"event": "train", "step": 10, "epoch": 1.0, "loss": 1.0, "lr": 0.05},
        {"event": "epoch", "step": 10, "epoch": 1.0},
        {"event": "test", "step": 10, "epoch": 1.0, "nll": 0.5, "top1": 0.75, "top5": 1.0, "weights": "raw"},
    ]
    for line in lines:
        trackers.folder.append("metrics.jsonl", line)
        trackers.log(line["event"], line["step"], line)
    figures = {"loss": 0.5, "top1": 75.0, "top5": 100.0}
    update_summary(0, {"loss": 2.0}, figures, tmp_path / "timm.csv", lr=0.05, write_header=True)
    texts = [(tmp_path / name).read_text().splitlines() for name in ("run/summary.csv", "timm.csv")]
    ours, timms = (list(csv.DictReader(text)) for text in texts)
    assert [{name: float(value) for name, value in row.items()} for row in ours] == [
        {name: float(value) for name, value in row.items()} for row in timms
    ]
    assert list(ours[0]) == list(timms[0])


def test_every_tracker_of_accelerate_has_a_name() -> None:
    assert set(get_args(Tracker)) == {*LOGGER_TYPE_TO_CLASS, "csv"}
    assert Run().trackers == []


# ---- trackers that fail ----


@contextmanager
def full_disk() -> Iterator[None]:
    """No file grows any more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its thread dies of the full disk
def test_a_tracker_that_fails_costs_its_lines_and_nothing_else(begin: Begin, capsys: pytest.CaptureFixture) -> None:
    with begin("tensorboard") as trackers:
        tell(trackers, (5,))
        with full_disk():
            for step in (10, 15, 20, 25, 30):
                trackers.log("train", step, {"loss": 1.0})
        trackers.log("train", 35, {"loss": 1.0})
    said = capsys.readouterr().out
    assert said.count("warning: run.trackers: tensorboard failed at update") == 2  # the first one, and the last
    assert "is tried again; the training goes on" in said
    assert "is left out until the next start" in said
    assert "File too large" in said
    assert "tensorboard lost" in trackers.folder.notes["trackers"]["tensorboard"]
    with begin("tensorboard", step=35) as again:
        tell(again, (40,))
    assert "trackers" not in again.folder.notes


def test_a_tracker_that_cannot_start_refuses_a_run_only_before_it_has_begun(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/fastaug").write_text("a file where the folder of events should be")
    with pytest.raises(RecipeError, match=r"run\.trackers: tensorboard cannot start: .*or leave tensorboard out"):
        begin("tensorboard")
    with begin("tensorboard", "csv", step=10) as trackers:
        tell(trackers, (15,))
    assert "could not start at update 10" in trackers.folder.notes["trackers"]["tensorboard"]


# ---- packages that are not always there, and processes of their own ----


@pytest.mark.slow
def test_wandb_without_a_login_is_refused_with_the_remedy(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))

    def life() -> None:
        try:
            begin("wandb")
        except RecipeError as error:
            (tmp_path / "said").write_text(str(error))

    in_a_process(life)
    assert re.search(r"wandb cannot start: .*WANDB_MODE=offline", (tmp_path / "said").read_text())


def records(file: Path) -> Iterator[bytes]:
    """The records of a file of wandb: LevelDB's log format behind a head of 7 bytes."""
    block, part = 32768, b""
    with open(file, "rb") as opened:
        opened.seek(7)
        while True:
            if block - opened.tell() % block < 7:  # a block's rest, too short for a record's head
                opened.seek(-opened.tell() % block, os.SEEK_CUR)
            head = opened.read(7)
            if len(head) < 7:
                return
            _, length, kind = struct.unpack("<IHB", head)
            part += opened.read(length)
            if kind in (1, 4):  # whole, or the last piece
                yield part
                part = b""


@pytest.mark.slow
@pytest.mark.parametrize("finish", [False, True])
def test_wandb_offline(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finish: bool) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    killed_and_continued(begin, "wandb", finish, wait=0.0 if finish else 20.0)  # it writes every 15 s
    found, ids, keys = [], set(), set()
    for file in sorted((tmp_path / "run").glob("wandb/offline-run-*/*.wandb")):
        for data in records(file):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            keys |= set(items)
            if "train/loss" in items:
                found.append((record.history.step.num or items["_step"], items["train/loss"]))
    assert len(ids) == 1
    assert dict(found) == EXPECTED
    assert len(set(found)) == len(EXPECTED)  # update 15 twice, in the files of both starts: its server leaves one out
    assert any(key.startswith("batch") for key in keys)


@pytest.mark.slow
@pytest.mark.parametrize("finish", [False, True])
def test_trackio(begin: Begin, finish: bool) -> None:
    trackio = pytest.importorskip("trackio", reason="pip install trackio")
    project = f"fastaug-{uuid.uuid4().hex}"  # its folder is that of the user, read when it is imported
    killed_and_continued(partial(begin, project=project), "trackio", finish)
    (run,) = trackio.Api().runs(project)
    (file,) = Path(trackio.utils.TRACKIO_DIR).glob(f"{project}*.db")
    with sqlite3.connect(file) as base:
        rows = [(step, json.loads(values)) for step, values in base.execute("select step, metrics from metrics")]
    losses = [(step, values["train/loss"]) for step, values in rows if "train/loss" in values]
    assert run.name.startswith("run-")
    assert dict(losses) == EXPECTED
    assert len(losses) == len(EXPECTED)
    assert any("batch" in values for _, values in rows)
    trackio.delete_project(project, force=True)
