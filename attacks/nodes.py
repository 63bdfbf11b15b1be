"""Trains on several hosts at once, network namespaces of this machine, and takes hosts away while it does.

    python -m attacks.nodes FOLDER --hosts 2 3 --losses 10      # as root, with iproute2: namespaces need CAP_NET_ADMIN

Every host has a network, a name, a cache and a torchrun of its own, as a machine of a cluster has; the run folder and
the images are shared. The job is elastic (`--nnodes 1:N --max-restarts`): when a host is lost, those that are left go
on by themselves from the last checkpoint. Every second host that is lost is cut off from the network first, so that the
others hear nothing of its end. Host 0, where they meet, is not lost here: attacks/node_faults.py does that, and other
things. What came out is compared with one process's run: the ids of every update, as sets, losses, top-1.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NETWORK = "10.77.0"  # of the hosts; the bridge that joins them has no address
CALL = 15  # seconds that hosts wait for more of them; all start at once, so that torchrun's 30 are long
PATIENCE = 1800  # seconds that a run may take; where other work has the cores, a start alone takes minutes
TOLERANCE = 1e-5  # of a loss: sums over other numbers of processes round otherwise
RECIPE = """
data: {img_size: 28, crop: rrc, scale: [0.5, 1.0], threads: 1, test_fraction: 0.3}
model: {name: test_resnet, kwargs: {norm_layer: groupnorm1}}
optim: {opt: adamw, lr: 1e-4, weight_decay: 0.05}
train: {epochs: 10, batch_size: 8}
augment: {hflip: 0.5, shift: 0.2}
eval: {batch_size: 16, every: 0}
run: {log_every: 1, log_ids: true, checkpoint_every: 5, peer_timeout: 20}
"""


def ip(*words: str) -> None:
    """Runs Debian's `ip`; RuntimeError says why it could not."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"ip {' '.join(words)}: {done.stderr.strip()}; hosts are made by root, with iproute2 installed"
        )


