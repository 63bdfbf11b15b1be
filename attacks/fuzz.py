"""Changes files that a stranger may have written, at random, and reads them.

`python -m attacks.fuzz FOLDER TARGET [N] [SEED]` works in an empty folder.

Each of N tries changes sound files (fuzzed_texts.py, fuzzed_files.py) by a few edits that hypothesis draws, and makes
fewer and smaller where a try fails. A try passes when every reader gives something, or refuses by an error of its own,
in words. What does not pass: another exception, 10 seconds of processor time, the death of the process, and what
reading never needs, also where the reader goes on as if nothing were: another process, a connection, a pickle's call,
something made, changed or removed elsewhere. More than a GiB of further memory is not given, and a reader may take that
for a reason to refuse. Exit code 1 and the edits where one does not pass.
"""

import io
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from attacks.fuzzed_files import FILES
from attacks.fuzzed_texts import TEXTS
from attacks.target import Target

ROOT = Path(__file__).resolve().parents[1]
MEMORY, PATIENCE = 2**30, 10  # bytes beyond what the process has; seconds of processor time for a try
MOST_EDITS, LONGEST = 4, 3600  # of a try; seconds for all tries of a target
CASE = "case.txt"  # the edits of the try that runs, for who has to tell of its death
_NEVER = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Events that change a folder: the places of a path among what they are given, and of the folder that it is relative to.
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, None),),
    "os.rename": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.link": ((1, 3),),
}

# ---- edits: (kind, file, place, content), file and place modulo how many there are ----

Edit = tuple[str, int, int, Any]
NUMBERS = [
    struct.pack(f"{order}{kind}", value % 2 ** (8 * struct.calcsize(kind)))
    for value in (0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
    for order, kind in ("<H", "<I", ">I", "<Q")
]
WORDS = [
    *("\0", "\n", "\r", "\t", '"', "'", ",", ";", "|", "/", "..", "\\", "=", ":", "- ", "#", " ", "\ufeff", "[", "]"),
    *("{", "}", "[" * 99, "{a: " * 30, "&a ", "*a", "<<: ", "!!python/object/apply:os.mkdir [x]", "%YAML 1.1\n"),
    *("null", "true", "-1", "--1", "1e999", ".nan", "NaN", "0x1f", "9" * 5000, "1_0", "١", "${data.root}", "???"),
]
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 1, 2**31, 2**64, 1e308, "", "..", "/dev/zero", "\0", "x", [], {}, [[]], [None]]
    ),
    st.text(max_size=5),
)
PLACES = st.one_of(st.integers(0, 400), st.integers(0, 2**24))
EDITS = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 99), PLACES, st.one_of(st.binary(max_size=4), st.sampled_from(NUMBERS))),
    st.tuples(st.just("put"), st.integers(0, 99), PLACES, st.sampled_from(WORDS).map(str.encode)),
    st.tuples(st.just("put"), st.integers(0, 99), PLACES, st.binary(max_size=4)),
    st.tuples(st.just("drop"), st.integers(0, 99), PLACES, st.integers(1, 64)),
    st.tuples(st.just("again"), st.integers(0, 99), PLACES, st.integers(1, 64)),
    st.tuples(st.just("cut"), st.integers(0, 99), PLACES, st.none()),
    st.tuples(st.just("value"), st.integers(0, 99), PLACES, VALUES),
)
_ON_BYTES: dict[str, Callable[[bytes, int, Any], bytes]] = {
    "set": lambda content, at, new: content[:at] + new + content[at + len(new) :],
    "put": lambda content, at, new: content[:at] + new + content[at:],
    "drop": lambda content, at, count: content[:at] + content[at + count :],
    "again": lambda content, at, count: content[: at + count] + content[at:],
    "cut": lambda content, at, _: content[:at],
}


