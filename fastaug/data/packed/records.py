"""Records: one image each in a file of many; what every format of packed sets is read into."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fastaug.data.class_names import shown, some
from fastaug.errors import DataError

OWN_FILE = -1  # in place of the number of a file: the image is a file of its own
SHOWN = 3  # records listed in a message


class Record(NamedTuple):
    """An image's place: `length` bytes from `offset` of file number `file`; OWN_FILE: all of the file `name`.

    `name` is how messages and lists call it, below the set's root and unique in the set; `label` the name of its class,
    None without one; `split` the word of its split, "" for none.
    """

    name: str
    label: str | None
    split: str
    file: int
    offset: int
    length: int


class Container(NamedTuple):
    """A file that holds images: where it is, how records are named after it, the word of its split ("": none)."""

    path: Path
    name: str
    split: str


@dataclass(frozen=True)
class Found:
    """The files of a set, which lies below `root`. `beside`: others that are read too, for names of classes, say."""

    root: Path
    files: tuple[Container, ...]
    beside: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Keys:
    """Where a record's image and label stand, as data.input_key and data.target_key; None: under the usual names.

    `labelled`: whether labels are read at all; without, every record's is None, and what stands there does not matter.
    """

    image: str | None = None
    label: str | None = None
    labelled: bool = field(default=True, repr=False)  # names of cached indices, which all have labels, are made of repr


NO_KEYS = Keys()


@dataclass(frozen=True)
class Contents:
    """The records of a set in the order of its ids; `classes`: as the set declares them in order, None where not.

    `wanted`: where labels were looked for, for messages.
    """

    records: list[Record]
    classes: tuple[str, ...] | None
    wanted: str


def number_or_text(value: object) -> str | None:
    """A label as the name of a class: whole numbers without leading zeros, text without blanks around; None for none.

    ValueError for a value of any other type.
    """
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is neither text nor a whole number")
    text = value.strip()
    return str(int(text)) if text.removeprefix("-").isdecimal() and len(text) < 19 else text or None


def refuse(where: object, names: Iterable[str], what: str, remedy: str) -> None:
    """DataError with the first of the `names` and their count, where there are any."""
    wrong = list(names)
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        first = ", ".join(map(shown, wrong[:SHOWN]))
        raise DataError(f"data.root: {where}: {what}: {first}{more}; {remedy}")


def one_of(where: object, what: str, candidates: Iterable[str], key: str, have: Iterable[str]) -> str:
    """The only one of the `candidates`; DataError for none, or for several."""
    found = list(candidates)
    if len(found) == 1:
        return found[0]
    named = f"more than one {what}: {some(found)}" if found else f"no {what}; it has {some(have) or 'nothing'}"
    raise DataError(f"data.root: {where} has {named}; name the one that is meant in {key}")
