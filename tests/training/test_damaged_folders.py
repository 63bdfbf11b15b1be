"""Run folders that were damaged between two starts: each start continues, or ends with a code and a reason."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file

from fastaug.recipe.reading import read_recipe
from fastaug.training.checkpoint import _digest, _write_manifest
from fastaug.training.worker import run

RECIPE = """
run: {log_every: 1, log_ids: true, checkpoint_every: 1}
data: {loader: synthetic, synthetic_images: 16, synthetic_classes: 2, img_size: 16}
model: {name: test_resnet}
optim: {lr: 0.01}
train: {epochs: 2, batch_size: 8}
eval: {batch_size: 16}
"""
TIMES = ("images_per_second", "wait_share")
NEWEST = "checkpoints/step-00000004"
Damage = Callable[[Path], Any]


def train(recipe: Path, folder: Path, *overrides: str) -> int:
    try:
        return run(read_recipe(recipe, [f"run.dir={folder}", *overrides]))
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four updates with the checkpoints of the last three, beside its recipe."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text(RECIPE)
    assert train(folder / "recipe.yaml", folder / "run") == 0
    return folder / "run"


@pytest.fixture
def again(whole: Path, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """again(damage, "key=value", ...) -> exit code of a start in a damaged copy of the run, tmp_path / "run"."""

    def start(damage: Damage, *overrides: str) -> int:
        shutil.copytree(whole, tmp_path / "run")
        damage(tmp_path / "run")
        return train(whole.parent / "recipe.yaml", tmp_path / "run", *overrides)

    yield start
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read]


def content(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def assert_as_whole(found: Path, whole: Path) -> None:
    """Same files, lines, weights and figures as the run that nothing happened to."""
    assert content(found) == content(whole)
    assert lines(found) == lines(whole)
    assert lines(found, "ids-0.jsonl") == lines(whole, "ids-0.jsonl")
    assert (found / "checkpoints" / "last").read_text() == "step-00000004"
    want, got = (load_file(folder / NEWEST / "model.safetensors") for folder in (whole, found))
    assert all(torch.equal(want[name], got[name]) for name in want | got)
    results = [json.loads((folder / "result.json").read_text())["test"] for folder in (whole, found)]
    assert results[0] == results[1]
    assert json.loads((found / "status.json").read_text()) == {"code": 0, "reason": "done", "step": 4}


# ---- what can happen to a file ----


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def in_place(make: Damage) -> Damage:
    def replace(file: Path) -> None:
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
        make(file)

    return replace


a_folder, a_pipe = in_place(Path.mkdir), in_place(os.mkfifo)
a_dead_link = in_place(lambda file: file.symlink_to("nowhere"))
a_device = in_place(lambda file: file.symlink_to("/dev/zero"))
an_empty_file = in_place(Path.touch)
FILE: dict[str, Damage] = {
    "missing": Path.unlink,
    "empty": an_empty_file,
    "half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "flipped": flip,
    "folder": a_folder,
    "pipe": a_pipe,
    "dead link": a_dead_link,
    "device": a_device,
}


def of(name: str, damage: Damage) -> Damage:
    return lambda folder: damage(folder / name)


def text(words: str | bytes) -> Damage:
    return lambda file: file.write_bytes(words if isinstance(words, bytes) else words.encode())


# ---- what a tool or a stranger can do to a checkpoint and sign again ----


def signed(change: Damage) -> Damage:
    """Changes the newest checkpoint and gives it a manifest that vouches for the change."""

    def damage(folder: Path) -> None:
        change(folder / NEWEST)
        (folder / NEWEST / "manifest.json").unlink()
        _write_manifest(folder / NEWEST, 4)

    return damage


def manifest(**changes: Any) -> Damage:
    """Changes entries of the newest checkpoint's manifest, signed."""

    def damage(folder: Path) -> None:
        file = folder / NEWEST / "manifest.json"
        values = json.loads(file.read_text()) | changes
        values.pop("sha256")
        file.write_text(json.dumps(values | {"sha256": _digest(values)}))

    return damage


