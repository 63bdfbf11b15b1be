"""The processes that keep the others of a job waiting: named while it runs, with host and update.

Every update ends in sums over all processes, so that the slowest sets the pace and one that stands still halts all.
Every process tells in the store where a job's processes meet how far it is and for how long it has worked without the
others; the main process watches all, process 1 watches the main process. Beside training: no collective, no
wait, no draw. On a GPU the host's time is seen, not the device's: a process whose GPU is slow is not told apart.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

from torch.distributed.distributed_c10d import _get_default_store

from fastaug.console import Console

EVERY = 5.0  # seconds between two beats of a process
PATIENCE = 30.0  # seconds without a beat, or behind the others, after which a process is named
SLOW = 0.2  # of the time: what a process takes longer than the others where it is named as slow
ANSWER = 10.0  # seconds in which the store is to answer in the end


class Pulse:
    """How far a process is: updates whose gradient it has come to, and the seconds that it took for itself."""

    def __init__(self) -> None:
        self.updates, self.seconds = 0, 0.0
        self._since = 0.0

    def begin(self) -> None:
        """An update begins."""
        self._since = time.perf_counter()

    def arrive(self, step: int) -> None:
        """Loaded, augmented and forward passes done: from here on update `step` (from 0) waits for the others."""
        self.updates = step + 1
        self.seconds += time.perf_counter() - self._since


@dataclass(frozen=True)
class Beat:
    """What a process told of itself: which beat it is, the update it has come to, the seconds it took for itself."""

    number: int
    updates: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.number} {self.updates} {self.seconds}"

    @staticmethod
    def read(text: str) -> "Beat":
        """The beat that `str` wrote."""
        number, updates, seconds = text.split()
        return Beat(int(number), int(updates), float(seconds))


class Judge:
    """Tells from the beats of several processes which of them is late: a line for every change. Reads no clock."""

    def __init__(self, names: dict[int, str], patience: float = PATIENCE) -> None:
        """`names`: of the processes, by rank; `patience`: seconds."""
        self._names, self._patience = names, patience
        self._last: dict[int, Beat] = {}
        self._heard: dict[int, float] = {}  # when the last beat came
        self._behind: dict[int, float] = {}  # since when others are at a later update
        self._late: set[int] = set()
        self._slow: int | None = None
        self._window: tuple[float, dict[int, Beat]] | None = None  # from which on slowness is measured

    def see(self, beats: dict[int, Beat], now: float) -> list[str]:
        """What is new at `now`, in seconds, when the processes' last beats, by rank, are these."""
        first = max(beat.updates for beat in beats.values())
        for rank, beat in beats.items():
            last = self._last.get(rank)
            if last is None or beat.number != last.number:
                self._heard[rank] = now
            if beat.updates == first or last is None or beat.updates != last.updates:
                self._behind.pop(rank, None)
            if beat.updates < first:
                self._behind.setdefault(rank, now)
        self._last = beats
        standing = [line for rank in beats if (line := self._standing(rank, first, now))]
        return standing + self._slowness(now)

    def _standing(self, rank: int, first: int, now: float) -> str | None:
        """That a process is not heard, or does not go on though others did; that it does again."""
        silent, behind = now - self._heard[rank], now - self._behind.get(rank, now)
        was, is_late = rank in self._late, max(silent, behind) > self._patience
        self._late = self._late | {rank} if is_late else self._late - {rank}
        if was == is_late:
            return None
        if was:
            return f"{self._names[rank]} goes on"
        what = "does not answer" if silent > self._patience else f"does not come to update {first}"
        return f"{self._names[rank]} {what} for {max(silent, behind):.0f} s, after update {self._last[rank].updates}"

    def _slowness(self, now: float) -> list[str]:
        """That another process than before takes much longer for itself than the others."""
        if self._window is None or self._late or len(self._last) < 2:
            begun = all(beat.updates for beat in self._last.values())  # the first update has what is done only once
            self._window = (now, self._last) if begun else None
            return []
        since, before = self._window
        stands = any(beat.updates == before[rank].updates for rank, beat in self._last.items())
        if stands or now - since < self._patience:
            return []
        self._window = now, self._last
        own = {rank: (beat.seconds - before[rank].seconds) / (now - since) for rank, beat in self._last.items()}
        slow = max(own, key=lambda rank: own[rank])
        others = median(share for rank, share in own.items() if rank != slow)
        told, self._slow = self._slow, slow if own[slow] - others >= SLOW else None
        if self._slow is None or self._slow == told:
            return []
        shares = f"take {own[slow]:.0%} of its time and {others:.0%} of the others', who wait for it"
        return [f"{self._names[slow]} is slow: loading and forward pass {shares}"]


class Watch(AbstractContextManager["Watch"]):
    """Tells the others how far this process is, and the screen who is late, while a `with` block runs."""

    def __init__(
        self, pulse: Pulse, hosts: Sequence[str], rank: int, every: float = EVERY, patience: float = PATIENCE
    ) -> None:
        """`hosts`: of the processes, by rank; without a second one nothing is done."""
        names = {other: f"process {other} on {host}" for other, host in enumerate(hosts)}
        self._watched = [*names] if rank == 0 else [0] if rank == 1 else []
        self._pulse, self._rank, self._every, self._beats = pulse, rank, every, 0
        self._judge = Judge(names, patience)
        self._seen = dict.fromkeys(self._watched, Beat(0, 0, 0.0))  # before they have told one
        self._judged = self._seen
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []
        if len(hosts) > 1:
            self._store = _get_default_store().clone()  # of one thread's own: a store serves one at a time
            # Two threads: a store that stands still with process 0 lets nobody go on who asks it, whatever its timeout.
            self._threads = [threading.Thread(target=work, daemon=True) for work in (self._exchange, self._look)]

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(ANSWER)

    def _exchange(self) -> None:
        """Tells this process's beat and reads those of the watched ones, until the end."""
        try:
            while not self._end.wait(self._every):
                self._beats += 1
                self._store.set(_key(self._rank), str(Beat(self._beats, self._pulse.updates, self._pulse.seconds)))
                begun = [rank for rank in self._watched if self._store.check([_key(rank)])]
                told = self._store.multi_get([_key(rank) for rank in begun]) if begun else []
                texts = zip(begun, told, strict=True)
                self._seen = self._seen | {rank: Beat.read(text.decode()) for rank, text in texts}
        except RuntimeError as error:  # of the store; a host that is gone ends the job too, with its own words
            if not self._end.is_set():
                reason = str(error).partition("\n")[0]
                Console(True).print(f"waiting: late processes are no longer named, the store does not answer: {reason}")

    def _look(self) -> None:
        """Says who is late, until the end; the main process where it has heard something new."""
        while not self._end.wait(self._every):
            seen = self._seen
            if self._watched and (seen is not self._judged or self._rank == 1):
                self._judged = seen
                for line in self._judge.see(seen, time.monotonic()):
                    Console(True).print(f"waiting: {line}")


def _key(rank: int) -> str:
    return f"fastaug/beat/{rank}"
