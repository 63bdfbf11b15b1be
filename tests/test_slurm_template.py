"""The batch script of docs/multinode.md under a scheduler of a few lines of Python: signals, requeue, an equal end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fastaug.commands.same_run import main as same_run

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "multinode.md").read_text()
RECIPE = """
data: {img_size: 20, crop: center, threads: 1, test_fraction: 0.2}
model: {name: test_resnet, kwargs: {norm_layer: groupnorm1}}
train: {epochs: 20, batch_size: 8}
eval: {every: 0}
run: {log_every: 1, log_ids: true}
"""
# A task a node; the signals that it gets go to the tasks, as srun's do.
SRUN = """
import os, signal, subprocess, sys
options = [word for word in sys.argv[1:] if word.startswith("--cpus-per-task=")]
assert sys.argv[1:2] == options == ["--cpus-per-task=64"]
command = sys.argv[2:]
tasks = []
for node in range(int(os.environ["SLURM_NNODES"])):
    own = {"SLURM_PROCID": str(node), "SLURM_NODEID": str(node), "SLURM_STEP_NUM_TASKS": os.environ["SLURM_NNODES"]}
    own["FASTAUG_CACHE"] = os.environ["FASTAUG_CACHE"] + str(node)
    tasks.append(subprocess.Popen(command, env=os.environ | own))
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: [task.send_signal(number) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """
import os, sys
if sys.argv[1:3] == ["show", "hostnames"]:
    print(os.environ["SLURM_JOB_NODELIST"].replace(",", "\\n"))
else:
    with open(os.environ["ASKED"], "a") as asked:
        print(*sys.argv[1:], file=asked)
"""


def batch_script(recipe: Path, run: Path) -> str:
    """That of the page, with another recipe, run folder and port, and a process a node in place of eight."""
    (block,) = (block for block in re.findall(r"(?:^ {4}.*\n|^\n)+", PAGE, re.MULTILINE) if "#SBATCH" in block)
    script = re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    changes = {"--nproc-per-node 8": "--nproc-per-node 1", "imagenet_sa": str(recipe), "/shared/runs/sa": str(run)}
    for old, new in (changes | {"$((20000 + SLURM_JOB_ID % 20000))": str(port)}).items():
        assert old in script
        script = script.replace(old, new)
    return script


class Slurm:
    """Starts the batch script on two nodes, both this machine, and signals as SLURM does."""

    def __init__(self, folder: Path, recipe: Path, run: Path) -> None:
        self.folder, self.recipe, self.run, self.asked = folder, recipe, run, folder / "asked"
        for name, code in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / name).write_text(f"#!{sys.executable}\n{code}")
            (folder / name).chmod(0o755)

    def batch(self) -> "subprocess.Popen[bytes]":
        """The batch script, started."""
        (self.folder / "train.sbatch").write_text(batch_script(self.recipe, self.run))
        path = f"{self.folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        job = {
            "SLURM_JOB_ID": "7",
            "SLURM_NNODES": "2",
            "SLURM_NTASKS": "2",
            "SLURM_CPUS_PER_TASK": "64",
            "SLURM_JOB_NODELIST": "localhost,localhost",
        }
        job |= {"PATH": path, "PYTHONPATH": str(ROOT), "ASKED": str(self.asked), "PET_LOCAL_ADDR": "127.0.0.1"}
        job |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "FASTAUG_CACHE": str(self.folder / "cache")}
        return subprocess.Popen(["bash", self.folder / "train.sbatch"], env=os.environ | job)

    def ends_time(self, batch: "subprocess.Popen[bytes]") -> None:
        """What --signal=B:USR1@... asks for: to the batch shell alone."""
        batch.send_signal(signal.SIGUSR1)

    def preempts(self, batch: "subprocess.Popen[bytes]") -> None:
        """SIGCONT and SIGTERM to every process of the job's step, which SLURM then requeues by itself."""
        for process in psutil.Process(batch.pid).children(recursive=True):
            if "srun" not in " ".join(process.cmdline()[:2]):
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGTERM)


def status(run: Path, name: str = "status.json") -> dict:
    return json.loads((run / name).read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("signalled", "asked"), [(Slurm.ends_time, "requeue 7\n"), (Slurm.preempts, None)])
def test_a_job_that_slurm_ends_saves_on_every_node_and_its_next_life_ends_as_an_undisturbed_run(
    signalled: Callable[..., None],
    asked: str | None,
    tmp_path: Path,
    jpeg_folder: Callable[..., Path],
    in_processes: Callable[..., str],
) -> None:
    recipe, run, whole = tmp_path / "r.yaml", tmp_path / "run", tmp_path / "whole"
    recipe.write_text(RECIPE.replace("{img", f"{{root: {jpeg_folder(images=24)}, img", 1))
    in_processes(2, ROOT / "fastaug" / "train.py", recipe, f"run.dir={whole}")
    slurm = Slurm(tmp_path, recipe, run)
    with slurm.batch() as batch:
        while not (run / "ids-1.jsonl").exists():
            assert batch.poll() is None
            time.sleep(0.02)
        signalled(slurm, batch)
        batch.wait(timeout=120)
    assert [status(run, name)["code"] for name in ("status.json", "status-1.json")] == [75, 75]
    assert 0 < status(run)["step"] == status(run, "status-1.json")["step"] < status(whole)["step"]
    assert (slurm.asked.read_text() if slurm.asked.exists() else None) == asked
    with slurm.batch() as batch:
        assert batch.wait(timeout=240) == 0
    assert status(run)["code"] == 0
    assert (slurm.asked.read_text() if slurm.asked.exists() else None) == asked  # not once more
    assert same_run([str(whole), str(run)]) == 0