@contextmanager
def networked(count: int) -> Iterator[list[str]]:
    """The names of `count` network namespaces that reach each other over a bridge; gone afterwards."""
    mark = f"fa{os.getpid() % 100000}"
    names = [f"{mark}h{number}" for number in range(count)]
    with ExitStack() as undo:
        ip("link", "add", mark, "type", "bridge")
        undo.callback(ip, "link", "del", mark)
        ip("link", "set", mark, "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            undo.callback(ip, "netns", "del", name)
            ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            undo.callback(ip, "link", "del", f"{name}v")  # a namespace is not gone before its last process
            ip("link", "set", f"{name}v", "master", mark, "up")
            ip("-n", name, "addr", "add", f"{NETWORK}.{number + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names


class Host:
    """One host of a job: a torchrun with one worker in a network namespace, and what it prints."""

    def __init__(self, number: int, name: str, job: list[str], folder: Path, run: str) -> None:
        self.number, self.name, self.log = number, name, folder / f"{run}-host{number}.log"
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', f"host{number}"]
        self.command = ["ip", "netns", "exec", name, *named, *job]
        self.cache = folder / f"cache-{number}"
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Boots the host: its torchrun joins the job, or opens it."""
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "eth0"}
        env |= {"FASTAUG_CACHE": str(self.cache), "ACCELERATE_USE_CPU": "true"}
        env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # docs/multinode.md says why
        with open(self.log, "ab") as log:
            return subprocess.Popen(self.command, env=env, stdout=log, stderr=subprocess.STDOUT)

    def members(self) -> list[psutil.Process]:
        """Its processes that still run."""
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def lose(self, *, cut_off: bool = False) -> None:
        """Cuts its power: every process is killed at once; `cut_off`: its network is gone before, for good."""
        if cut_off:
            ip("-n", self.name, "link", "set", "eth0", "down")
        members = self.members()
        for member in members:
            member.kill()
        self.process.wait()
        psutil.wait_procs(members, timeout=30)  # one that was killed has its network and files until it is gone


def make_images(root: Path) -> None:
    """28 small pictures of each of two classes."""
    draw = np.random.default_rng(0)
    for label in range(2):
        (root / f"class{label}").mkdir(parents=True)
        for number in range(28):
            low = draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            image = Image.fromarray(low).resize((48, 40), Image.Resampling.BILINEAR)
            image.save(root / f"class{label}" / f"{number:02}.png")


def lines(file: Path) -> list[dict]:
    """The lines of a file of JSON; none where it is not there yet, and only whole ones."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def steps_of(run: Path) -> int:
    """The last update that is in the log of a run."""
    return max((line["step"] for line in lines(run / "metrics.jsonl") if "loss" in line), default=0)


def ids_by_step(run: Path) -> dict[int, set[int]]:
    """The ids that all processes together trained on in each update."""
    found: dict[int, set[int]] = {}
    for file in sorted(run.glob("ids-*.jsonl")):
        for line in lines(file):
            found.setdefault(line["step"], set()).update(line["ids"])
    return found


def compare(one: Path, many: Path) -> list[str]:
    """What differs between the run of one process and that of several hosts."""
    wrong = []
    if ids_by_step(one) != ids_by_step(many):
        wrong.append("the ids of an update differ")
    losses = [
        {line["step"]: line["loss"] for line in lines(run / "metrics.jsonl") if "loss" in line} for run in (one, many)
    ]
    if losses[0].keys() != losses[1].keys():
        wrong.append(f"{len(losses[1])} updates in the log in place of {len(losses[0])}")
    apart = max(
        (abs(losses[0][step] - losses[1][step]) for step in losses[0].keys() & losses[1].keys()), default=np.inf
    )
    if apart > TOLERANCE:
        wrong.append(f"losses are up to {apart:.1e} apart")
    tops = [json.loads((run / "result.json").read_bytes())["test"]["top1"] for run in (one, many)]
    if tops[0] != tops[1]:
        wrong.append(f"top-1 is {tops[1]} in place of {tops[0]}")
    return wrong


def job(number: int, count: int, identity: str, recipe: Path, run: Path, *keys: str, restarts: int) -> list[str]:
    """The command that every host starts."""
    elastic = ["--nnodes", f"1:{count}", "--nproc-per-node", "1", "--max-restarts", str(restarts)]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{NETWORK}.1:29500", "--rdzv-id", identity]
    # No server knows the hosts' names, by which torchrun would tell who it is and where others find it.
    named = [
        "--local-addr",
        f"{NETWORK}.{number + 1}",
        "--rdzv-conf",
        f"is_host={int(number == 0)},last_call_timeout={CALL}",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", *elastic, *meeting, *named]
    return [*launcher, str(ROOT / "fastaug/train.py"), str(recipe), f"run.dir={run}", *keys]


def one_process(recipe: Path, run: Path, *keys: str) -> Path:
    """The run that the others are compared with."""
    command = [sys.executable, str(ROOT / "fastaug/train.py"), str(recipe), f"run.dir={run}", *keys]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "FASTAUG_CACHE": str(run.parent / "cache")}
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    return run


def trained(
    recipe: Path, run: Path, names: list[str], lost: int | None = None, after: float = 0, *, cut_off: bool = False
) -> list[str]:
    """Trains on all hosts and loses host `lost` `after` seconds after its worker began; what is wrong with the run."""
    hosts = [
        Host(number, name, job(number, len(names), run.name, recipe, run, restarts=10), run.parent, run.name)
        for number, name in enumerate(names)
    ]
    try:
        if lost is not None:
            deadline = time.monotonic() + PATIENCE
            while not (run / "ids-0.jsonl").exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(after)
            step = steps_of(run)
            hosts[lost].lose(cut_off=cut_off)
            how = "cut off and lost" if cut_off else "lost"
            print(f"{run.name}: host {lost} of {len(hosts)} {how} after update {step}", flush=True)
        ends = [host.process.wait(timeout=PATIENCE) for host in hosts if host.number != lost]
    except subprocess.TimeoutExpired:
        return [f"did not end within {PATIENCE} s, at update {steps_of(run)}"]
    finally:
        for host in hosts:
            host.lose()
        for name in names:
            ip("-n", name, "link", "set", "eth0", "up")
    return [f"torchrun ended with {ends}"] if any(ends) else compare(run.parent / "one", run)


def attack(folder: Path, counts: list[int], losses: int, seed: int) -> int:
    """Trains on each number of hosts, then loses one so often; how many runs are wrong."""
    make_images(folder / "images")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("{img_size", f"{{root: {folder / 'images'}, img_size"))
    one_process(recipe, folder / "one")
    draw, wrong = random.Random(seed), 0
    with networked(max(counts)) as names:
        for count in counts:
            whole = trained(recipe, folder / f"whole-{count}", names[:count])
            print(f"{count} hosts: {'; '.join(whole) or 'equal to one process'}", flush=True)
            wrong += bool(whole)
        for number in range(losses):
            lost, after = draw.randrange(1, max(counts)), draw.uniform(0, 4)
            found = trained(recipe, folder / f"lost-{number}", names, lost, after, cut_off=number % 2 == 1)
            print(f"lost-{number}: {'; '.join(found) or 'went on by itself, equal to one process'}", flush=True)
            wrong += bool(found)
    return wrong


def main() -> int:
    """0 when every run is equal to that of one process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where runs are kept; must not be there yet")
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 3], help="numbers of hosts (default 2 3)")
    parser.add_argument("--losses", type=int, default=10, help="runs that lose a host, of the most hosts (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    if shutil.which("ip") is None or os.geteuid():
        parser.error("hosts are network namespaces: start this as root, with iproute2 installed")
    args.folder.mkdir(parents=True)
    wrong = attack(args.folder.resolve(), args.hosts, args.losses, args.seed)
    print(f"{wrong} of {len(args.hosts) + args.losses} runs are wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
