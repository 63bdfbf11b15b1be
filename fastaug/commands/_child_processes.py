"""Processes that a command starts and waits for. A signal to the command alone ends them too, and it says how."""

import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from types import FrameType, TracebackType

from fastaug.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class ChildProcesses:
    """Context manager; inside it signals are passed on to what `run` has started, and nothing more is started.

    Where one came, it ends with Stopped, also if what was running ended all the same. In another thread than the main
    one, where Python sets no handlers, signals stay what they were.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._reason: str | None = None

    def __enter__(self) -> "ChildProcesses":
        main = threading.current_thread() is threading.main_thread()
        self._previous = {number: signal.signal(number, self._pass_on) for number in (_SIGNALS if main else ())}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python
        if self._reason is not None and kind is None:
            raise self._stopped()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._reason = f"signal {signal.Signals(number).name}"
        for process in tuple(self._running):
            process.send_signal(number)

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Runs a command to its end, from any thread, its output unread.

        Stopped where it saved and stopped, or a signal came; CalledProcessError where it failed otherwise.
        """
        code = self._code_of(command, environment) if self._reason is None else Stopped.code
        if code == Stopped.code or (code and self._reason is not None):
            raise self._stopped()
        if code:
            raise subprocess.CalledProcessError(code, command)

    def _stopped(self) -> Stopped:
        return Stopped(f"{self._reason or 'a run was stopped'}; the same command goes on")

    def _code_of(self, command: Sequence[str], environment: Mapping[str, str] | None) -> int:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as process:
            self._running.add(process)
            if self._reason is not None:  # a signal came before the process was among those running
                process.terminate()
            code = process.wait()
            self._running.discard(process)
        return code
