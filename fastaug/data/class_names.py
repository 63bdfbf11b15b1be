"""Names in messages, and classes matched by name: what a data root calls them against what a network was trained on."""

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fastaug.errors import DataError

SHOWN = 10  # names listed in a message


def shown(name: str) -> str:
    """A name as text for messages; quoted and escaped where the eye would take it for another, or it breaks the line.

    Those are names with blanks at an end or in a row, unprintable characters, and letters composed of several
    characters (as macOS writes them), which look like the letters of one character.
    """
    plain = name.isprintable() and name == " ".join(name.split()) and name == unicodedata.normalize("NFC", name)
    return name if plain else ascii(name)


def some(names: Iterable[str]) -> str:
    """The first names in order, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(shown, names[:SHOWN])) + more


def outputs_of(classes: Sequence[str], trained: Sequence[str]) -> npt.NDArray[np.int64]:
    """For each class of a data root the output of a network trained on the classes `trained`, by name.

    DataError with both lists when the network knows no class of such a name.
    """
    output = {name: place for place, name in enumerate(trained)}
    if unknown := [name for name in classes if name not in output]:
        raise DataError(
            f"data.root: the network was not trained on the classes {some(unknown)}; it knows "
            f"{len(trained)} classes: {some(trained)}; data.root has {len(classes)}: {some(classes)}; "
            "rename the folders as those trained on, or leave the others out"
        )
    return np.array([output[name] for name in classes], dtype=np.int64)
