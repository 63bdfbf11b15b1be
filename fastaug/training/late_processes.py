"""The processes that keep the others of a job waiting: named while it runs, with host and update.

Every update ends in sums over all processes, so that the slowest sets the pace and one that stands still halts all.
Every process tells in the store where a job's processes meet how far it is, what it does and for how long it has loaded
and augmented; the main process watches all, process 1 watches the main process. Beside training: no collective, no
wait, no draw. What a process does behind its loading, where the others may be waited for, is not timed: one that hangs
or is slow there is not told apart, nor one whose GPU is slow.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from statistics import median

from torch.distributed.distributed_c10d import _get_default_store

from fastaug.console import Console

EVERY = 5.0  # seconds between two beats of a process
PATIENCE = 30.0  # seconds without a beat, or behind the others, after which a process is named
SLOW = 0.2  # of the time: what a process takes longer than the others where it is named as slow
ANSWER = 10.0  # seconds in which the store is to answer in the end
STARTS, LOADS, TRAINS = "starts", "loads and augments", "trains"  # what a process does; others: see Pulse.busy


class Pulse:
    """How far a process is and what it does: images that it has loaded, and the seconds that this took."""

    def __init__(self) -> None:
        self.place = (0, 0)  # updates, and micro-batches of the next one, whose images are loaded and augmented
        self.seconds, self.doing = 0.0, STARTS
        self._since = 0.0

    def begin(self) -> None:
        """A micro-batch is to be loaded."""
        self.doing, self._since = LOADS, time.perf_counter()

    def arrive(self, loaded: int, accumulate: int = 1) -> None:
        """It is augmented: `loaded` since the run began, `accumulate` of them an update. Others may be waited for now.

        Already in the forward pass: DistributedDataParallel takes buffers, as BatchNorm's, from process 0 there.
        """
        self.place, self.doing = divmod(loaded, accumulate), TRAINS
        self.seconds += time.perf_counter() - self._since

    @contextmanager
    def busy(self, doing: str) -> Iterator[None]:
        """Inside, the process does something else than to train, "saves a checkpoint"."""
        self.doing = doing
        try:
            yield
        finally:
            self.doing = TRAINS


@dataclass(frozen=True)
class Beat:
    """What a process told of itself: which beat it is, and what its `Pulse` says."""

    number: int
    updates: int
    seconds: float  # of loading and augmenting
    micro: int = 0  # micro-batches loaded of the update behind `updates`
    doing: str = TRAINS

    @property
    def place(self) -> tuple[int, int]:
        """How far the process is; compares with that of another."""
        return self.updates, self.micro

    def __str__(self) -> str:
        return f"{self.number} {self.updates} {self.seconds} {self.micro} {self.doing}"

    @staticmethod
    def read(text: str) -> "Beat":
        """The beat that `str` wrote."""
        number, updates, seconds, micro, doing = text.split(maxsplit=4)
        return Beat(int(number), int(updates), float(seconds), int(micro), doing)


class Judge:
    """Tells from the beats of several processes which of them is late: a line for every change. Reads no clock."""

    def __init__(self, names: dict[int, str], every: float = EVERY, patience: float = PATIENCE) -> None:
        """`names`: of the processes, by rank; `every`: seconds between two looks; `patience`: seconds."""
        self._names, self._every, self._patience = names, every, patience
        self._looked: float | None = None
        self._last: dict[int, Beat] = {}
        self._heard: dict[int, float] = {}  # when the last beat came
        self._behind: dict[int, float] = {}  # since when others are at a later update
        self._late: set[int] = set()
        self._slow: int | None = None
        self._window: tuple[float, dict[int, Beat]] | None = None  # from which on slowness is measured
        self._window_from = 0.0  # not before that time

    def see(self, beats: dict[int, Beat], now: float) -> list[str]:
        """What is new at `now`, in seconds, when the processes' last beats, by rank, are these."""
        self._forgive(now)
        first = max(beat.place for beat in beats.values())
        for rank, beat in beats.items():
            last = self._last.get(rank)
            if last is None or beat.number != last.number:
                self._heard[rank] = now
            if beat.place == first or last is None or beat.place != last.place:
                self._behind.pop(rank, None)
            if beat.place < first:
                self._behind.setdefault(rank, now)
        self._last = beats
        standing = [line for rank in beats if (line := self._standing(rank, first[0], now))]
        return standing + self._slowness(now)

    def _forgive(self, now: float) -> None:
        """Counts nobody as late for a time in which it was this process that stood still, as all of a paused job do."""
        gap = 0.0 if self._looked is None else now - self._looked
        self._looked = now
        if gap > 3 * self._every:
            self._heard = {rank: since + gap for rank, since in self._heard.items()}
            self._behind = {rank: since + gap for rank, since in self._behind.items()}
            # Others that were paused too count the pause as their own time, when they next tell.
            self._window, self._window_from = None, now + self._patience

    def _standing(self, rank: int, first: int, now: float) -> str | None:
        """That a process is not heard, or does not go on though others did; that it does again."""
        silent, behind = now - self._heard[rank], now - self._behind.get(rank, now)
        was, is_late = rank in self._late, max(silent, behind) > self._patience
        self._late = self._late | {rank} if is_late else self._late - {rank}
        if was == is_late:
            return None
        if was:
            return f"{self._names[rank]} goes on"
        last, answers = self._last[rank], silent <= self._patience
        what = f"does not come to update {max(first, last.updates + 1)}" if answers else "does not answer"
        after = f", after update {last.updates}" if last.updates else ""
        does = f": it {last.doing}" if answers else ""
        return f"{self._names[rank]} {what} for {max(silent, behind):.0f} s{after}{does}"

    def _slowness(self, now: float) -> list[str]:
        """That another process than before takes much longer for itself than the others."""
        if self._window is None or self._late or len(self._last) < 2:
            # The first loading has what is done only once.
            begun = now >= self._window_from and all(beat.seconds for beat in self._last.values())
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
        return [f"{self._names[slow]} is slow: loading and augmenting {shares}"]


