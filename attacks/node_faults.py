"""What goes wrong between hosts, one fault after another on two network namespaces: what is said, and how it ends.

    python -m attacks.node_faults FOLDER                        # all of them, as root, with iproute2 and strace
    python -m attacks.node_faults FOLDER --only hung slow

Every fault is a function here that gives what is wrong with what happened; its docstring says what is asked.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from attacks.nodes import (
    PATIENCE,
    RECIPE,
    Host,
    compare,
    job,
    lines,
    make_images,
    networked,
    one_process,
    steps_of,
)

NAMED = 60.0  # seconds within which who keeps the others waiting is to be named
RELAYS = ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
LONG = "train.epochs=5000"  # of a run that is not to come to its end


class Lab:
    """A folder with images, a recipe and two hosts, in which jobs are started."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names = folder, names
        self.recipe = folder / "recipe.yaml"
        make_images(folder / "images")
        self.recipe.write_text(RECIPE.replace("{img_size", f"{{root: {folder / 'images'}, img_size"))

    @contextmanager
    def started(
        self,
        name: str,
        *keys: str,
        restarts: int = 0,
        relays: bool = False,
        other: str | None = None,
        traced: bool = False,
        slow: Sequence[int] = (),
        delay: float = 0.1,
    ) -> Iterator[list[Host]]:
        """Both hosts of a job whose run is `name`, with these keys; gone afterwards.

        `relays`: torchrun passes SIGUSR1 on too; `other`: a key of host 1 alone; `traced`: into opened(name, host);
        `slow`: hosts whose disk takes `delay` seconds to open an image.
        """
        hosts = []
        for number, network in enumerate(self.names):
            own = [other] if other and number == 1 else []
            command = job(number, 2, name, self.recipe, self.run(name), *keys, *own, restarts=restarts)
            command[3:3] = RELAYS if relays else []
            if traced or number in slow:
                command = [*self._strace(name, number, delay if number in slow else 0), *command]
            hosts.append(Host(number, network, command, self.folder, name))
        try:
            yield hosts
        finally:
            for host in hosts:
                host.lose()

    def _strace(self, name: str, number: int, delay: float) -> list[str]:
        """What a host's launcher is started under, to see which files it opens, or to make its disk slow."""
        words = ["strace", "-f", "--seccomp-bpf", "-e", "trace=open,openat", "-o", str(self._trace(name, number))]
        images = [word for path in sorted(self.folder.glob("images/*/*")) for word in ("-P", str(path))]
        return [*words, "-e", f"inject=open,openat:delay_enter={delay * 1e6:.0f}", *images] if delay else words

    def _trace(self, name: str, number: int) -> Path:
        return self.folder / f"{name}-opened-{number}.txt"

    def opened(self, name: str, number: int) -> Counter[str]:
        """How often host `number` of a traced job opened each image."""
        found = re.findall(rf'"{self.folder}/images/([^"/]+/[^"]+)"[^=]*= \d+', self._trace(name, number).read_text())
        return Counter(found)

    def run(self, name: str) -> Path:
        """The run folder of a job."""
        return self.folder / name

    def status(self, name: str) -> dict:
        """status.json of a run; empty before there is one."""
        file = self.run(name) / "status.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def alone(self, name: str, *keys: str) -> Path:
        """The run of one process with these keys, that another one is compared with."""
        return one_process(self.recipe, self.run(name), *keys)


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> float:
    """Waits for a condition; the seconds that it took. TimeoutError where it does not come true."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.05)
    return time.monotonic() - begun


def worker(host: Host) -> psutil.Process:
    """The training process of a host."""
    return next(member for member in host.members() if "-u" in member.cmdline()[:2])


def trains(lab: Lab, name: str, updates: int = 3) -> Callable[[], bool]:
    """Whether a run has trained so many updates."""
    return lambda: steps_of(lab.run(name)) >= updates


def ended(hosts: list[Host], seconds: float = PATIENCE) -> list[int]:
    """Exit codes of the hosts' launchers, which end by themselves."""
    return [host.process.wait(timeout=seconds) for host in hosts]


# ---- who keeps the others waiting ----


def hung(lab: Lab, rank: int = 1) -> list[str]:
    """A process that is stopped (SIGSTOP) is named with its host in 60 s; the job ends with code 6 and that name."""
    name, wrong = f"hung-{rank}", []
    with lab.started(name, LONG, "run.peer_timeout=60") as hosts:
        until(trains(lab, name))
        stopped = worker(hosts[rank])
        stopped.send_signal(signal.SIGSTOP)
        said = f"waiting: process {rank} on host{rank} does not answer for"
        took = until(lambda: any(said in host.log.read_text() for host in hosts))
        wrong += [f"named after {took:.0f} s"] if took > NAMED else []
        file = lab.run(name) / ("status-1.json" if rank == 0 else "status.json")
        ends = took + until(lambda: file.exists() and json.loads(file.read_text())["code"] is not None)
        stopped.kill()
        status = json.loads(file.read_text())
        who = f"process {rank} on host{rank}"
        wrong += [] if status["code"] == 6 and who in status["reason"] else [f"{file.name} is {status}"]
        print(f"{name}: named after {took:.0f} s, code {status['code']} after {ends:.0f} s: {status['reason'][-150:]}")
    return wrong


