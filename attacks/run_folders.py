"""Damage to run folders between two starts, and what a new start makes of each: it continues, or ends with a reason."""

import json
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
TIMES = ("images_per_second", "wait_share", "epoch_seconds", "peak_memory_mib", "peak_cuda_mib")
NEWEST = "checkpoints/step-00000004"
Damage = Callable[[Path], Any]


def train(recipe: Path, folder: Path, *overrides: str) -> int:
    """Starts a run in this process; its exit code."""
    try:
        return run(read_recipe(recipe, [f"run.dir={folder}", *overrides]))
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a log without times."""
    read = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read]


def content(folder: Path) -> set[str]:
    """The paths of everything in a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def differences(found: Path, whole: Path) -> list[str]:
    """What is not as in the run that nothing happened to: files, lines, weights, figures, status."""
    if content(found) != content(whole):
        return [f"files {sorted(content(found) ^ content(whole))}"]
    different = [name for name in ("metrics.jsonl", "ids-0.jsonl") if lines(found, name) != lines(whole, name)]
    want, got = (load_file(folder / NEWEST / "model.safetensors") for folder in (whole, found))
    if not all(torch.equal(want[name], got[name]) for name in want | got):
        different.append("weights")
    one, other = (json.loads((folder / "result.json").read_text())["test"] for folder in (whole, found))
    if one != other:
        different.append("figures")
    if (found / "checkpoints" / "last").read_text() != "step-00000004":
        different.append("last")
    if json.loads((found / "status.json").read_text()) != {"code": 0, "reason": "done", "step": 4}:
        different.append("status.json")
    return different


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


def with_its_folder(file: Path) -> None:
    file.parent.mkdir()
    file.touch()


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
    "signed: weights of another network": signed(
        lambda path: save_file({"w": torch.ones(2)}, path / "model.safetensors")
    ),
    "manifest: no files": manifest(files={}),
    "manifest: files a list": manifest(files=["state.pt"]),
    "manifest: format 3": manifest(format=3),
    "manifest: another step": manifest(step=3),
    "manifest: a file outside": manifest(files={"../../result.json": {"size": 1, "sha256": ""}}),
    "manifest: deep": of(f"{NEWEST}/manifest.json", text("[" * 100_000)),
    "newest: empty folder": of(NEWEST, a_folder),
    "newest: a file": of(NEWEST, an_empty_file),
    "newest: a pipe": of(NEWEST, a_pipe),
    "newest: gone": of(NEWEST, shutil.rmtree),
    "newest: a link to an older one": of(NEWEST, in_place(lambda path: path.symlink_to("step-00000003"))),
    "older ones damaged": lambda folder: [a_pipe(file) for file in folder.glob("checkpoints/step-0000000[23]/s*")],
    "half-written folder": of("checkpoints/step-00000004.tmp/x", with_its_folder),
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
    "temporary file of the status": of(".status.json.12.tmp", Path.touch),
    "temporary file of the pointer": of("checkpoints/.last.9.tmp", Path.touch),
}


def append(file: Path, data: bytes) -> None:
    file.write_bytes(file.read_bytes() + data)


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


# ---- all of them, each start in a process of its own ----

PATIENCE = 10  # seconds for a start on a machine that does nothing else


def kinds() -> list[str]:
    """The names of all kinds of damage."""
    return [*CONTINUES, *ENDS]


def make_whole(folder: Path) -> Path:
    """A finished run of four updates with the checkpoints of the last three, beside its recipe."""
    (folder / "recipe.yaml").write_text(RECIPE)
    code, said = _start(folder / "recipe.yaml", folder / "run", 10 * PATIENCE)
    if code != 0:
        raise RuntimeError(f"the run to be damaged ended with code {code}: {said}")
    return folder / "run"


def attack(kind: str, whole: Path, folder: Path, patience: float = PATIENCE) -> str:
    """Starts a damaged copy of `whole` in `folder`; what is wrong with the outcome, "" when nothing is.

    A start that has not ended after `patience` seconds hangs.
    """
    damage, code, words = ENDS.get(kind, (CONTINUES.get(kind), 0, ""))
    assert damage is not None
    shutil.copytree(whole, folder / "run")
    damage(folder / "run")
    found, said = _start(whole.parent / "recipe.yaml", folder / "run", patience)
    if found is None:
        return f"no end within {patience} s"
    if "Traceback" in said or found != code or words not in said:
        return f"code {found} instead of {code}: {said[-500:]}"
    if (folder / "executed").exists():
        return "code from the checkpoint was executed"
    different = [] if code else differences(folder / "run", whole)
    return f"not as the run that nothing happened to: {', '.join(different)}" if different else ""


def _start(recipe: Path, folder: Path, patience: float) -> tuple[int | None, str]:
    """Exit code and words of a start; None when it took longer than `patience` seconds and was killed."""
    said = folder.parent / "said.txt"
    process = os.fork()
    if not process:
        code = 70
        try:
            os.chdir(folder.parent)
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            torch.set_num_threads(1)
            code = train(recipe, folder)
        finally:
            sys.stdout.flush()
            os._exit(code)
    hangs = time.monotonic() + patience
    while not (ended := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() > hangs:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None, ""
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1]), said.read_text(errors="replace")
