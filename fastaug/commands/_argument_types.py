"""Types of options that commands share, for argparse, which tells what is wrong with a value before any work."""

import os
from argparse import ArgumentTypeError
from pathlib import Path


def output_file(text: str) -> Path:
    """A file that is to be written."""
    path = Path(text)
    try:
        if problem := _unwritable(path):
            raise ArgumentTypeError(problem)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise ArgumentTypeError(f"{path} cannot be written: {error.strerror}; name another file") from None
    return path


def _unwritable(path: Path) -> str | None:
    """Why a file cannot be written, and the remedy."""
    if path.is_dir():
        return f"{path} is a folder; name a file in it"
    if path.exists() and not path.is_file():
        return f"{path} is a device or a pipe; name a file"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}; make it, or name a file in another one"
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        return f"{path} cannot be written to; name another file"
    return None


def one_or_more(text: str) -> int:
    """A whole number from 1 on."""
    return _at_least(1, text)


def zero_or_more(text: str) -> int:
    """A whole number from 0 on."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < least:
        raise ArgumentTypeError(f"must be at least {least}, found {value}")
    return value
