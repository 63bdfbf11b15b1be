"""Networks that the processes divide among them: training, checkpoints, and what is made of them, in real processes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fastaug

Train = Callable[..., Path]
SCRIPT = Path(__file__).with_name("stopped_run.py")
RECIPE = """
data: {img_size: 32, threads: 1, test_fraction: 0.3}
model:
  name: vit_tiny_patch16_224
  kwargs: {img_size: 32, patch_size: 8, depth: 2, embed_dim: 24, num_heads: 2}
  drop_path: 0.1
  ema: true
  ema_decay: 0.9
optim: {opt: adamw, lr: 1e-3, weight_decay: 0.05, clip_grad: 1.0, warmup_epochs: 1}
train: {epochs: 4, batch_size: 8}
augment: {shift: 0.1}
eval: {batch_size: 7, every: 0}  # three batches for two processes
run: {log_every: 1, checkpoint_every: 20, sample_record: false}
"""


@pytest.fixture
def train(tmp_path: Path, jpegs: Callable[..., Path], in_processes: Callable[..., str]) -> Train:
    """train(name, processes, keys, until=0): the run folder `name` after update `until`, or the run's end."""
    root = jpegs(tmp_path / "images", 2, 28)
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def go(name: str, processes: int = 2, keys: list[str] | None = None, until: int = 0, code: int = 0) -> Path:
        words = [f"data.root={root}", f"run.dir={tmp_path / name}", *(keys or ["train.parallel=fsdp2"])]
        in_processes(processes, SCRIPT, until, tmp_path / "recipe.yaml", *words, code=75 if until else code)
        return tmp_path / name

    return go


def losses(run: Path) -> list[float]:
    """The loss of every update."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["event"] == "train"]


def apart(one: Path, other: Path) -> float:
    """The largest difference of two runs' losses, of 20 updates each."""
    assert len(losses(one)) == len(losses(other)) == 20
    return max(abs(a - b) for a, b in zip(losses(one), losses(other), strict=True))


def result(run: Path) -> dict[str, float]:
    """The figures of the test split."""
    found: dict[str, float] = json.loads((run / "result.json").read_text())["test"]
    return found


def logits(run: Path, weights: str) -> torch.Tensor:
    """What `fastaug.load` makes of four images."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found: torch.Tensor = fastaug.load(run, weights=weights).model(images).detach()
    return found


def test_a_divided_network_trains_as_a_whole_one_and_is_used_as_one(train: Train) -> None:
    whole, divided = train("whole", keys=["train.parallel=ddp"]), train("divided")
    assert apart(whole, divided) < 1e-5
    assert abs(result(whole)["nll"] - result(divided)["nll"]) < 1e-5
    for kind in ("raw", "ema"):
        assert torch.allclose(logits(whole, kind), logits(divided, kind), atol=1e-5)
    assert fastaug.load(divided).classes == ("class0", "class1")
    path = divided / "checkpoints" / (divided / "checkpoints" / "last").read_text()
    sizes = [file.stat().st_size for file in path.glob("shard-*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 0.6 * sum(sizes)  # none has all
    assert not (path / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_divided_run_goes_on_to_the_bit(train: Train) -> None:
    straight = train("straight")
    train("stopped", until=7)
    stopped = train("stopped")
    assert apart(straight, stopped) == 0
    assert torch.equal(logits(straight, "ema"), logits(stopped, "ema"))
    assert fastaug.evaluate(stopped)["nll"] == pytest.approx(result(stopped)["nll"], abs=1e-6)


@pytest.mark.slow
def test_a_table_of_single_images_beside_the_shares_is_no_weight(train: Train) -> None:
    keys = ["train.parallel=fsdp2", "meta.learn=[weights]", "meta.frozen=true", "data.meta_fraction=0.2"]
    keys += ["train.epochs=1", "optim.warmup_epochs=0"]
    run = train("stopped", 1, keys, until=2)
    (saved,) = (run / "checkpoints").glob("step-*")
    assert list(saved.glob("table-*.safetensors"))
    train("stopped", 1, keys)  # passes over no checkpoint
    assert len(losses(run)) == 5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_divided_run_goes_on_in_another_number_of_processes(train: Train) -> None:
    keys = ["train.parallel=fsdp2", "model.drop_path=0"]  # each process draws its own dropped paths
    straight = train("straight", keys=keys)
    for processes, until in ((2, 5), (1, 11), (2, 0)):
        changing = train("changing", processes, keys, until)
    assert apart(straight, changing) < 1e-5
    assert torch.allclose(logits(straight, "ema"), logits(changing, "ema"), atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "keys",
    [
        ["train.accumulate=2", "model.freeze=[blocks.0.*]", "model.head_first_epochs=1"],
        ["optim.opt=lamb", "optim.layer_decay=0.7", "optim.clip_mode=value", "optim.clip_grad=0.01"],
        ["model.name=resnet18", "model.kwargs={}", "optim.opt=sgd", "optim.lr=1e-4", "optim.warmup_epochs=0"],
        ["train.plain_step=true", "augment.aa=ra-n2-m9", "model.grad_checkpointing=true"],
    ],
    ids=["frozen", "lamb", "batch norm", "checkpointed"],
)
def test_what_else_a_recipe_may_ask_for_is_alike(train: Train, keys: list[str]) -> None:
    one, other = (train(kind, keys=[*keys, f"train.parallel={kind}"]) for kind in ("ddp", "fsdp2"))
    assert apart(one, other) < 1e-5
    assert torch.allclose(logits(one, "ema"), logits(other, "ema"), atol=1e-4)
