"""`fastaug.loader` in loops that are not fastaug's: 20 equal batches in each, and what becomes of its state there."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import fastaug
from fastaug.data.exact_loader import ExactLoader

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning"),  # Lightning itself
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before:UserWarning"),
]
ROOT = Path(__file__).resolve().parents[1]
SIDE, SIZE, BATCHES = 32, 12, 20
Pair = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, jpegs: Callable[..., Path]) -> Path:
    """120 training and 24 test images of two classes: ten batches an epoch."""
    folder = tmp_path_factory.mktemp("set") / "images"
    jpegs(folder / "train", 2, 60, (40, 60))
    jpegs(folder / "val", 2, 12, (40, 60))
    return folder


def made(root: Path, **options: Any) -> ExactLoader:
    settings: dict[str, Any] = {"img_size": SIDE, "threads": 1, "hflip": 0.5, "gives": "pairs", "device": "cpu"}
    return fastaug.loader(root, SIZE, **{**settings, **options})


@pytest.fixture(scope="module")
def wanted(root: Path) -> list[Pair]:
    """The first twenty batches, of two epochs."""
    loader = made(root)
    return [pair for _ in range(2) for pair in loader]


def assert_equal(found: list[Pair], wanted: list[Pair]) -> None:
    assert len(found) == len(wanted)
    for pair, other in zip(found, wanted, strict=True):
        assert torch.equal(pair[0], other[0])
        assert torch.equal(pair[1], other[1])


def network() -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 2))


def test_plain_loop(root, wanted):
    model, seen = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loader = made(root)
    for _epoch in range(loader.epoch, 2):
        for images, labels in loader:
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append((images, labels))
    assert len(seen) == BATCHES
    assert_equal(seen, wanted)


# ---- Accelerate ----


@pytest.fixture
def accelerator(tmp_path: Path) -> Accelerator:
    for kept in (AcceleratorState, GradientState, PartialState):
        kept._reset_state()
    return Accelerator(cpu=True, project_dir=tmp_path)


def test_accelerate_leaves_the_loader_alone_and_keeps_its_state(root, wanted, accelerator, tmp_path):
    model, loader = network(), made(root)
    model, optimizer, prepared = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.05), loader)
    assert prepared is loader
    accelerator.register_for_checkpointing(loader)
    seen = []
    for _epoch in range(2):
        for images, labels in prepared:
            accelerator.backward(nn.functional.cross_entropy(model(images), labels))
            optimizer.step()
            optimizer.zero_grad()
            seen.append((images, labels))
            if len(seen) == 13:
                accelerator.save_state(tmp_path / "state")
    assert_equal(seen, wanted)
    accelerator.load_state(tmp_path / "state")
    assert_equal(list(loader), wanted[13:])


# ---- Lightning ----


class Module(LightningModule):
    """A linear classifier that keeps what its steps were given."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.seen = network(), []

    def training_step(self, batch: Any, _: int) -> Tensor:
        images, labels = batch
        self.seen.append((images, labels))
        return nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(loader: ExactLoader, resumed: Path | None = None, **options: Any) -> Module:
    module = Module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given = {"max_epochs": 2, "enable_checkpointing": False, **options}
    Trainer(accelerator="cpu", devices=1, **quiet, **given).fit(module, loader, ckpt_path=resumed, weights_only=True)
    return module


def test_lightning(root, wanted):
    assert_equal(fit(made(root)).seen, wanted)


def test_lightning_left_early_goes_on_with_the_next_epoch(root, wanted):
    assert_equal(fit(made(root), limit_train_batches=4).seen, wanted[:4] + wanted[10:14])


@pytest.mark.parametrize("done", [3, 10, 13])
def test_lightning_keeps_the_state_in_its_checkpoints(root, wanted, tmp_path, done):
    saved = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=done, filename="{step}")
    fit(made(root), callbacks=[saved], enable_checkpointing=True, max_steps=done)
    again = fit(made(root), tmp_path / f"step={done}.ckpt")
    assert_equal(again.seen, wanted[done:])


DDP = """
import json, sys
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

import fastaug

root, out, when = sys.argv[1], Path(sys.argv[2]), sys.argv[3]


def made():
    return fastaug.loader(root, 12, img_size=32, threads=1, device="cpu")


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.ids = nn.Linear(1, 1), []

    def train_dataloader(self):
        return made()

    def training_step(self, batch, _):
        self.ids.append(batch.ids.tolist())
        return self.layer(torch.ones(1, 1)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


module, early = Module(), made() if when == "early" else None
options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, **options)
trainer.fit(module, early)
(out / f"rank-{trainer.global_rank}.json").write_text(json.dumps(module.ids))
"""


@pytest.mark.slow
def test_lightning_in_two_processes(root, tmp_path):
    """Which it starts in `fit`: a loader of before belongs to one process alone, and says so."""
    (tmp_path / "ddp.py").write_text(DDP)
    run(tmp_path / "ddp.py", root, tmp_path, "late")
    ids = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    wanted = [batch.ids.tolist() for batch in made(root, gives="batch")]
    assert [one + other for one, other in zip(*ids, strict=True)] == wanted
    with pytest.raises(AssertionError, match=r"made for process 0 of 1, and this is 0 of 2"):
        run(tmp_path / "ddp.py", root, tmp_path, "early")