def hung_main(lab: Lab) -> list[str]:
    """The same of the main process: it is process 1 that tells."""
    return hung(lab, rank=0)


def slow(lab: Lab) -> list[str]:
    """A process whose disk is slow is named with its host, and no other, in 90 s: two windows of 30 s and beats."""
    # Longer for the images of an update than its other work takes where others have the cores: that would hide it.
    with lab.started("slow", LONG, slow=[1], delay=0.4) as hosts:
        until(trains(lab, "slow"))
        log = hosts[0].log
        took = until(lambda: " is slow: " in log.read_text(), 90)
        found = re.findall(r"waiting: (.* is slow: .*)", log.read_text())
    print(f"slow: named after {took:.0f} s: {found[0]}")
    return [] if [line[:18] for line in found] == ["process 1 on host1"] else [f"said {found}"]


# ---- hosts that go and come ----


def back(lab: Lab) -> list[str]:
    """A lost host that comes back is taken in: two processes, one, two, and the end is that of an undisturbed run."""
    epochs = "train.epochs=40"  # 200 updates of eight images: at 0.1 s an image, time to come back
    one = lab.alone("back-one", epochs)
    with lab.started("back", epochs, restarts=10, slow=[0, 1]) as hosts:
        until(trains(lab, "back"))
        hosts[1].lose()
        until(lambda: worlds(lab, "back")[-1:] == [1])
        hosts[1].process = hosts[1].start()
        ends = ended(hosts)
    print(f"back: processes of its starts {worlds(lab, 'back')}, torchruns ended with {ends}")
    wrong = compare(one, lab.run("back"))
    return wrong + ([] if worlds(lab, "back") == [2, 1, 2] else [f"started with {worlds(lab, 'back')} processes"])


def worlds(lab: Lab, name: str) -> list[int]:
    """The number of processes of every start of a run that came to train."""
    return [line["processes"] for line in lines(lab.run(name) / "starts.jsonl")]


def first_lost(lab: Lab) -> list[str]:
    """Without host 0, where they meet, the job ends by itself; the same command on both goes on to an equal end."""
    one = lab.alone("first-one")
    with lab.started("first", restarts=10) as hosts:
        until(trains(lab, "first", 7))
        hosts[0].lose()
        begun = time.monotonic()
        code = hosts[1].process.wait(timeout=PATIENCE)
        print(f"first_lost: host 1's torchrun ended by itself after {time.monotonic() - begun:.0f} s with code {code}")
    with lab.started("first", restarts=10) as hosts:
        ends = ended(hosts)
    wrong = [] if code else ["the other host's torchrun ended as if all was done"]
    return wrong + ([f"the same command ended with {ends}"] if any(ends) else compare(one, lab.run("first")))


# ---- signals ----


def preempted(lab: Lab, number: signal.Signals = signal.SIGTERM) -> list[str]:
    """A signal to one host's torchrun: all save at one update, 75 on every host; the end is the undisturbed one."""
    name, one = f"told-{number.name}", lab.alone(f"one-{number.name}")
    with lab.started(name, relays=number == signal.SIGUSR1) as hosts:
        until(trains(lab, name, 7))
        torchrun_of(hosts[1]).send_signal(number)
        ends = ended(hosts)
    found = [json.loads((lab.run(name) / file).read_text()) for file in ("status.json", "status-1.json")]
    print(f"{name}: torchruns ended with {ends}; {[(end['code'], end['step']) for end in found]}: {found[1]['reason']}")
    wrong = [] if {end["code"] for end in found} == {75} and all(ends) else [f"ended with {found}, {ends}"]
    wrong += [] if found[0]["step"] == found[1]["step"] else ["not at the same update"]
    with lab.started(name, relays=number == signal.SIGUSR1) as hosts:
        ends = ended(hosts)
    return wrong + ([f"the same command ended with {ends}"] if any(ends) else compare(one, lab.run(name)))


def preempted_usr1(lab: Lab) -> list[str]:
    """The same of SIGUSR1, which torchrun passes on where --signals-to-handle names it."""
    return preempted(lab, signal.SIGUSR1)


def torchrun_of(host: Host) -> psutil.Process:
    """The torchrun of a host."""
    return next(member for member in host.members() if "torch.distributed.run" in member.cmdline())


