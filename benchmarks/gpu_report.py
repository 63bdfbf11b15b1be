"""Runs everything that needs a GPU and writes one report: the checks of `pytest -m gpu`, op bandwidth beside a copy,
loader and training step in float32 and bf16.

Exit codes: 0 all gates hold; 1 a gate is missed; 77 nothing could run here: the report then lists the checks and
benchmarks and says what is missing. What it has shown so far: docs/gpu.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.photo_folder import make_photo_folder
from fastaug.ops.crop_mix import Sampling, crop_mix, sample_crop_mix
from fastaug.ops.crop_mix.custom_op import write_into
from fastaug.ops.crop_mix.reference import normaliser
from fastaug.ops.crop_mix.sampling import IMAGENET_MEAN, IMAGENET_STD
from fastaug.provenance import commit, versions
from fastaug.seeding import Key, Stream
from fastaug.step_profile.measure import settle

REPOSITORY = Path(__file__).resolve().parent.parent
KINDS = ("float32", "bfloat16")  # of the op's output
PYTEST = (sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider")
PASSED, FAILED, MISSING = 0, 1, 77  # exit codes; 77 as in Automake: nothing could be tested here


@dataclass(frozen=True)
class Work:
    """Sizes of the benchmarks."""

    model: str = "resnet50"
    side: int = 224
    batch: int = 256
    images: int = 4096  # in the folder
    steps: int = 30
    calls: int = 50  # of the op


class Check(NamedTuple):
    """One test: `outcome` passed, failed or skipped; `message` why not passed."""

    name: str
    outcome: str
    seconds: float
    message: str


# ---- what is missing ----


def missing() -> list[str]:
    """Why this machine cannot run the report; empty where it can."""
    found = []
    if torch.version.cuda is None:
        found.append("torch is built without CUDA: install a build with it")
    elif not torch.cuda.is_available():
        found.append(f"no CUDA device is visible to torch {torch.__version__}: run on a machine with a GPU and driver")
    if find_spec("triton") is None:
        found.append("Triton is not installed: it comes with CUDA builds of torch for Linux")
    if find_spec("pytest") is None or find_spec("sklearn") is None:
        found.append('the tests\' packages are not installed: pip install -e ".[test]"')
    if not (REPOSITORY / "tests").is_dir():
        found.append(f"{REPOSITORY} has no tests: run from a checkout of the project")
    return found


# ---- checks ----


def marked_files() -> list[str]:
    """The test files that hold checks of a GPU; the others need not be imported."""
    files = sorted((REPOSITORY / "tests").rglob("test_*.py"))
    return [str(file.relative_to(REPOSITORY)) for file in files if "mark.gpu" in file.read_text()]


def listed() -> list[str]:
    """The names of all checks, collected without running one."""
    command = [*PYTEST, "--collect-only", *marked_files()]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the checks cannot be collected:\n{done.stdout}{done.stderr}")
    return [line for line in done.stdout.splitlines() if "::" in line]


def run_checks() -> list[Check]:
    """Runs every check in a process of its own and gives their outcomes; RuntimeError when pytest itself fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checks.xml"
        done = subprocess.run([*PYTEST, f"--junitxml={file}", *marked_files()], cwd=REPOSITORY, check=False)
        if done.returncode not in (0, 1):  # 1: some test failed, which the file tells
            raise RuntimeError(f"pytest ended with code {done.returncode}")
        return outcomes(file.read_text())


def outcomes(junit: str) -> list[Check]:
    """The tests in a JUnit file."""
    found = []
    for case in ElementTree.fromstring(junit).iter("testcase"):
        bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
        outcome = "passed" if not bad else "skipped" if bad[0].tag == "skipped" else "failed"
        message = bad[0].get("message", "") if bad else ""
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        found.append(Check(name, outcome, float(case.get("time", 0)), message))
    return found


# ---- benchmarks ----


def seconds_of(call: Callable[[], Any], device: torch.device, times: int) -> float:
    """Mean of `times` calls, after three that do not count."""
    for _ in range(3):
        call()
    settle(device)
    start = time.perf_counter()
    for _ in range(times):
        call()
    settle(device)
    return (time.perf_counter() - start) / times