# ---- Transformers: needs the extra `loops` ----

HUGGING_FACE = """
import json, sys
from pathlib import Path

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import fastaug

root, out, resumed = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
seen = []


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 2)

    def forward(self, pixel_values, labels):
        seen.append((pixel_values, labels))
        logits = self.linear(nn.functional.avg_pool2d(pixel_values, 8).flatten(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Ours(Trainer):
    def get_train_dataloader(self):
        return loader


class Keep(TrainerCallback):
    def on_save(self, args, state, control, **_):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / "loader.json").write_text(json.dumps(loader.state_dict()))


settings = dict(img_size=32, threads=1, hflip=0.5, device="cpu")
loader = fastaug.loader(root, 12, gives="dict", **settings)
if resumed:
    loader.load_state_dict(json.loads((Path(resumed[0]) / "loader.json").read_text()))
arguments = TrainingArguments(
    out, num_train_epochs=2, save_steps=13, report_to=[], use_cpu=True, disable_tqdm=True, ignore_data_skip=True
)
Ours(Net(), arguments, callbacks=[Keep()]).train(resume_from_checkpoint=resumed[0] if resumed else None)
torch.save(seen, out / "seen.pt")
"""


def run(script: Path, *words: object, **environment: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    ended = subprocess.run(
        [sys.executable, script, *map(str, words)], env=env, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.slow
def test_hugging_face_trainer(root, wanted, tmp_path):
    (tmp_path / "train.py").write_text(HUGGING_FACE)
    run(tmp_path / "train.py", root, tmp_path / "one")
    assert_equal(torch.load(tmp_path / "one" / "seen.pt"), wanted)
    (tmp_path / "two").mkdir()
    run(tmp_path / "train.py", root, tmp_path / "two", tmp_path / "one" / "checkpoint-13")
    assert_equal(torch.load(tmp_path / "two" / "seen.pt"), wanted[13:])


# ---- timm's train.py, which is in its repository alone ----

RECORDER = """
import runpy, sys

import torch

seen = []


def record(module, inputs):
    if type(module).__name__ == "ClassificationTask" and module.training:
        seen.append(inputs[:2])


torch.nn.modules.module.register_module_forward_pre_hook(record)
script, out, *words = sys.argv[1:]
sys.argv = [script, *words]
runpy.run_path(script, run_name="__main__")
torch.save(seen, out)
"""


@pytest.mark.slow
def test_timm_train_script(root, wanted, tmp_path):
    """With the lines that docs/loader.md puts into it."""
    if not (script := os.environ.get("FASTAUG_TIMM_TRAIN")):
        pytest.skip("FASTAUG_TIMM_TRAIN is not set to train.py of a copy of timm's repository")
    shutil.copy(script, tmp_path / "train.py")
    diff = re.search(r"```diff\n(.*?)```", (ROOT / "docs" / "loader.md").read_text(), flags=re.S)
    assert diff is not None
    (tmp_path / "ours.diff").write_text(diff[1])
    subprocess.run(["patch", "-p1", "-i", "ours.diff"], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "record.py").write_text(RECORDER)
    words = {"data-dir": root, "model": "test_resnet", "num-classes": 2, "img-size": SIDE, "batch-size": SIZE}
    words |= {"epochs": 2, "warmup-epochs": 0, "device": "cpu", "output": tmp_path / "output", "workers": 1}
    flags = [text for name, value in words.items() for text in (f"--{name}", str(value))]
    mean = [*("--mean", 0.485, 0.456, 0.406), *("--std", 0.229, 0.224, 0.225), "--interpolation", "bilinear"]
    run(tmp_path / "record.py", tmp_path / "train.py", tmp_path / "seen.pt", *flags, *mean)
    assert_equal(torch.load(tmp_path / "seen.pt"), wanted)


# ---- processes ----

PART = """
import json, sys
from pathlib import Path

import torch.distributed as dist

import fastaug

root, out, batches = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo")
loader = fastaug.loader(root, 12, img_size=32, threads=1, device="cpu")
if (out / "state.json").exists():
    loader.load_state_dict(json.loads((out / "state.json").read_text()))
dist.barrier()
ids = [batch.ids.tolist() for _, batch in zip(range(batches), loader)]
found = [None] * dist.get_world_size()
dist.all_gather_object(found, (ids, loader.state_dict()))
if dist.get_rank() == 0:
    assert all(state == found[0][1] for _, state in found)
    (out / "state.json").write_text(json.dumps(found[0][1]))
    whole = [[i for part in parts for i in part] for parts in zip(*(ids for ids, _ in found))]
    (out / f"world-{len(found)}.json").write_text(json.dumps(whole))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_global_batches_go_on_over_one_two_and_three_processes(root, tmp_path, in_processes):
    """Saved in the middle of an epoch by real processes, resumed by another number of them."""
    (tmp_path / "part.py").write_text(PART)
    found = []
    for world in (1, 2, 3):
        in_processes(world, tmp_path / "part.py", root, tmp_path, 3)
        found += json.loads((tmp_path / f"world-{world}.json").read_text())
    assert found == [batch.ids.tolist() for batch in made(root, gives="batch")][:9]
