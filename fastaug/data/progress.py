"""A progress bar on the standard error for what is done before a run has its screen."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def tracked(items: Iterable[Item], text: str, total: int) -> Iterator[Item]:
    """The `total` items, under a bar of this `text`; "" for none."""
    if not text:
        return iter(items)
    from rich.console import Console
    from rich.progress import track

    return iter(track(items, text, total=total, console=Console(stderr=True)))