def state(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(path: Path) -> None:
        values = torch.load(path / "state.pt", weights_only=True)
        changed = change(values)
        torch.save(values if changed is None else changed, path / "state.pt")

    return signed(damage)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


CONTINUES: dict[str, Damage] = {
    **{
        f"{file}: {name}": of(f"{NEWEST}/{file}", damage)
        for file in ("model.safetensors", "state.pt", "manifest.json")
        for name, damage in FILE.items()
    },
    "signed: state no archive": signed(of("state.pt", text("junk"))),
    "signed: state hostile": signed(lambda path: (path / "state.pt").write_bytes(pickle.dumps(Hostile(), 2))),
    "signed: state a list": state(lambda _: [1, 2]),
    "signed: state without progress": state(lambda values: {k: v for k, v in values.items() if k != "progress"}),
    "signed: state without optimizer": state(lambda values: values.pop("optimizer") and None),
    "signed: optimizer of another network": state(lambda values: values["optimizer"].update(param_groups=[])),
    "signed: progress of a later version": state(lambda values: values["progress"].update(stars=3)),
    "signed: position inside an update": state(lambda values: values.update(position=31)),
    "signed: another update": state(lambda values: values.update(position=24) or values["progress"].update(step=3)),
    "signed: weights no tensors": signed(of("model.safetensors", text("junk"))),
    "signed: weights of another network": signed(lambda path: save_file({"w": torch.ones(2)}, path / FILES[0])),
    "manifest: no files": manifest(files={}),
    "manifest: files a list": manifest(files=["state.pt"]),
    "manifest: format 2": manifest(format=2),
    "manifest: another step": manifest(step=3),
    "manifest: a file outside": manifest(files={"../../result.json": {"size": 1, "sha256": ""}}),
    "manifest: deep": of(f"{NEWEST}/manifest.json", text("[" * 100_000)),
    "newest: empty folder": of(NEWEST, a_folder),
    "newest: a file": of(NEWEST, an_empty_file),
    "newest: a pipe": of(NEWEST, a_pipe),
    "newest: gone": of(NEWEST, shutil.rmtree),
    "newest: a link to an older one": of(NEWEST, in_place(lambda path: path.symlink_to("step-00000003"))),
    "older ones damaged": lambda folder: [a_pipe(file) for file in folder.glob("checkpoints/step-0000000[23]/s*")],
    "half-written folder": of("checkpoints/step-00000004.tmp", lambda path: (path.mkdir(), (path / "x").touch())),
    "half-written file": of("checkpoints/step-00000004.tmp", Path.touch),
    "last: missing": of("checkpoints/last", Path.unlink),
    "last: empty": of("checkpoints/last", an_empty_file),
    "last: junk": of("checkpoints/last", text(b"\xff\0step")),
    "last: older": of("checkpoints/last", text("step-00000003")),
    "last: none that is there": of("checkpoints/last", text("step-00000099")),
    "last: a folder": of("checkpoints/last", a_folder),
    "last: a pipe": of("checkpoints/last", a_pipe),
    "last: a dead link": of("checkpoints/last", a_dead_link),
    "recipe missing": of("recipe.yaml", Path.unlink),
    "metrics: half a line more": lambda folder: append(folder / "metrics.jsonl", b'{"step": 4, "ev'),
    "metrics: lines of a killed evaluation": lambda folder: append(folder / "metrics.jsonl", b'{"step": 4}\n' * 2),
    "ids: lines of another process": lambda folder: append(folder / "ids-0.jsonl", b'{"step": 5, "ids": [1]}\n'),
    "status junk": of("status.json", text(b"\xff{")),
    "status a list": of("status.json", text("[1]")),
    "status missing": of("status.json", Path.unlink),
    "result missing": of("result.json", Path.unlink),
    "temporary files": lambda folder: [
        (folder / name).touch() for name in (".status.json.12.tmp", ".metrics.jsonl.7.tmp", "checkpoints/.last.9.tmp")
    ],
}
FILES = ("model.safetensors", "state.pt")


def append(file: Path, data: bytes) -> None:
    file.write_bytes(file.read_bytes() + data)


def cases(table: dict[str, Any]) -> list[Any]:
    """The table's cases; of those that repeat a kind for another file, the fast tests take one in three."""
    repeats = [name for name in table if re.match(r"(model|manifest)\S+: |.* a (folder|dead link)$", name)]
    slow = set(repeats) - set(repeats[::3])
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), id=name, marks=[pytest.mark.slow] * (name in slow)
        )
        for name, value in table.items()
    ]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", cases(CONTINUES))
