"""Many byte strings in one block of memory: paths of millions of files take the bytes of their letters and eight more.

Texts in the cache of an index and in shards are kept the same way.
"""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

_STRETCH = 1 << 16  # strings whose offsets are Python's integers at one time


class PathTable(Sequence[bytes]):
    """A list of byte strings in one block: `blob` with `offsets` [N+1] int64; `table[id]` -> bytes, ids in [0, N)."""

    def __init__(self, blob: bytes, offsets: npt.NDArray[np.int64]) -> None:
        self.blob, self.offsets = blob, offsets

    @classmethod
    def of(cls, names: Sequence[bytes]) -> "PathTable":
        """The table of `names`."""
        lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
        return cls(b"".join(names), np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    @classmethod
    def joined(cls, tables: Sequence["PathTable"]) -> "PathTable":
        """The strings of all `tables`, one table after the other."""
        lengths = [np.diff(table.offsets) for table in tables]
        offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths]))
        return cls(b"".join(table.blob for table in tables), offsets)

    def sound(self) -> bool:
        """Whether every string lies inside the block."""
        ends = self.offsets
        if ends.ndim != 1 or not len(ends) or ends.dtype.kind not in "iu":
            return False
        return bool(ends[0] == 0 and ends[-1] == len(self.blob) and (ends[1:] >= ends[:-1]).all())

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, id: int) -> bytes: ...
    @overload
    def __getitem__(self, id: slice) -> "PathTable": ...
    def __getitem__(self, id: int | slice) -> "bytes | PathTable":
        if isinstance(id, slice):
            return PathTable.of([self[i] for i in range(*id.indices(len(self)))])
        if not 0 <= id < len(self):  # a negative id is a mistake, not the other end
            raise IndexError(f"id {id} is outside [0, {len(self)})")
        return self.blob[self.offsets[id] : self.offsets[id + 1]]

    def __iter__(self) -> Iterator[bytes]:
        for first in range(0, len(self), _STRETCH):
            ends = self.offsets[first : first + _STRETCH + 1].tolist()
            yield from map(self.blob.__getitem__, map(slice, ends, ends[1:]))


class Chosen(Sequence[bytes]):
    """The strings `ids` [n] of a table, in that order, without a copy."""

    def __init__(self, table: PathTable, ids: npt.NDArray[np.int64]) -> None:
        self._table, self._ids = table, ids

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, id: int) -> bytes: ...
    @overload
    def __getitem__(self, id: slice) -> "Chosen": ...
    def __getitem__(self, id: int | slice) -> "bytes | Chosen":
        return Chosen(self._table, self._ids[id]) if isinstance(id, slice) else self._table[int(self._ids[id])]


class Places:
    """Where byte strings are in a table, found by their hashes: 16 bytes a string, where a dictionary takes 200."""

    def __init__(self, table: PathTable) -> None:
        hashes = _hashes(table)
        self._table, self._order = table, np.argsort(hashes)
        self._hashes = np.append(hashes[self._order], 0)  # a last one, where what is larger than all is looked for

    def of(self, names: Sequence[bytes]) -> npt.NDArray[np.int64]:
        """The id of each of `names` [n], -1 where the table does not have it: [n] int64."""
        wanted, count = _hashes(names), len(self._order)
        found, at, ascending = np.full(len(names), -1), np.empty(len(names), np.int64), np.argsort(wanted)
        # One after the other in memory: in any order each would be looked for all over it.
        at[ascending] = np.searchsorted(self._hashes[:count], wanted[ascending])
        while len(left := np.flatnonzero((found < 0) & (at < count) & (self._hashes[at] == wanted))):
            ids = self._order[at[left]]
            starts, ends = (self._table.offsets[ids + i].tolist() for i in range(2))
            spans = zip(map(slice, starts, ends), left.tolist(), strict=True)
            same = np.fromiter((self._table.blob[span] == names[i] for span, i in spans), bool, len(left))
            found[left[same]] = ids[same]
            at[left] += 1  # again where others have the same hash
        return found


def _hashes(names: Sequence[bytes]) -> npt.NDArray[np.int64]:
    return np.fromiter(map(hash, names), np.int64, len(names))


def places_in(known: PathTable, wanted: PathTable) -> npt.NDArray[np.int64]:
    """Where each string of `wanted` [N] is in `known`, both sorted: [N] int64, -1 where it is not."""
    if known is wanted or (np.array_equal(known.offsets, wanted.offsets) and known.blob == wanted.blob):
        return np.arange(len(wanted))
    found = np.full(len(wanted), -1)
    others = enumerate(known)
    place, other = next(others, (-1, None))
    for i, name in enumerate(wanted):
        while other is not None and other < name:
            place, other = next(others, (-1, None))
        if other == name:
            found[i] = place
    return found


def text_arrays(texts: dict[str, PathTable]) -> dict[str, Any]:
    """Tables of texts as arrays for np.savez; `texts_of` reads one back."""
    arrays: dict[str, Any] = {name: np.frombuffer(table.blob, dtype=np.uint8) for name, table in texts.items()}
    return arrays | {f"{name}_offsets": table.offsets for name, table in texts.items()}


def texts_of(z: "np.lib.npyio.NpzFile", name: str) -> PathTable:
    """A table of `text_arrays` from an opened file; ValueError when broken."""
    table = PathTable(z[name].tobytes(), z[f"{name}_offsets"])
    if not table.sound():
        raise ValueError(f"the texts {name} lie outside their block")
    return table
