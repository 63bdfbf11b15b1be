"""Where two runs part: every stage on evidence that was changed in one place, and whole runs that differ."""

import json
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from fastaug.commands import bisect_runs
from fastaug.commands.bisect_runs import CROP, OP
from fastaug.training.run_evidence import RunEvidence, compute, stored_evidence

Tool = Callable[..., str]


@pytest.fixture(scope="module")
def evidence(tiny_run: Path) -> RunEvidence:
    """That of `tiny_run`, with its first update; tests change copies."""
    found = stored_evidence(tiny_run)
    compute(found, [0], [])
    assert found.problem is None
    return found


def changed(evidence: RunEvidence, **values: Any) -> RunEvidence:
    other = deepcopy(evidence)
    for name, value in values.items():
        setattr(other, name, value)
    return other


def sample(evidence: RunEvidence, key: str, value: Any) -> RunEvidence:
    """The evidence with another `key` of the third image of the first update."""
    other = deepcopy(evidence)
    other.updates[0][2][key] = value
    return other


def test_equal_evidence_is_equal_in_every_stage(evidence: RunEvidence) -> None:
    found = [stage(evidence, deepcopy(evidence)) for stage in bisect_runs.STAGES]
    assert [finding.stage for finding in found] == [
        *("versions", "recipe", "files", "order", "crop", "op", "forward", "update")
    ]
    assert {finding.stage for finding in found if finding.differs} == set()
    (forward,) = (finding for finding in found if finding.stage == "forward")
    assert forward.differs is None  # the log has a line an epoch
    assert "run.log_every=1" in forward.text


def test_versions(evidence: RunEvidence) -> None:
    (start,) = deepcopy(evidence.starts)
    start["versions"]["torch"] = "1.0"
    text = bisect_runs.versions(evidence, changed(evidence, starts=[start])).text
    assert re.fullmatch(r"start 1: torch \S+ against 1\.0", text)
    (start,) = deepcopy(evidence.starts)
    del start["versions"]["timm"]
    assert "timm is installed for one" in bisect_runs.versions(evidence, changed(evidence, starts=[start])).text
    assert bisect_runs.versions(evidence, changed(evidence, starts=[])).differs is None


def test_recipe(evidence: RunEvidence) -> None:
    other = deepcopy(evidence)
    other.recipe.run.log_every += 1
    found = bisect_runs.recipe(evidence, other)
    assert (found.differs, found.text) == (False, "but for run.log_every, which train nothing")
    other.recipe.run.seed, other.recipe.augment.shift = 5, 0.25
    found = bisect_runs.recipe(evidence, other)
    assert (found.differs, found.text) == (True, "run.seed: 0 against 5; augment.shift too")


def test_files(evidence: RunEvidence) -> None:
    labels = evidence.files["labels"].copy()
    named = int(evidence.files["train"][0])
    labels[named] += 1
    other = changed(evidence, fingerprint="2:other", files=evidence.files | {"labels": labels})
    found = bisect_runs.files(evidence, other)
    assert found.differs
    assert f"id {named} (train/class0/" in found.text
    assert found.text.endswith("has label 0 against 1")
    fewer = changed(evidence, fingerprint=None, files=evidence.files | {"train": evidence.files["train"][1:]})
    assert f"id {named} is one of A" in bisect_runs.files(evidence, fewer).text
    assert "classes" in bisect_runs.files(evidence, changed(evidence, classes=["a", "b"])).text
    gone = changed(evidence, fingerprint=None, problem="data.root: gone", files={})
    assert bisect_runs.files(evidence, gone)[1:] == (None, "data.root: gone")


def test_order(evidence: RunEvidence) -> None:
    orders = deepcopy(evidence.orders)
    a, b = orders[1][[3, 4]].tolist()
    orders[1][[3, 4]] = b, a
    found = bisect_runs.order(evidence, changed(evidence, orders=orders))
    assert (found.differs, found.text) == (True, f"epoch 1, position 3: id {a} against {b}")


