"""The header pass over a large set: rows that are known are taken over, others read, and a kill costs seconds of it.

A pass that lasts keeps what it has read: every `SECONDS` it writes the rows read since as a file of their own, beside
the cache. A pass over the same files that finds such parts takes over their rows, as far as no file was changed since.
Who has the whole index in the cache removes them.
"""

import hashlib
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastaug.atomic_files import write_atomically
from fastaug.data.broken_arrays import BROKEN, open_npz
from fastaug.data.file_stamps import Stamps
from fastaug.data.image_headers import HeaderTable, Status, screen_all
from fastaug.data.path_table import Chosen, PathTable, text_arrays, texts_of

SECONDS = 10.0  # between two parts
_AT_ONCE = 1024  # rows between two looks at the clock
_COLUMNS = ("heights", "widths", "status")

Ids = npt.NDArray[np.int64]


class Known(NamedTuple):
    """Headers of n files read earlier, and the stamps [n, 3] that these had."""

    headers: HeaderTable
    stamps: Stamps

    def of(self, rows: Ids) -> "Known":
        """What is known of `rows` [m] alone, in their order."""
        columns = {name: getattr(self.headers, name)[rows] for name in _COLUMNS}
        damaged = np.flatnonzero(columns["status"] == Status.DAMAGED).tolist()
        reasons = {place: self.headers.reasons[int(rows[place])] for place in damaged}
        return Known(HeaderTable(**columns, reasons=reasons), self.stamps[rows])


class HeaderPass:
    """The headers of the files `paths`, whose `stamps` [N, 3] were taken just now, filled in from what is known first.

    `headers` [N]; `unread` [N]: of which there is none yet.
    """

    def __init__(self, paths: PathTable, stamps: Stamps) -> None:
        self.paths, self.stamps = paths, stamps
        self.headers = HeaderTable.empty(len(paths))
        self.unread = np.ones(len(paths), dtype=bool)

    def take(self, rows: Ids, known: Known) -> Ids:
        """Fills in `rows` [n] from what is known of them; leaves and returns those whose files were changed since."""
        changed = changed_since(known, self.stamps[rows])
        same = ~changed
        for name in _COLUMNS:
            getattr(self.headers, name)[rows[same]] = getattr(known.headers, name)[same]
        self.headers.reasons.update(
            {int(rows[row]): reason for row, reason in known.headers.reasons.items() if same[row]}
        )
        self.unread[rows[same]] = False
        return rows[changed]

    def read(self, top: bytes, exif: str, threads: int, progress: str, channels: int, parts: "HeaderParts") -> None:
        """Reads what is unread below the folder `top`, and has it kept in `parts` from time to time."""
        rows = np.flatnonzero(self.unread)
        paths = self.paths if len(rows) == len(self.paths) else Chosen(self.paths, rows)
        first, written = 0, time.monotonic()
        for at, header in enumerate(screen_all(top, paths, exif, threads, progress, channels)):
            if at % _AT_ONCE == 0 and at > first and time.monotonic() - written > SECONDS:
                done = rows[first:at]
                parts.write(done, Known(self.headers, self.stamps).of(done))
                first, written = at, time.monotonic()
            self.headers.put(int(rows[at]), header)


def changed_since(known: Known, stamps: Stamps) -> npt.NDArray[np.bool_]:
    """Which of n files have other `stamps` now. Of a damaged one all count: its access may have been repaired."""
    changed: npt.NDArray[np.bool_] = (stamps[:, :2] != known.stamps[:, :2]).any(axis=1)
    damaged = np.flatnonzero(known.headers.status == Status.DAMAGED)
    changed[damaged] |= stamps[damaged, 2] != known.stamps[damaged, 2]
    return changed


class HeaderParts:
    """The parts of a pass over the files `paths` in a `folder`, which need not exist; `version`: of what rows mean.

    Parts of other files or another version are of no use and removed. They are a convenience: where none can be
    written, the pass goes on without.
    """

    def __init__(self, folder: Path, paths: PathTable, version: int) -> None:
        self.folder = folder
        digest = hashlib.sha256(version.to_bytes(4))
        digest.update(paths.offsets.tobytes())
        digest.update(paths.blob)
        self._of = digest.hexdigest()

    def write(self, rows: Ids, known: Known) -> None:
        """Keeps what was read of `rows`, as a file that is whole or not there."""
        arrays = {name: getattr(known.headers, name) for name in _COLUMNS} | {"rows": rows, "stamps": known.stamps}
        texts = PathTable.of([reason.encode(errors="replace") for reason in known.headers.reasons.values()])
        out = BytesIO()
        np.savez(out, **arrays, **text_arrays({"reasons": texts}), of=np.array(self._of))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / f"{os.getpid()}-{secrets.token_hex(8)}.npz", out.getvalue())
        except FileNotFoundError:
            return  # removed just now by another run, which has the whole index
        except OSError as error:  # its reason alone, without the file's name: one warning for all parts
            reason = f"what was read of the images cannot be kept ({error.strerror})"
            warnings.warn(f"{self.folder}: {reason}; make room in FASTAUG_CACHE", stacklevel=2)

    def load(self) -> Iterator[tuple[Ids, Known]]:
        """The rows of each part, and what is known of them; damaged parts are named and removed."""
        for file in sorted(self.folder.glob("*.npz")):
            try:
                with open_npz(file) as z:
                    part = self._part(z)
            except FileNotFoundError:
                continue  # removed just now by another run, which has the whole index
            except BROKEN as error:
                warnings.warn(f"{file} is damaged ({error}); what it held of the index is read again", stacklevel=2)
                part = None
            if part is None:
                with suppress(OSError):  # the cache of another user, perhaps
                    file.unlink()
            else:
                yield part

    def _part(self, z: "np.lib.npyio.NpzFile") -> tuple[Ids, Known] | None:
        """The rows of an opened part; None where it is of other files."""
        if str(z["of"]) != self._of:
            return None
        columns = {name: z[name] for name in _COLUMNS}
        damaged = np.flatnonzero(columns["status"] == Status.DAMAGED).tolist()
        reasons = (text.decode() for text in texts_of(z, "reasons"))
        headers = HeaderTable(**columns, reasons=dict(zip(damaged, reasons, strict=True)))
        return z["rows"], Known(headers, z["stamps"])


def remove_parts(folder: Path) -> None:
    """Removes all parts in `folder`: the index is whole."""
    shutil.rmtree(folder, ignore_errors=True)
