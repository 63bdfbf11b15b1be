"""Files that a kill at any moment leaves whole or as they were, and reading that never waits for a named pipe."""

import errno
import hashlib
import os
import re
import shutil
import stat
from io import BufferedReader
from pathlib import Path
from typing import TypedDict


class Entry(TypedDict):
    """What a manifest says of a file: its size in bytes, and its SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `path` whole or not at all, through a synced temporary file beside it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # gone already after the rename
    sync_folder(path.parent)


def synced_entry(path: Path) -> Entry:
    """Makes the contents of a file durable; size and SHA-256."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> BufferedReader:
    """Opens a file for reading; OSError for anything else at `path`: a named pipe would keep the reader for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def remove(path: Path) -> None:
    """Removes what is at `path`, a file, a link or a whole folder; nothing to do when there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that killed calls of `write_atomically` left in `folder`."""
    for path in folder.iterdir():
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name) and not path.is_dir():
            path.unlink(missing_ok=True)
