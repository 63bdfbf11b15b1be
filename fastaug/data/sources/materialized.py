"""Folders of PNG files made once in the cache: complete or absent, whatever stops or races with the writing."""

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastaug.errors import StorageError

_YOUNG = 60  # seconds
_LOCK = ".being-written"  # a file that who fills a folder holds locked
_CHUNK = 256  # pictures a thread takes at once


def make_once(target: Path, write: Callable[[Path], None]) -> Path:
    """`target`, a folder filled by `write(temporary folder)` when absent; StorageError when it cannot be.

    It appears complete or not at all: written beside its place, then renamed; the first process wins. An OSError of
    `write` counts as trouble of the cache: trouble of the source has to come as DataError.
    """
    if target.is_dir():
        return target
    temporary = target.with_name(f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}")
    lock = temporary / _LOCK
    try:
        _remove_abandoned(target)
        temporary.mkdir(parents=True)
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            write(temporary)
            lock.unlink()
            temporary.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process came first
            raise StorageError(
                f"{target} cannot be written ({error}); set FASTAUG_CACHE to a folder with room"
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already after the rename
    return target


def _remove_abandoned(target: Path) -> None:
    """Removes what processes that were killed left beside `target`: nobody holds its lock any more."""
    for lock in target.parent.glob(f".{target.name}-*/{_LOCK}"):
        try:
            if time.time() - lock.stat().st_mtime < _YOUNG:
                continue  # who has made the file may not hold it yet
            with lock.open("r+") as free:  # never made anew: a folder that has none may be whole
                fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:
            continue  # it is being written, or another process removes it


def write_pngs(
    folder: Path,
    names: Sequence[str],
    pixels: npt.NDArray[np.uint8],
    *,
    text: str,
    threads: int = 8,
    progress: bool = False,
) -> None:
    """pixels[i] of [N, H, W] (grey) or [N, H, W, 3] (RGB) as the PNG file folder/names[i]; `text` labels the bar."""
    from PIL import Image
    from rich.console import Console
    from rich.progress import track

    Image.init()  # loads Pillow's formats once, before the threads would race for it
    for parent in sorted({os.path.dirname(name) for name in names}):
        (folder / parent).mkdir(parents=True, exist_ok=True)

    def chunk(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(names))):
            # Pictures this small fill one block of the disk at every level; level 1 is the fastest.
            Image.fromarray(pixels[i]).save(os.path.join(folder, names[i]), compress_level=1)

    starts = range(0, len(names), _CHUNK)
    pool = ThreadPoolExecutor(threads)
    try:
        done = pool.map(chunk, starts)
        for _ in track(done, text, total=len(starts), console=Console(stderr=True)) if progress else done:
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C the rest is not written
