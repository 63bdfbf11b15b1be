"""The ways a run can end, each with the exit code that scripts and schedulers rely on."""

import errno
import subprocess
import sys
from collections.abc import Callable

EXIT_DONE = 0
# Trouble of the machine, not of the file that was to be read: never taken for damage.
MACHINE = {
    errno.EIO,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
}
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def remedy_of(error: OSError) -> str:
    """What to do when the run folder could not be read or written for this reason, `error`."""
    if error.errno in NO_SPACE:
        return "free space or choose another run.dir"
    return "check the disk and its permissions, or choose another run.dir"


class FastaugError(Exception):
    """An end of a run with an exit code; the message names what, the value found and the remedy. 1: internal error."""

    code = 1


class RecipeError(FastaugError):
    """The recipe cannot be run as written. `problems` holds every one found."""

    code = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(FastaugError):
    """The data cannot be used as they lie on disk."""

    code = 3


class NoImageError(DataError):
    """Not one image of a split can be decoded; every process has found so."""


class NonFiniteError(FastaugError):
    """The loss or the gradient became NaN or infinite."""

    code = 4


class StorageError(FastaugError):
    """The run folder cannot be written, read or locked."""

    code = 5


class PeerError(FastaugError):
    """Another process of the job is missing or does not answer."""

    code = 6


class Stopped(FastaugError):
    """Stopped by a signal, after the state was saved; the same command continues."""

    code = 75


def told(work: Callable[[], int | None]) -> int:
    """The exit code that `work` returns, 0 for none, or that of what it ended with, which is told."""
    try:
        return work() or 0
    except FastaugError as error:
        print(error, file=sys.stderr)
        return error.code
    except subprocess.CalledProcessError as error:
        said = (RecipeError.code, DataError.code, StorageError.code)  # of runs that were refused: they say what to do
        goes_on = "" if error.returncode in said else "; the same command goes on"
        print(f"a run ended with code {error.returncode}{goes_on}: {error}", file=sys.stderr)
        return 1
