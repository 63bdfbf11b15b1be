"""Types of options that commands share, for argparse, which tells what is wrong with a value before any work."""

import os
from argparse import ArgumentTypeError
from pathlib import Path


def output_file(text: str) -> Path:
    """A file that is to be written."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{path} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise ArgumentTypeError(f"{path} is no regular file; name one, or a new one")
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"there is no folder {path.parent}; make it, or name a file in another one")
    if not os.access(path.parent, os.W_OK):
        raise ArgumentTypeError(f"{path.parent} cannot be written to; name a file in another folder")
    return path


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
