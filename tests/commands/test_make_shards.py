"""The tool as a person starts it, kills it and starts it again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fastaug.data.shards.layout import open_shards

REPO = Path(__file__).resolve().parents[2]


TOOL = REPO / "tools/make_shards.py"
Tool = Callable[..., str]


@pytest.fixture
def tool(tool: Tool) -> Tool:
    """tool(words, code=0): what make_shards.py says."""
    return partial(tool, "make_shards")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_after(shards: int, out: Path, words: list[str], how: signal.Signals) -> None:
    """Starts the tool and ends it as soon as `out` holds that many tar files."""
    started = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.tar"))) < shards and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0005)
    started.send_signal(how)
    assert started.wait(60) == (75 if how == signal.SIGINT else -how)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_goes_on_after_a_kill(
    tmp_path: Path, jpeg_folder: Callable[..., Path], tool: Tool, how: signal.Signals
) -> None:
    root = jpeg_folder(images=100, sizes=(200, 400))
    words = ["--format", "jpeg", "--short-side", "100", "--shard-size", "10", "--workers", "2"]
    out = tmp_path / "killed"
    kill_after(2, out, [sys.executable, str(TOOL), str(root), str(out), *words], how)
    finished = {part.name.removesuffix(".json") for part in (out / "parts").glob("*.json")}
    assert 1 <= len(finished) < 20
    assert not json.loads((out / "shards.json").read_text())["table"]
    (out / ".train-00009.tar.123.tmp").write_bytes(b"half")
    before = {name: (out / name).stat().st_mtime_ns for name in finished}
    tool(root, out, *words)
    assert {name: (out / name).stat().st_mtime_ns for name in finished} == before
    tool(root, tmp_path / "whole", *words)
    assert contents(out) == contents(tmp_path / "whole")


def test_says_what_became_of_every_image_and_checks_it(
    tmp_path: Path, jpeg_folder: Callable[..., Path], tool: Tool
) -> None:
    root = jpeg_folder(images=6, sizes=(40, 80))
    broken = root / "class1/004.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    out = tmp_path / "out"
    said = tool(root, out, "--short-side", 50, "--workers", 1)
    assert f"damaged: {broken}: " in said
    rows = dict(line.replace("│", " ").strip().rsplit(maxsplit=1) for line in said.splitlines() if "│" in line)
    shards = open_shards(out)
    assert (rows["images"], rows["damaged"], rows["of"]) == ("11", "1", "12")
    assert int(rows["resized"]) + int(rows["copied"]) == 11
    assert list(shards.reasons) == [10]
    assert shards.settings.quality == 90
    assert "every shard is as it was written" in tool("--verify", out)
    tar = out / shards.shards[0].name
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    assert f"{tar.name}: its SHA-256 is not the one" in tool("--verify", out, code=3)


def test_takes_what_data_root_takes_and_refuses_shards(
    tmp_path: Path, jpeg_folder: Callable[..., Path], tool: Tool
) -> None:
    out = tmp_path / "out"
    tool(jpeg_folder(), out, "--format", "raw")
    assert "holds shards already; give the folder of the original images" in tool(out, tmp_path / "more", code=3)
    assert "short_side 256, not 100" in tool(tmp_path / "images", out, "--format", "raw", "--short-side", 100, code=3)
    assert "embedded data set 'nothing' is not known" in tool("embedded:nothing", tmp_path / "more", code=3)
    assert not os.path.exists(tmp_path / "more")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give ROOT and OUT, or --verify OUT"),
        (["only-one"], "give ROOT and OUT"),
        (["a", "b", "--verify", "c"], "give ROOT and OUT, or --verify OUT"),
        (["a", "b", "--format", "raw", "--quality", "90"], "quality = 90 with format = raw"),
        (["a", "b", "--quality", "101"], "quality = 101 with format = jpeg: 1 to 100"),
        (["a", "b", "--short-side", "0"], "short_side = 0: must be at least 1"),
        (["a", "b", "--shard-size", "0"], "shard_size = 0: must be at least 1"),
        (["a", "b", "--workers", "0"], "--workers must be at least 1"),
    ],
)
def test_wrong_words_are_refused(tool: Tool, words: list[str], message: str) -> None:
    assert message in tool(*words, code=2)