def told_thrice(lab: Lab) -> list[str]:
    """The second SIGTERM leaves torchrun waiting for its process, the third ends it first; that still saves: 75."""
    with lab.started("thrice", LONG) as hosts:
        until(trains(lab, "thrice", 7))
        everyone = [member for host in hosts for member in host.members()]
        first, own, other = torchrun_of(hosts[1]), worker(hosts[1]), worker(hosts[0])
        other.send_signal(signal.SIGSTOP)  # so that the process cannot come to a log line before torchrun has left
        for _ in range(2):
            first.send_signal(signal.SIGTERM)
            time.sleep(3)
        waits = runs(first)
        first.send_signal(signal.SIGTERM)
        took = until(lambda: not runs(first), 15)  # torchrun itself kills its processes after 30 s
        worked_on = runs(own)
        other.send_signal(signal.SIGCONT)
        ends = ended(hosts, 60)
        until(lambda: not any(runs(member) for member in everyone), 60)
    status = [json.loads((lab.run("thrice") / file).read_text()) for file in ("status.json", "status-1.json")]
    print(f"told_thrice: torchrun left after {took:.1f} s, its process still ran: {worked_on}; {ends}; {status}")
    wrong = [] if waits else ["torchrun left at the second signal"]
    wrong += [] if worked_on else ["torchrun left no sooner than its process"]
    return wrong + ([] if {end["code"] for end in status} == {75} else [f"ended with {status}"])


def runs(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that only waits to be collected has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---- starts that do not fit ----


def other_images(lab: Lab) -> list[str]:
    """A host whose folder differs by one image is named before the first update, code 3."""
    shutil.copytree(lab.folder / "images", lab.folder / "other")
    (lab.folder / "other" / "class0" / "00.png").unlink()
    return refused(lab, "other-images", f"data.root={lab.folder / 'other'}", 3, "process 1 has 55 images", "host1")


def other_recipe(lab: Lab) -> list[str]:
    """A host that was started with another key is named before the first update, code 2."""
    expected = "process 1 on host1: optim.lr is 0.5 there and 0.0001 in process 0"
    return refused(lab, "other-recipe", "optim.lr=0.5", 2, expected)


def refused(lab: Lab, name: str, key: str, code: int, *expected: str) -> list[str]:
    """What is wrong with the end of a job, one host of which has `key` besides."""
    with lab.started(name, other=key) as hosts:
        ends = ended(hosts)
    status = lab.status(name)
    print(f"{name}: torchruns ended with {ends}; {status}")
    as_asked = status["code"] == code and status["step"] == 0 and all(ends)
    return [] if as_asked and all(part in status["reason"] for part in expected) else [f"status.json is {status}"]


def shares(lab: Lab) -> list[str]:
    """Every host opens each image once for its index, and then only those that it trains on or evaluates."""
    names, keys = ("shares", "shares-again"), ("train.epochs=1", "eval.every=0", "eval.batch_size=4")
    for cache in lab.folder.glob("cache-*"):
        shutil.rmtree(cache)
    for name in names:  # the second time the index is in every host's cache
        with lab.started(name, *keys, traced=True) as hosts:
            if any(ends := ended(hosts)):
                return [f"{name} ended with {ends}"]
    images = sorted(path.relative_to(lab.folder / "images").as_posix() for path in lab.folder.glob("images/*/*"))
    first, again = ([lab.opened(name, host) for host in range(2)] for name in names)
    wrong, trained = [], [trained_on(lab.run(names[1]), host) for host in range(2)]
    for host in range(2):
        indexed = first[host] - again[host]
        wrong += [] if indexed == Counter(images) else [f"host {host} opened for its index {indexed}"]
        opened = {number for number, image in enumerate(images) if again[host][image]}
        evaluated = opened - trained[0] - trained[1]
        wrong += (
            [] if opened - evaluated == trained[host] else [f"host {host} opened {opened}, trained {trained[host]}"]
        )
        print(
            f"shares: host {host} opened {indexed.total()} files for its index, then {again[host].total()} files, "
            f"{len(trained[host])} of them to train on, {len(evaluated)} to evaluate"
        )
    twice = [image for image in images if again[0][image] and again[1][image]]
    return wrong + ([f"opened by both: {twice}"] if twice else [])


def trained_on(run: Path, rank: int) -> set[int]:
    """The ids that one process trained on."""
    return {number for line in lines(run / f"ids-{rank}.jsonl") for number in line["ids"]}


FAULTS = (
    *(hung, hung_main, slow, back, first_lost, preempted, preempted_usr1, told_thrice),
    *(other_images, other_recipe, shares),
)


def attack(folder: Path, chosen: Sequence[str]) -> int:
    """Tries the faults of these names; how many went otherwise than asked."""
    count = 0
    with networked(2) as names:
        lab = Lab(folder, names)
        for fault in (fault for fault in FAULTS if fault.__name__ in chosen):
            try:
                wrong = fault(lab)
            except (TimeoutError, subprocess.TimeoutExpired) as error:
                wrong = [str(error)]
            print(f"{fault.__name__}: {'; '.join(wrong) or 'as asked'}", flush=True)
            count += bool(wrong)
    return count


def main() -> int:
    """0 when every fault ended as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where runs are kept; must not be there yet")
    names = [fault.__name__ for fault in FAULTS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="FAULT", help=", ".join(names))
    args = parser.parse_args()
    if missing := [name for name in ("ip", "unshare", "strace") if shutil.which(name) is None]:
        parser.error(f"not installed: {', '.join(missing)} (iproute2, util-linux, strace)")
    if os.geteuid():
        parser.error("hosts are network namespaces: start this as root")
    args.folder.mkdir(parents=True)
    count = attack(args.folder.resolve(), args.only)
    print(f"{count} of {len(args.only)} faults ended otherwise than asked")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
