import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastaug.data.sources.materialized import make_once, write_pngs
from fastaug.errors import DataError, StorageError


def fill(folder: Path) -> None:
    (folder / "file").write_text("whole")


def test_it_is_written_once(tmp_path: Path) -> None:
    target = tmp_path / "below" / "set"
    assert make_once(target, fill) == target
    assert make_once(target, lambda _: pytest.fail("written again")) == target
    assert os.listdir(target.parent) == ["set"]
    assert (target / "file").read_text() == "whole"


@pytest.mark.parametrize("error", [DataError("source"), KeyboardInterrupt()])
def test_what_stops_the_writing_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def stops(folder: Path) -> None:
        fill(folder)
        raise error

    with pytest.raises(type(error)):
        make_once(tmp_path / "set", stops)
    assert os.listdir(tmp_path) == []


def test_trouble_of_the_cache_names_the_remedy(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        fill(folder)
        raise OSError("No space left on device")

    with pytest.raises(StorageError, match=r"set cannot be written \(No space left.*FASTAUG_CACHE"):
        make_once(tmp_path / "set", full)
    assert os.listdir(tmp_path) == []


def test_the_first_of_two_wins(tmp_path: Path) -> None:
    def overtaken(folder: Path) -> None:
        make_once(tmp_path / "set", fill)
        (folder / "file").write_text("second")

    assert make_once(tmp_path / "set", overtaken) == tmp_path / "set"
    assert (tmp_path / "set" / "file").read_text() == "whole"
    assert os.listdir(tmp_path) == ["set"]


def test_a_killed_process_leaves_no_set(tmp_path: Path) -> None:
    code = "import os, pathlib, signal, sys; from fastaug.data.sources.materialized import make_once\n"
    code += "def write(folder):\n (folder / 'file').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    code += "make_once(pathlib.Path(sys.argv[1]), write)"
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "set")], check=False)
    assert ended.returncode == -signal.SIGKILL
    (half,) = tmp_path.iterdir()
    os.utime(half / ".being-written", (0, 0))  # long ago
    assert not (tmp_path / "set").exists()
    assert (make_once(tmp_path / "set", fill) / "file").read_text() == "whole"
    assert os.listdir(tmp_path) == ["set"]  # what the killed one had begun is gone


@pytest.mark.parametrize("shape", [(600, 5, 7), (600, 5, 7, 3)])
def test_files_hold_their_pixels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    names = [f"{row % 3}/{row}.png" for row in range(len(pixels))]
    write_pngs(tmp_path, names, pixels, text="", threads=3)
    for name, wanted in zip(names, pixels, strict=True):
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(np.asarray(image), wanted)


def test_an_error_in_a_thread_is_raised_and_ends_the_rest(tmp_path: Path) -> None:
    names = ["0/a.png", *(f"1/{row}.png" for row in range(5000))]
    (tmp_path / "0" / "a.png").mkdir(parents=True)  # cannot be written
    with pytest.raises(IsADirectoryError):
        write_pngs(tmp_path, names, np.zeros((5001, 4, 4), np.uint8), text="", threads=1)
    assert len(os.listdir(tmp_path / "1")) < 5000
