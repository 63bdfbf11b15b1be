"""The training step on a device: same losses as on the CPU, mixed precision, no host sync, a clean end."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from fastaug.step_profile.measure import profile
from fastaug.training.build import Trainer
from fastaug.training.checkpoint import load, name_of
from fastaug.training.loop import train_step
from fastaug.training.trainer_state import save

REPO = Path(__file__).resolve().parents[2]
SYNTHETIC = "data.loader=synthetic"
AUGMENTS = {
    "soft": ["augment.shift=0.3"],
    "mixed": ["augment.shift=0.3", "augment.cutmix=1", "augment.mixup=0.5", "augment.mixup_mode=elem"],
    "hidden": ["augment.cutmix=1", "augment.mix_layer=layer2"],
    "erased": ["augment.reprob=0.5", "augment.cutout=0.3"],
    "smoothed": ["augment.smoothing=0.1", "augment.loss=bce"],
    "averaged": ["model.ema=true"],
}
ON_CPU = [("cpu", "mixed")]
ON_GPU = [pytest.param("cuda", name, marks=pytest.mark.gpu) for name in AUGMENTS]


def losses(trainer: Trainer, steps: int) -> list[float]:
    """The loss of each of the first updates."""
    batches, found = trainer.loader.batches(trainer.order.requests(0, steps)), []
    for _ in range(steps):
        train_step(trainer, batches)
        found.append(trainer.meter.read()[0])
    return found


@pytest.mark.parametrize(("device", "name"), ON_CPU + ON_GPU, indirect=["device"])
def test_same_losses_as_on_the_cpu(device: torch.device, make_trainer: Callable[..., Trainer], name: str) -> None:
    words = [SYNTHETIC, *AUGMENTS[name], "train.tf32=false"]
    want = losses(make_trainer(torch.device("cpu"), *words), 4)
    got = losses(make_trainer(device, *words), 4)
    assert got == pytest.approx(want, rel=2e-2)
    assert got[0] == pytest.approx(want[0], rel=1e-3)


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "bf16"), *(pytest.param("cuda", kind, marks=pytest.mark.gpu) for kind in ("bf16", "fp16"))],
    indirect=["device"],
)
def test_mixed_precision_trains(device: torch.device, make_trainer: Callable[..., Trainer], precision: str) -> None:
    want = losses(make_trainer(device, SYNTHETIC), 4)
    got = losses(make_trainer(device, SYNTHETIC, f"train.precision={precision}"), 4)
    assert got == pytest.approx(want, rel=0.1)
    assert got[0] == pytest.approx(want[0], rel=0.03)


@pytest.mark.parametrize(("device", "name"), ON_CPU + ON_GPU, indirect=["device"])
@pytest.mark.parametrize("loader", ["dali", "synthetic"])
def test_a_step_does_not_wait_for_the_device(
    device: torch.device,
    make_trainer: Callable[..., Trainer],
    jpeg_folder: Callable[..., Path],
    no_host_sync: Callable[[torch.device], AbstractContextManager[None]],
    name: str,
    loader: str,
) -> None:
    root = [f"data.root={jpeg_folder(images=24)}"] if loader == "dali" else []
    trainer = make_trainer(device, f"data.loader={loader}", *root, *AUGMENTS[name], "train.accumulate=2")
    batches = trainer.loader.batches(trainer.order.requests(0, 6))
    for _ in range(3):  # what is compiled, chosen or allocated once
        train_step(trainer, batches)
    with no_host_sync(device):
        for _ in range(3):
            train_step(trainer, batches)
    assert torch.isfinite(torch.tensor(trainer.meter.read())).all()


def test_cudnn_times_its_algorithms_for_sizes_that_come_again(
    device: torch.device, make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # put back in the end
    trainer = make_trainer(device, SYNTHETIC, "train.batch_size=20")
    batches, found = trainer.loader.batches(trainer.order.requests(0, trainer.order.steps_per_epoch)), []
    for _ in range(trainer.order.steps_per_epoch):
        train_step(trainer, batches)
        found.append((trainer.order.size(trainer.progress.step - 1), torch.backends.cudnn.benchmark))
    assert found == [(20, True), (20, True), (20, True), (4, False)]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "learn", ["softness", "weights", "policy", "instant_weights", "optim", "softness,smoothing,weights,policy,optim"]
)
def test_the_meta_step_learns_what_it_learns_on_the_cpu(
    cuda: torch.device, make_trainer: Callable[..., Trainer], learn: str
) -> None:
    words = ["data.root=embedded:mnist5k", "data.test_fraction=0"]
    words += ["data.img_size=28", "data.crop=whole"]  # the same pixels on both
    words += ["augment.shift=0.3", "augment.smoothing=0.1", "train.tf32=false"]
    words += [f"meta.learn=[{learn}]", "meta.batch_size=8", "meta.every=1", "meta.fraction=1"]
    words += ["meta.probabilities=score"] if "policy" in learn else []
    want, got = (losses(make_trainer(device, *words), 3) for device in (torch.device("cpu"), cuda))
    assert got == pytest.approx(want, rel=1e-2)


def test_a_profile_adds_up(device: torch.device, make_trainer: Callable[..., Trainer]) -> None:
    found = profile(make_trainer(device, SYNTHETIC), 3)
    for step in found.steps:
        assert sum(v for name, v in step.items() if name != "step") == pytest.approx(step["step"])
        assert min(step.values()) > -1e-6
    assert 0 <= found.idle <= 1
    assert (found.copy is not None) == (device.type == "cuda")


def test_an_asynchronous_checkpoint_is_of_the_update_that_it_was_saved_at(
    device: torch.device, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer(device, SYNTHETIC, "optim.opt=adamw", "run.checkpoint_async=true")
    batches, expected = trainer.loader.batches(trainer.order.requests(0, 12)), {}
    with trainer.writer:
        for _ in range(4):
            for _ in range(3):
                train_step(trainer, batches)
            expected[trainer.progress.step] = deepcopy((trainer.network.state_dict(), trainer.optimizer.state_dict()))
            save(trainer)
        trainer.writer.finish()
    for step in (6, 9, 12):  # the newest three are kept
        found = load(trainer.folder.checkpoints / name_of(step))
        weights, optimizer = expected[step]
        assert all(torch.equal(found.weights["model"][name], value.cpu()) for name, value in weights.items())
        for number, moments in optimizer["state"].items():
            kept = found.state["optimizer"]["state"][number]
            assert all(torch.equal(kept[name], value.cpu()) for name, value in moments.items())


@pytest.mark.gpu
@pytest.mark.parametrize(("words", "code"), [([], 0), (["optim.lr=1e30"], 4)], ids=["done", "non-finite"])
def test_a_run_ends_as_it_should(
    cuda: torch.device,  # noqa: ARG001 - skips without one
    tmp_path: Path,
    jpeg_folder: Callable[..., Path],
    words: list[str],
    code: int,
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(REPO / "fastaug" / "train.py"), str(REPO / "recipes" / "quickstart.yaml")]
    command += [f"run.dir={run}", f"data.root={jpeg_folder(images=16)}", "data.test_fraction=0.25"]
    command += ["train.epochs=2", "train.batch_size=8", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert json.loads((run / "status.json").read_text())["code"] == code
    if code == 0:
        assert json.loads((run / "result.json").read_text())["device"] == "cuda"
