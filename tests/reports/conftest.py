"""Run folders made of files alone, and a browser that opens pages."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from fastaug.evaluation.sample_file import FILE, FORMAT, KINDS
from fastaug.recipe.schema import SCHEMA

MakeRun = Callable[..., Path]


class Opened(NamedTuple):
    """What a script returned in an opened page, and the lines of the browser's console."""

    said: Any
    console: list[str]


@pytest.fixture
def browser(tmp_path: Path) -> Callable[..., Opened]:
    """browser(page, script, width=0, dark=False): opens a page and evaluates `script` in it, an expression.

    The page's policy, which lets no other script run, is taken out for it; script "" leaves the page as it is. width:
    of the window in pixels, by a frame, as a window cannot be that narrow.
    """
    if shutil.which("chromium") is None:
        pytest.skip("needs the browser chromium (apt-get install chromium)")

    def start(page: bytes, script: str = "", width: int = 0, dark: bool = False) -> Opened:
        text = page.decode()
        if script:
            text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
            say = f"top.document.title = 'SAID' + encodeURIComponent(JSON.stringify({script}))"
            text = text.replace("</body>", f"<script>{say}</script></body>")
        if width:
            frame = f'<iframe width="{width}" height="800" style="border:0" srcdoc="{html.escape(text)}"></iframe>'
            text = f"<!doctype html><title>.</title><body style='margin:0'>{frame}</body>"
        file = tmp_path / "opened.html"
        file.write_text(text)
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
        command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--enable-logging=stderr"]
        done = subprocess.run([*command, "--dump-dom", f"file://{file}"], check=True, capture_output=True, timeout=200)
        found = re.search(r"<title>SAID(.*?)</title>", done.stdout.decode())
        console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
        return Opened(json.loads(unquoted(found[1])) if found else None, console)

    return start


def unquoted(text: str) -> str:
    """What encodeURIComponent made of a text, undone."""
    from urllib.parse import unquote

    return unquote(html.unescape(text))


@pytest.fixture
def made_run(tmp_path: Path) -> MakeRun:
    """made_run(name, *overrides, classes=3, top1=0.5): the folder of an ended run, made of files without a training."""

    def make(name: str, *overrides: str, classes: int = 3, top1: float = 0.5) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(recipe_text(overrides))
        names = [f"class{i}" for i in range(classes)]
        write(folder, "classes", {"classes": names})
        write(folder, "status", {"code": 0, "reason": "done", "step": 20})
        write(folder, "result", result(names, top1))
        lines = [train_line(step) for step in range(5, 25, 5)]
        lines += [{"event": "select", "step": s, "epoch": s / 10, "top1": s / 40} for s in (10, 20)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        np.savez(folder / FILE, format=FORMAT, **statistics(classes))
        return folder

    return make


def recipe_text(overrides: tuple[str, ...]) -> str:
    """A recipe of few keys, which is read far faster than a resolved one."""
    sections: dict[str, list[str]] = {"data": ["root: /nowhere", "test_fraction: 0.5"]}
    for key, _, value in (override.partition("=") for override in overrides):
        section, _, name = key.partition(".")
        sections.setdefault(section, []).append(f"{name}: {value}")
    lines = (f"{section}: {{{', '.join(keys)}}}\n" for section, keys in sections.items())
    return "".join([f"schema: {SCHEMA}\n", *lines])


def write(folder: Path, name: str, values: Any) -> None:
    """A JSON file of a run folder."""
    (folder / f"{name}.json").write_text(json.dumps(values))


def train_line(step: int) -> dict[str, Any]:
    """A log line of training."""
    return {"event": "train", "step": step, "epoch": step / 10, "loss": 2 / step, "lr": 0.1, "images_per_second": 50.0}


def result(names: list[str], top1: float) -> dict[str, Any]:
    """A result.json of 10 images a class, in which each class is taken for itself and the next."""
    right = round(10 * top1)
    row = {"images": 10, "predicted": 10, "precision": top1, "recall": top1, "f1": top1}
    pairs = list(zip(names, names[1:] + names[:1], strict=True))
    test = {
        **{"top1": top1, "top5": 1.0, "nll": 1 - top1, "ece": 0.1, "ece_bins": 10, "images": 10 * len(names)},
        "weights": "raw",
        "classes": [{"class": name} | row for name in names],
        "confusion": {a: {a: right, b: 10 - right} for a, b in pairs},
        "confused": [{"class": a, "taken_for": b, "images": 10 - right, "share": 1 - top1} for a, b in pairs],
    }
    about = {"device": "cpu", "processes": 1, "train_seconds": 65.0, "images_per_second": 50.0, "commit": "a" * 40}
    return {"test": test, "select": None, "versions": {"torch": "2.9"}, **about}


def statistics(classes: int) -> dict[str, Any]:
    """The columns of samples.npz: 10 training and 10 test images a class, of which every fifth is mistaken."""
    size = 20 * classes
    draw, labels = np.random.default_rng(0), np.arange(size) % classes
    wrong = np.arange(size) % 5 == 0
    given = np.where(wrong, draw.uniform(0, 0.4, size), draw.uniform(0.5, 1, size))
    values = {"id": np.arange(size), "split": np.repeat([0, 2], size // 2), "given": labels, "trained": labels}
    values |= {"probability": given, "other": (labels + 1) % classes, "other_probability": 0.99 - given}
    values |= {"margin": given, "cross_entropy": -np.log(given + 1e-9), "forgotten": wrong, "visits": np.ones(size)}
    return {name: column.astype(KINDS[name]) for name, column in values.items()}