@pytest.mark.parametrize(
    ("stage", "key", "value", "said"),
    [
        ("crop", "window", [0, 0, 1, 1], r"window \[.*\] against \[0, 0, 1, 1\]"),
        ("crop", "loaded", "00", r"pixels as loaded \(digest\) \w{16} against 00"),
        ("op", "shift", [9, 9], r"shift \[0, 0\] against \[9, 9\]"),
        ("op", "partner", {"row": 0, "id": 0, "class": "x"}, r"partner id \d+, class\d+ against id 0, x"),
        ("op", "input", "00", r"pixels of the network's input \(digest\) \w{16} against 00"),
        ("op", "target", {"x": 1.0}, r"target \{.*\} against \{'x': 1.0\}"),
    ],
)
def test_samples(evidence: RunEvidence, stage: str, key: str, value: Any, said: str) -> None:
    other = sample(evidence, key, value)
    found = {name: bisect_runs.samples(evidence, other, name, keys) for name, keys in (("crop", CROP), ("op", OP))}
    assert {name for name, each in found.items() if each.differs} == {stage}
    assert re.search(rf"update 1, id {other.updates[0][2]['id']} \(.*\.jpg\): {said}$", found[stage].text)


def test_forward_and_update(evidence: RunEvidence, tmp_path: Path) -> None:
    runs = []
    for name, loss in (("a", 0.5), ("b", 0.25)):
        run = tmp_path / name
        shutil.copytree(evidence.run / "checkpoints", run / "checkpoints")
        lines = [{"event": "train", "step": step, "loss": 0.5 if step == 1 else loss} for step in (1, 2)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(changed(evidence, run=run))
    found = bisect_runs.forward(*runs)
    assert not found.differs
    assert found.text.startswith("loss 0.5 in update 1 (computed here: ")
    found = bisect_runs.update(*runs)
    assert (found.differs, found.text) == (True, "train line of update 2, loss: 0.5 against 0.25")
    (runs[1].run / "metrics.jsonl").write_text('{"event": "train", "step": 1, "loss": 0.125}\n')
    assert bisect_runs.forward(*runs).text.startswith("loss 0.5 against 0.125 in update 1")


@pytest.mark.slow
def test_a_run_against_copies_of_itself(tiny_run: Path, tmp_path: Path, tool: Tool) -> None:
    bisect: Tool = partial(tool, "bisect_runs")
    other = tmp_path / "run"
    shutil.copytree(tiny_run, other)
    last = other / "checkpoints" / (other / "checkpoints" / "last").read_text()
    weights = load_file(last / "model.safetensors")
    name = list(weights)[3]
    weights[name] = weights[name] + torch.ones_like(weights[name])
    save_file(weights, last / "model.safetensors")
    said = bisect(tiny_run, other, "--json", tmp_path / "found.json", code=1)
    assert "versions: equal\nrecipe: equal\nfiles: equal\norder: equal: computed again" in said
    assert f"first difference: update: checkpoint {last.name}, model.safetensors: {name} differs by up to 1" in said
    assert json.loads((tmp_path / "found.json").read_text())["first"] == "update"


def test_what_is_no_run_folder(tiny_run: Path, tmp_path: Path, tool: Tool) -> None:
    assert f"{tmp_path} is not a run folder" in tool("bisect_runs", tiny_run, tmp_path, code=2)


@pytest.mark.slow
def test_whole_runs(train_tiny: Callable[..., Path], tool: Tool) -> None:
    bisect: Tool = partial(tool, "bisect_runs")
    keys = {"run__log_every": 1, "run__log_ids": "true"}
    a = train_tiny(**keys)
    same, seed = train_tiny(**keys), train_tiny(**keys, run__seed=3)
    said = bisect(a, same)
    assert "forward: equal: loss" in said
    assert said.endswith("no difference found\n")
    said = bisect(a, seed, code=1)
    assert "first difference: recipe: run.seed: 0 against 3" in said
    for stage in ("order", "crop", "op", "forward", "update"):
        assert re.search(rf"^{stage}: (differs|not compared: no image)", said, re.M)
    spoiled = sorted((same.parent / "images" / "train").rglob("*.jpg"))
    for path in spoiled:
        ImageOps.invert(Image.open(path)).save(path, quality=90)
    said = bisect(a, same, code=1)
    assert "warning: changed since the index" in said
    assert "first difference: crop: update 1, id" in said
    assert "pixels as loaded (digest)" in said