def test_a_run_continues_to_what_it_would_have_been(
    again: Callable[..., int],
    whole: Path,
    tmp_path: Path,
    damage: Damage,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert again(damage) == 0
    assert "Traceback" not in "".join(capfd.readouterr())
    assert_as_whole(tmp_path / "run", whole)
    assert not (tmp_path / "executed").exists()


def everything(damage: Damage) -> Damage:
    return lambda folder: [damage(file) for file in folder.glob("checkpoints/step-*/state.pt")]


OTHER = RECIPE.replace("lr: 0.01", "lr: 0.02")
ENDS: dict[str, tuple[Damage, int, str]] = {
    "all damaged": (everything(flip), 5, "none of the 3 checkpoints can be loaded"),
    "all pipes": (everything(a_pipe), 5, "none of the 3 checkpoints can be loaded"),
    "checkpoints a file": (of("checkpoints", an_empty_file), 5, "cannot be written"),
    "checkpoints a pipe": (of("checkpoints", a_pipe), 5, "cannot be written"),
    "checkpoints a dead link": (of("checkpoints", a_dead_link), 5, "cannot be written"),
    "lock a folder": (of(".lock", a_folder), 5, "cannot be written"),
    "lock a dead link": (of(".lock", a_dead_link), 5, "cannot be written"),
    "recipe empty": (of("recipe.yaml", an_empty_file), 2, "continue this run with the version that wrote it"),
    "recipe junk": (of("recipe.yaml", text(b"\xff\xfe\0")), 2, "cannot be read as a recipe"),
    "recipe no YAML": (of("recipe.yaml", text("{")), 2, "not valid YAML"),
    "recipe another": (of("recipe.yaml", text(OTHER)), 2, "optim.lr: is 0.01 but this run was started with 0.02"),
    **{
        f"{name} a {kind}": (of(name, damage), 5, f"{name} is a link, a pipe or a folder")
        for name in ("recipe.yaml", "metrics.jsonl", "ids-0.jsonl", "status.json", "result.json", "errors.log")
        for kind, damage in (("pipe", a_pipe), ("folder", a_folder), ("dead link", a_dead_link))
    },
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("damage", "code", "words"), cases(ENDS))
def test_a_run_that_cannot_continue_ends_with_its_reason(
    again: Callable[..., int], damage: Damage, code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert again(damage) == code
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert words in said


def test_broken_lines_of_a_log_are_dropped_and_the_rest_stays(
    again: Callable[..., int], whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def damage(folder: Path) -> None:
        good = (folder / "metrics.jsonl").read_bytes().splitlines()
        junk = [b"\0\0", b"[1]", b'"text"', b'{"step": "2"}', b'{"epoch": 1}', b"\xff\xfe", b"[" * 100_000]
        mixed = [line for pair in zip(good, junk, strict=False) for line in pair]
        (folder / "metrics.jsonl").write_bytes(b"\n".join([*mixed, *good[len(junk) :]]) + b"\n")

    assert again(damage) == 0
    assert "metrics.jsonl: lines that cannot be read were dropped" in capfd.readouterr().out
    assert [line for line in lines(tmp_path / "run") if line["event"] == "train"] == [
        line for line in lines(whole) if line["event"] == "train"
    ]


def test_a_link_in_place_of_the_lock_does_not_empty_what_it_leads_to(again: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    assert again(of(".lock", in_place(lambda file: file.symlink_to(tmp_path / "precious")))) == 5
    assert (tmp_path / "precious").read_text() == "kept"


def test_what_no_manifest_vouches_for_is_not_loaded(again: Callable[..., int], whole: Path, tmp_path: Path) -> None:
    assert again(of(f"{NEWEST}/ema.safetensors", text("junk"))) == 0
    (tmp_path / "run" / NEWEST / "ema.safetensors").unlink()
    assert_as_whole(tmp_path / "run", whole)
