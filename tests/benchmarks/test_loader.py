"""The benchmark of loaders: its gates can fail, its figures are what they say, and a short run works."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import loader
from benchmarks.peers import catalog, forms, gate, map_style, process_tree, report
from benchmarks.peers.job import EPOCH, Job

REPO = Path(__file__).resolve().parents[2]

SIDE, IMAGES = 64, 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "set"
    forms.write_set(folder, IMAGES)
    gate.write_reference(folder / "files" / "train", SIDE, folder / "reference.npz")
    return folder


@pytest.fixture
def job(data: Path) -> Job:
    """One pass with fixed windows, in this process."""
    return Job(str(forms.source(data, "files")), 16, 0, SIDE).whole(forms.WIDTH / forms.HEIGHT)


# ---- the data ----


def test_the_set_is_like_photographs_of_a_large_set(data: Path) -> None:
    about = forms.write_set(data, IMAGES)  # found, not written again
    assert 50_000 < about["mean_bytes"] < 62_000
    files = forms.labelled_files(data / "files" / "train")
    assert len(files) == IMAGES
    assert {label for _, label in files} == set(range(forms.CLASSES))
    assert len({path.read_bytes() for path, _ in files}) == IMAGES


def test_another_set_in_the_same_folder_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="name another --data"):
        forms.write_set(data, IMAGES + 1)


def test_tars_hold_every_file_and_its_label(data: Path) -> None:
    made = forms.make_form(data, "tar")
    assert made["bytes"] > forms.size_of(data / "files" / "train")
    assert forms.make_form(data, "tar") == {"seconds": 0.0, "bytes": made["bytes"]}
    assert forms.source(data, "tar").name == "{00000..00000}.tar"


def test_a_form_that_cannot_be_made_says_why(data: Path) -> None:
    with pytest.raises(RuntimeError, match="Error"):
        forms.make_form(data, "beton_raw", "/bin/false" if catalog_has("ffcv") else sys.executable)


def catalog_has(name: str) -> bool:
    """Whether the loader can be imported here."""
    try:
        catalog.LOADERS[name].function()
    except (ImportError, OSError, RuntimeError):
        return False
    return True


# ---- the gates ----


def test_torchvision_passes_its_own_gate(data: Path, job: Job) -> None:
    found = gate.check(map_style.pil_stream(job), data / "reference.npz")
    assert found["gates"] == {"pixels": True, "labels": True, "count": True}


def test_a_loader_without_antialiasing_is_refused(data: Path, job: Job) -> None:
    files = map_style.Files(job, lambda path: path)
    images = [torch.from_numpy(np.array(forms.Image.open(path))).permute(2, 0, 1) for path, _ in files.samples]
    plain = [torch.nn.functional.interpolate(i[None], (SIDE, SIDE), mode="bilinear", antialias=False) for i in images]
    labels = np.array([label for _, label in files.samples])
    found = gate.check(iter([(torch.cat(plain), labels, None)]), data / "reference.npz")
    assert found["gates"] == {"pixels": False, "labels": True, "count": True}


@pytest.mark.parametrize(
    ("spoil", "broken"),
    [
        (lambda images, labels: (images, np.roll(labels, 1)), "labels"),
        (lambda images, labels: (images[:-1], labels[:-1]), "count"),
        (lambda images, labels: (images[[0, *range(len(images) - 1)]], labels[[0, *range(len(labels) - 1)]]), "count"),
        (lambda images, labels: (np.minimum(images, 250) + 5, labels), "pixels"),
    ],
    ids=["labels of others", "one left out", "one twice", "brighter"],
)
def test_each_gate_can_fail(data: Path, spoil, broken: str) -> None:
    reference = np.load(data / "reference.npz")
    images, labels = spoil(reference["images"], reference["labels"])
    found = gate.check(iter([(images, labels, None)]), data / "reference.npz")
    assert [name for name, held in found["gates"].items() if not held] == [broken]


def test_ids_that_repeat_are_found(data: Path) -> None:
    reference = np.load(data / "reference.npz")
    for ids, right in ((np.arange(IMAGES), True), (np.zeros(IMAGES), False)):
        found = gate.check(iter([(reference["images"], reference["labels"], ids)]), data / "reference.npz")
        assert found["gates"]["ids"] == right


# ---- what is measured ----


def test_processor_seconds_count_children() -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint('burnt', flush=True)\ninput()"
    own, before = psutil.Process(), process_tree.cpu_seconds(psutil.Process())
    child = subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"burnt\n"
        assert process_tree.cpu_seconds(own) - before > 0.45
        assert process_tree.proportional_mib(own) > process_tree.proportional_mib(psutil.Process(child.pid)) > 1
    finally:
        child.communicate(b"\n")
    assert process_tree.cpu_seconds(own) - before > 0.45  # ended: in its parent's account


@given(st.integers(1, 10**6))
def test_an_epoch_is_as_long_as_a_large_set(images: int) -> None:
    job = Job("", 1, 1)
    assert EPOCH <= images * job.repeats(images) < EPOCH + images
    assert job.whole(1.5).repeats(images) == 1


def test_a_job_survives_the_way_to_its_process() -> None:
    job = Job("place", 64, 2, ratio=(0.7, 1.4), model="resnet18")
    assert Job.from_json(job.to_json()) == job


@settings(max_examples=20)
@given(st.lists(st.floats(1, 1e4), min_size=1, max_size=7), st.lists(st.floats(1, 1e4), min_size=1, max_size=7))
def test_figures_are_ratios_of_medians(ours: list[float], theirs: list[float]) -> None:
    names = ["ours", "torchvision", "timm", "libjpeg-turbo", "ours raw", "ffcv raw"]
    bench = loader.Bench(Namespace(only=[*names, "ffcv"], rounds=1), Path())
    for name in names:
        speeds = ours if name.startswith("ours") else theirs
        rounds = [dict.fromkeys(("images_per_core_second", "images_per_second", "busy_cores"), s) for s in speeds]
        bench.loaders[name] = {"rounds": rounds, "peak_pss_mib": 1.0, "first_batch_seconds": 1.0}
    bench.absent["ffcv"] = "not installed"
    found = loader.figures(bench)
    ratio = np.median(ours) / np.median(theirs)
    for name in ("jpeg_over_best_peer", "jpeg_share_of_decode_limit", "raw_over_ffcv"):
        assert found[name] == pytest.approx(ratio)
    assert "shard_jpeg_over_ffcv" not in found
    assert all(name.isidentifier() for name in found)


def test_names_of_figures_are_flat() -> None:
    assert report.key("libjpeg-turbo", "of limit") == "libjpeg_turbo_of_limit"


# ---- the tool ----


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "tools/bench_loader.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.slow
def test_a_short_run(tmp_path: Path) -> None:
    small = ["--images", "32", "--batch", "16", "--threads", "1", "--rounds", "2", "--seconds", "0.2"]
    names = ["ours", "torchvision", "ffcv", "libjpeg-turbo"]
    ended = bench(*small, "--only", *names, "--data", str(tmp_path / "data"), "--json", str(tmp_path / "out.json"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"machine", "versions", "commit", "settings", "data", "gates", "figures"} <= set(found)
    for name in names:
        assert any(line.startswith(f"{name} ") for line in ended.stdout.splitlines())  # a row, measured or not
        assert (name in found["absent"]) != (f"{report.key(name)}_images_per_core_second" in found["figures"])
    assert all(found["gates"][f"{name} {kind}"] for name in names[:2] for kind in ("pixels", "labels", "count", "ran"))
    assert found["gates"]["ours ids"]
    for name in ("ours", "torchvision"):
        rounds = found["loaders"][name]["rounds"]
        assert len(rounds) == 2
        assert all(r["images"] > 0 and r["cpu"] > 0 and r["wall"] >= 0.2 for r in rounds)
        assert 20 < found["loaders"][name]["peak_pss_mib"] < 4000
    assert found["figures"]["jpeg_over_best_peer"] > 0
    if not catalog_has("ffcv"):
        assert "ffcv" in found["absent"]["ffcv"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "10"], "at least --batch"),
        (["--only", "nothing"], "invalid choice"),
        (["--peer-python", "ffcv"], "NAME=PATH"),
    ],
)
def test_refuses(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_loader.py", *words])
    with pytest.raises(SystemExit) as end:
        loader.main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err