def bench_op(device: torch.device, work: Work) -> dict[str, float]:
    """Bytes per second of the fused op and of a copy that moves as many; "call" has the host's part too."""
    shape = (work.batch, work.side, work.side, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.zeros(work.batch, dtype=torch.int64, device=device)
    sampling = Sampling(sigma=0.3, cutmix=1.0, mixup_mode="elem")
    params = sample_crop_mix(Key(0, 0, Stream.MIX), range(work.batch), shape[1:3], sampling)
    scale, bias = normaliser(IMAGENET_MEAN, IMAGENET_STD, True)
    geometry, colour = (part.to(device) for part in params.packed(*shape[1:3], torch.float32))
    figures: dict[str, float] = {}
    for name in KINDS:
        dtype: torch.dtype = getattr(torch, name)
        out = torch.empty(shape, dtype=dtype, device=device)
        moved = images.nbytes + out.nbytes
        source, sink = (torch.empty(moved // 2, dtype=torch.uint8, device=device) for _ in range(2))
        rows: dict[str, Callable[[], Any]] = {
            "op": lambda out=out: write_into(out, images, geometry, colour, scale, bias),  # type: ignore[misc]
            "call": lambda dtype=dtype: crop_mix(images, labels, params, classes=10, dtype=dtype),  # type: ignore[misc]
            "copy": lambda source=source, sink=sink: sink.copy_(source),  # type: ignore[misc]
        }
        for row, call in rows.items():
            figures[f"{row}_{name}_gb_per_second"] = moved / seconds_of(call, device, work.calls) / 1e9
        figures[f"op_{name}_over_copy"] = figures[f"copy_{name}_gb_per_second"] / figures[f"op_{name}_gb_per_second"]
    return figures


def bench_training(device: torch.device, work: Work) -> dict[str, Any]:  # noqa: ARG001 - the tool chooses it likewise
    """Loader alone, network alone and both, with the stages of the step, by tools/profile_step.py in each precision."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = make_photo_folder(Path(folder) / "photos", work.images, classes=10)
        recipe, answer = Path(folder) / "recipe.yaml", Path(folder) / "profile.json"
        recipe.write_text(
            f"data: {{root: '{root}', img_size: {work.side}, test_fraction: 0.1}}\n"
            f"model: {{name: {work.model}}}\noptim: {{opt: sgd, lr: 0.1, momentum: 0.9}}\n"
            f"train: {{epochs: 1, batch_size: {work.batch}}}\naugment: {{shift: 0.3, cutmix: 1}}\n"
        )
        for name, precision in (("float32", "no"), ("bf16", "bf16")):
            command = [sys.executable, "tools/profile_step.py", str(recipe), f"train.precision={precision}"]
            command += ["--steps", str(work.steps), "--json", str(answer)]
            subprocess.run(command, cwd=REPOSITORY, check=True)
            found |= {f"{name}_{key}": value for key, value in json.loads(answer.read_text())["figures"].items()}
    return found


Benchmark = Callable[[torch.device, Work], dict[str, float]]
BENCHMARKS: dict[str, Benchmark] = {"crop_mix": bench_op, "loader and training step": bench_training}

# ---- the report ----


def measured(device: torch.device, work: Work) -> dict[str, Any]:
    """Everything: checks, figures, and gates that say whether all of it is as it should be."""
    checks = run_checks()
    figures: dict[str, float] = {}
    for bench in BENCHMARKS.values():
        figures |= bench(device, work)
    gates = {"checks found": bool(checks), "no check failed": all(check.outcome != "failed" for check in checks)}
    gates["no check skipped"] = all(check.outcome != "skipped" for check in checks)
    gates["op no slower than 2 copies"] = max(figures[f"op_{kind}_over_copy"] for kind in KINDS) <= 2
    about = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type}
    about |= (
        {"capability": ".".join(map(str, torch.cuda.get_device_capability(device)))} if device.type == "cuda" else {}
    )
    return {**about, "checks": [check._asdict() for check in checks], "gates": gates, "figures": figures}


def about() -> dict[str, Any]:
    """Machine, versions and commit."""
    return {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
        "versions": versions(),
        "commit": commit(),
    }


def planned() -> dict[str, Any]:
    """What would run, and why it does not."""
    return {"missing": missing(), "checks": listed(), "benchmarks": list(BENCHMARKS)}


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: of `measured`, or of `planned` where a GPU is missing."""
    lines = ["# GPU report", ""]
    lines += [
        f"- {name}: {report[name]}" for name in ("device", "machine", "cores", "cuda", "commit") if name in report
    ]
    lines += [f"- {name}: {version}" for name, version in report["versions"].items()]
    if "missing" in report:
        lines += ["", "Nothing was checked or measured:", "", *(f"- {reason}" for reason in report["missing"])]
        families = Counter(name.partition("[")[0] for name in report["checks"])
        lines += ["", f"## {len(report['checks'])} checks to run", ""]
        lines += [f"- `{name}`{f': {count} cases' if count > 1 else ''}" for name, count in families.items()]
        return "\n".join([*lines, "", "## Benchmarks to run", "", *(f"- {name}" for name in report["benchmarks"]), ""])
    lines += ["", "| gate | |", "|---|---|"]
    lines += [f"| {name} | {'ok' if passed else '**MISSED**'} |" for name, passed in report["gates"].items()]
    lines += ["", "| figure | |", "|---|--:|", *(f"| {name} | {v:.5g} |" for name, v in report["figures"].items())]
    lines += ["", "| check | outcome | s |", "|---|---|--:|"]
    for check in report["checks"]:
        why = f": {check['message'].splitlines()[0][:200]}" if check["message"] else ""
        lines.append(f"| `{check['name']}` | {check['outcome']}{why.replace('|', '/')} | {check['seconds']:.2f} |")
    return "\n".join([*lines, ""])


# ---- the command ----


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="report.md, or report.json with every number")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON form too")
    parser.add_argument("--model", default="resnet50", help="of the training step (default resnet50)")
    parser.add_argument("--batch", type=int, default=256, help="images (default 256)")
    arguments = parser.parse_args()
    if arguments.batch < 2:
        parser.error(f"--batch must be at least 2, found {arguments.batch}")
    for file in (arguments.out, arguments.json):
        if file is not None and not file.parent.is_dir():
            parser.error(f"there is no folder {file.parent}")
    return arguments


def main() -> int:
    """The exit code, see above."""
    arguments = parse()
    report = about()
    if missing():
        report |= planned()
        code = MISSING
    else:
        device = torch.device("cuda", torch.cuda.current_device())
        report |= measured(device, Work(model=arguments.model, batch=arguments.batch))
        code = PASSED if all(report["gates"].values()) else FAILED
    text = json.dumps(report, indent=1) + "\n"
    page = markdown(report)
    if arguments.out:
        arguments.out.write_text(text if arguments.out.suffix == ".json" else page)
    if arguments.json:
        arguments.json.write_text(text)
    print(page)
    return code


if __name__ == "__main__":
    sys.exit(main())