class Watch(AbstractContextManager["Watch"]):
    """Tells the others how far this process is, and the screen who is late, while a `with` block runs."""

    def __init__(
        self,
        pulse: Pulse,
        hosts: Sequence[str],
        rank: int,
        console: Console,
        *,
        every: float = EVERY,
        patience: float = PATIENCE,
    ) -> None:
        """`hosts`: of the processes, by rank; without a second one nothing is done. `console`: where it is told."""
        names = {other: f"process {other} on {host}" for other, host in enumerate(hosts)}
        self._watched = [*names] if rank == 0 else [0] if rank == 1 else []
        self._pulse, self._rank, self._console, self._every, self._beats = pulse, rank, console, every, 0
        self._judge = Judge(names, every, patience)
        self._seen = dict.fromkeys(self._watched, Beat(0, 0, 0.0, doing=STARTS))  # before they have told one
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
                self._store.set(_key(self._rank), str(self._beat()))
                begun = [rank for rank in self._watched if self._store.check([_key(rank)])]
                told = self._store.multi_get([_key(rank) for rank in begun]) if begun else []
                texts = zip(begun, told, strict=True)
                self._seen = self._seen | {rank: Beat.read(text.decode()) for rank, text in texts}
        except RuntimeError as error:  # of the store; a host that is gone ends the job too, with its own words
            if self._watched and not self._end.is_set():
                reason = str(error).partition("\n")[0]
                line = f"waiting: late processes are no longer named, the store does not answer: {reason}"
                self._console.print(line)

    def _beat(self) -> Beat:
        """The next one of this process."""
        self._beats += 1
        updates, micro = self._pulse.place
        return Beat(self._beats, updates, self._pulse.seconds, micro, self._pulse.doing)

    def _look(self) -> None:
        """Says who is late, until the end; the main process where it has heard something new."""
        while not self._end.wait(self._every):
            seen = self._seen
            if self._watched and (seen is not self._judged or self._rank == 1):
                self._judged = seen
                for line in self._judge.see(seen, time.monotonic()):
                    self._console.print(f"waiting: {line}")


def _key(rank: int) -> str:
    return f"fastaug/beat/{rank}"
