"""Stop requests: SIGTERM, SIGINT and SIGUSR1, and a launcher that died. The loop saves and ends when it sees one."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

import psutil

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PROGRAMS, _MODULES = ("accelerate", "torchrun"), ("accelerate.commands", "torch.distributed")  # launchers


class StopRequest:
    """Context manager; inside it `reason()` says why to stop, or is None.

    Schedulers and launchers both signal, so repeats of a signal change nothing; but a second Ctrl-C, a second or more
    after the first, raises KeyboardInterrupt. In another thread than the main one, where Python sets no handlers,
    signals stay what they were.
    """

    def __init__(self, also: Callable[[], str | None] = lambda: None) -> None:
        """`also`: another reason to stop, or None; asked whenever `reason` is."""
        self._also = also
        self._reason: str | None = None
        self.interrupted = False  # whether Ctrl-C was the reason
        self._since = 0.0
        self._at_once = False
        self._parent = os.getppid()
        self._watch_parent = launcher_name(self._parent) is not None

    def __enter__(self) -> "StopRequest":
        main = threading.current_thread() is threading.main_thread()
        self._previous = {number: signal.signal(number, self._on_signal) for number in (_SIGNALS if main else ())}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._reason is None:
            self._reason, self._since = f"signal {signal.Signals(number).name}", time.monotonic()
            self.interrupted = number == signal.SIGINT
            if not self._at_once:
                print(f"{self._reason}: stopping after this update", file=sys.stderr, flush=True)
        elif number == signal.SIGINT and time.monotonic() - self._since > 1:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self, leave: Callable[[str], NoReturn]) -> Iterator[None]:
        """Inside, a signal has `leave` end the process, with the reason; for a start, which has nothing to save.

        From a thread of its own: Python runs handlers between two of its instructions, and a process that waits in a
        library for others, who may be gone, comes to none. In another thread than the main one nothing changes.
        """
        if not self._previous:
            yield
            return
        ours, written = socket.socketpair()
        written.setblocking(False)
        before, self._at_once = signal.set_wakeup_fd(written.fileno()), True
        watcher = threading.Thread(target=_watch, args=(ours, leave), name="fastaug-signals", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            self._at_once = False
            written.close()  # which ends the watcher
            watcher.join()
            ours.close()

    def reason(self) -> str | None:
        """Why to stop, or None. A launcher that is killed leaves its workers running and unsignalled: it is watched."""
        if self._reason is None and self._watch_parent and os.getppid() != self._parent:
            self._reason = f"the launcher (process {self._parent}) is gone"
        return self._reason or self._also()


def _watch(numbers: socket.socket, leave: Callable[[str], NoReturn]) -> None:
    while number := numbers.recv(1):
        if number[0] in _SIGNALS:
            leave(f"signal {signal.Signals(number[0]).name}")


def launcher_name(pid: int) -> str | None:
    """Which launcher the process `pid` is; None for any other process.

    By the words of its command: the program or the script that Python runs, or the module behind -m.
    """
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        return None
    names = [Path(word).stem for word in words if not word.startswith("-")][:2]
    modules = [word for before, word in pairwise(words) if before == "-m"][:1]
    found = [*(name for name in names if name in _PROGRAMS), *(m for m in modules if m.startswith(_MODULES))]
    return found[0] if found else None
