"""The report of a GPU machine: what can be checked of it without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_report
from benchmarks.gpu_report import Check, Work, bench_op, markdown, marked_files, missing, outcomes

REPO = Path(__file__).resolve().parents[2]
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.a" name="one" time="0.5"/>
<testcase classname="tests.a" name="two[x]" time="1"><failure message="off by | 3">trace</failure></testcase>
<testcase classname="tests.b" name="three" time="2"><skipped message="no device"/></testcase>
<testcase classname="tests.b" name="four" time="0"><error message="setup"/></testcase>
</testsuite></testsuites>"""
ABOUT = {"machine": "m", "cores": 2, "cuda": None, "versions": {"torch": "1"}, "commit": None}


def test_outcomes_of_the_checks() -> None:
    found = outcomes(JUNIT)
    assert found[0] == Check("tests.a::one", "passed", 0.5, "")
    assert [check.outcome for check in found] == ["passed", "failed", "skipped", "failed"]
    assert found[2].message == "no device"


def test_the_page_names_what_failed() -> None:
    checks = [check._asdict() for check in outcomes(JUNIT)]
    page = markdown({**ABOUT, "device": "d", "checks": checks, "gates": {"a": True, "b": False}, "figures": {"x": 2.5}})
    assert "| a | ok |" in page
    assert "| b | **MISSED** |" in page
    assert "| x | 2.5 |" in page
    assert "failed: off by / 3" in page


def test_bandwidth_is_measured_with_the_device_at_hand() -> None:
    figures = bench_op(torch.device("cpu"), Work(batch=4, side=16, calls=2))
    assert set(figures) == {
        *(f"{row}_{kind}_gb_per_second" for row in ("op", "call", "copy") for kind in gpu_report.KINDS),
        *(f"op_{kind}_over_copy" for kind in gpu_report.KINDS),
    }
    assert min(figures.values()) > 0


@pytest.mark.slow
def test_training_is_measured_with_the_device_at_hand() -> None:
    work = Work(model="test_resnet", side=32, batch=8, images=100, steps=2)
    figures = gpu_report.bench_training(torch.device("cpu"), work)
    for name in ("float32", "bf16"):
        assert figures[f"{name}_images_per_second"] > 0
        assert figures[f"{name}_loader_images_per_second"] > 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_tool_lists_its_work_and_what_is_missing(tmp_path: Path) -> None:
    assert any("no CUDA device" in reason or "without CUDA" in reason for reason in missing())
    out = tmp_path / "report.md"
    command = [sys.executable, str(REPO / "tools/gpu_report.py"), "--out", str(out), "--json", str(tmp_path / "r.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode == gpu_report.MISSING, ended.stderr
    assert "Nothing was checked or measured" in out.read_text()
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["missing"]
    assert "figures" not in written
    names = written["checks"]
    assert {name.partition("::")[0] for name in names} == set(marked_files())
    for part in (
        "test_kernels.py::test_forward",
        "test_loading.py::test_same_pixels",
        "test_steps.py::test_a_step_does",
    ):
        assert any(part in name for name in names)
    assert any("tests/ops/crop_mix/test_triton_kernel.py::test_on_a_gpu" in name for name in names)
    assert not [name for name in names if "cpu" in name.partition("[")[2]]