def edited(content: bytes, kind: str, place: int, new: Any) -> bytes:
    """A file after an edit; a "value" is one of a JSON file's, and where the file is none, nothing is done."""
    if kind != "value":
        return _ON_BYTES[kind](content, place % (len(content) + 1), new)
    try:
        document = {"": json.loads(content)}
    except (ValueError, RecursionError):
        return content
    places = list(_places(document))
    holder, name = places[place % len(places)]
    holder[name] = new
    return json.dumps(document[""]).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON document with each of its keys or numbers."""
    pairs = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for name, inner in pairs:
        yield value, name
        yield from _places(inner)


# ---- a try ----


class Guard:
    """Ends this process when a try works for long, refuses it memory, and what reading never needs.

    The last is kept in `seen` too, for a reader may catch what is raised. Python has no way to take a hook off again:
    one guard stands for all tries.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._folder = ""
        sys.addaudithook(self._see)

    @contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        """Guards what is inside, which may write below `folder`."""
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_size() + MEMORY, limits[1]))
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)  # SIGPROF ends the process, whatever library it is in
        self.seen.clear()
        self._folder = os.path.realpath(folder)
        try:
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
        finally:
            self._folder = ""
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_AS, limits)

    def _see(self, event: str, given: tuple[Any, ...]) -> None:
        if not self._folder:
            return
        if event in _NEVER:
            self._refuse(f"{event} {given!r:.200}")
        for path, base in _changed(event, given):
            place = _place(path, base)
            if place != os.devnull and not place.startswith(self._folder + os.sep):
                self._refuse(f"{event} changes {place}")

    def _refuse(self, what: str) -> None:
        self.seen.append(what)
        raise AssertionError(what)


def _changed(event: str, given: tuple[Any, ...]) -> list[tuple[Any, int]]:
    """The paths that an event changes, each with the descriptor of the folder that it is relative to, or -1."""
    if event == "open":
        found = [(given[0], -1)] if isinstance(given[2], int) and given[2] & _WRITES else []
    else:
        found = [(given[at], -1 if base is None else given[base]) for at, base in _CHANGES.get(event, ())]
    return [(path, base) for path, base in found if not isinstance(path, int)]


def _place(path: Any, base: int) -> str:
    """Where a path leads, its last part not followed if it is a link."""
    top = os.getcwd() if base == -1 else os.readlink(f"/proc/self/fd/{base}")
    head, name = os.path.split(os.path.join(top, os.fsdecode(path)))
    return os.path.abspath(os.path.join(os.path.realpath(head), name))


def _size() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def problem(target: Target, sound: Path, edits: list[Edit], folder: Path, guard: Guard) -> str:
    """What is wrong with how the readers take `sound` after the edits, tried in `folder`; "" when nothing is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    before = {file: file.read_bytes() for file in files}
    for kind, number, place, new in edits:
        file = files[number % len(files)]
        file.write_bytes(edited(file.read_bytes(), kind, place, new))
    changed = [
        file.name for file in files if target.exact and file.match(target.exact) and file.read_bytes() != before[file]
    ]
    target.seal(folder)
    refused = False
    for name, reader in target.readers.items():
        try:
            with guard.over(folder):
                reader(folder)
        except target.errors as error:
            refused = True
            if not edits or not str(error).strip():
                return f"{name} is refused: {error}"
        except Exception:
            return f"{name}: {traceback.format_exc()[-1500:]}"
        if guard.seen:
            return f"{name}, and goes on: {guard.seen[0]}"
    return "" if refused or not changed else f"a change of {', '.join(changed)} is not noticed"


def search(name: str, tries: int, seed: int, folder: Path) -> str:
    """Tries in this process; the smallest try found that does not pass, and why, "" without one."""
    target, guard, found = TARGETS[name], Guard(), [""]
    os.environ["FASTAUG_CACHE"] = str(folder / "tried" / "cache")
    (folder / "sound").mkdir()
    target.write(folder / "sound")
    if wrong := problem(target, folder / "sound", [], folder / "tried", guard):
        return f"nothing was changed, and yet {wrong}"

    @seeded(seed)
    @settings(max_examples=tries, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(EDITS, min_size=1, max_size=MOST_EDITS))
    def attempt(edits: list[Edit]) -> None:
        (folder / CASE).write_text(repr(edits))
        found[0] = problem(target, folder / "sound", edits, folder / "tried", guard)
        assert not found[0]

    try:
        attempt()
    except AssertionError:
        return f"{(folder / CASE).read_text()}\n{found[0]}"
    return ""


TARGETS: dict[str, Target] = TEXTS | FILES


def attack(name: str, tries: int, seed: int = 0) -> str:
    """`search` in a process of its own; what is wrong, "" when nothing is."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "attacks.fuzz", folder, name, str(tries), str(seed)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, check=False, cwd=ROOT)
        except subprocess.TimeoutExpired:
            return f"no end within {LONGEST} s, in {(Path(folder) / CASE).read_text()}"
        if ended.returncode < 0:
            return f"{signal.Signals(-ended.returncode).name} in {(Path(folder) / CASE).read_text()}"
        return "" if ended.returncode == 0 else (ended.stdout + ended.stderr).strip()[-3000:]


def main(words: list[str]) -> int:
    """The command."""
    folder, name, *numbers = words
    tries, seed = [int(number) for number in numbers] + [1000, 0][len(numbers) :]
    if found := search(name, tries, seed, Path(folder)):
        print(found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
