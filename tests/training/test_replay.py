"""Replays against the trainings themselves: what the network got, kept by a hook on it, is made again to the bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.errors import DataError, FastaugError, RecipeError, StorageError
from fastaug.meta.evidence import Evidence
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import SCHEMA
from fastaug.training.borrowed_process import borrowed_process
from fastaug.training.replay import Place, Replay
from fastaug.training.worker import run

RECIPE = """
data: {img_size: 28, crop: rrc, scale: [0.4, 1.0], threads: 1, test_fraction: 0.25}
model: {name: test_resnet}
optim: {opt: adamw, lr: 2e-3, sched: constant}
train: {epochs: 2, batch_size: 12, accumulate: 2}
augment: {shift: 0.2, cutmix: 1, mixup: 0.4, mixup_mode: elem, reprob: 0.5, aa: rand-m9-n2, smoothing: 0.1}
run: {log_every: 1, log_ids: true, checkpoint_every: 1, keep: 100}
"""

UNMIXED = ("augment.cutmix=0", "augment.mixup=0", "augment.mixup_mode=batch")
HERE = Path(__file__).parent
Kept = tuple[Path, list[dict[str, Any]]]


def train(folder: Path, root: Path, *words: str) -> Kept:
    """The run folder and the forward passes of RECIPE with `words`, trained in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        from recorded_training import recorded  # type: ignore[import-not-found]
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    settings = [f"data.root={root}", f"run.dir={folder / 'run'}", *words]
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    with recorded() as passes:
        assert run(read_recipe(folder / "recipe.yaml", settings)) == 0
    return folder / "run", passes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, jpegs: Callable[..., Path]) -> Path:
    """Two classes of 16 photographs; 24 of them are trained on, in two updates an epoch."""
    return jpegs(tmp_path_factory.mktemp("replay"), 2, 16)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Kept:
    """RECIPE as it is, with every checkpoint; tests only read it."""
    return train(tmp_path_factory.mktemp("kept"), root)


def replayed(run: Path, step: int, **options: Any) -> tuple[list[Any], Replay]:
    with borrowed_process():
        replay = Replay(run, **options)
        return list(replay.pieces(step)), replay


def check(piece: Any, told: dict[str, Any]) -> None:
    """That a replayed micro-batch is what the network got, to the bit."""
    assert piece.batch.ids.tolist() == told["ids"]
    assert piece.inputs.dtype == told["inputs"].dtype
    assert torch.equal(piece.inputs, told["inputs"])
    for now, then in zip(piece.target, told["target"], strict=True):
        assert now is then is None or torch.equal(now, then)


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["event"] == "train"}


def test_every_update_is_what_the_network_got(kept: Kept) -> None:
    run, passes = kept
    logged = losses(run)
    assert len(passes) == 8
    with borrowed_process():
        replay = Replay(run)
        for step in range(4):
            known = replay.go_to(step)
            pieces = list(replay.pieces(step))
            for piece in pieces:
                check(piece, passes[2 * step + piece.place.micro])
            assert (known.inputs, known.losses) == ("exact", "exact")
            total = sum((torch.tensor(piece.total) for piece in pieces), torch.zeros(()))
            assert float(total) == logged[step + 1]
        with pytest.raises(ValueError, match="update 2 lies before checkpoint 3"):
            replay.go_to(2)
    assert replay.notes == []


def test_an_image_is_found_in_its_epoch(kept: Kept) -> None:
    run, passes = kept
    sample = passes[5]["ids"][2]
    with borrowed_process():
        replay = Replay(run)
        assert replay.places(sample, 1) == [Place(2, 0, 1)]
        replay.go_to(2)
        piece = replay.piece(Place(2, 0, 1))
    facts = replay.facts(piece, 2)
    row = passes[5]["target"]
    assert facts["id"] == sample
    assert facts["weight"] == row[2][2]
    assert sum(facts["target"].values()) + facts["rest"] == pytest.approx(1, abs=1e-6)
    assert facts["partner"]["id"] == passes[5]["ids"][facts["partner"]["row"]]


@pytest.mark.slow
def test_a_run_that_was_continued(tmp_path: Path, kept: Kept, root: Path) -> None:
    shutil.copytree(kept[0], tmp_path / "again" / "run")
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / "again" / "run" / "checkpoints" / f"step-0000000{step}")
    run, passes = train(tmp_path / "again", root)
    assert [json.loads(line)["step"] for line in (run / "starts.jsonl").read_text().splitlines()] == [0, 1]
    assert len(passes) == 6
    pieces, _ = replayed(run, 3)
    for piece, told in zip(pieces, passes[4:], strict=True):
        check(piece, told)


@pytest.mark.slow
def test_a_resident_run_without_checkpoints_at_hand(tmp_path: Path, root: Path) -> None:
    words = ("data.loader=resident", "data.crop=center", "run.checkpoint_every=0", "train.epochs=1", "augment.mixup=0")
    run, passes = train(tmp_path, root, *words)
    pieces, replay = replayed(run, 1)
    for piece, told in zip(pieces, passes[2:], strict=True):
        check(piece, told)
        assert piece.losses is None
    known = replay.go_to(1)
    assert known.inputs == "exact"
    assert known.losses.startswith("not known: no checkpoint is kept")


@pytest.mark.slow
def test_two_processes_each_their_slice(tmp_path: Path, root: Path, in_processes: Callable[..., str]) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    settings = [f"data.root={root}", f"run.dir={tmp_path / 'run'}"]
    in_processes(2, HERE / "recorded_training.py", tmp_path, tmp_path / "recipe.yaml", *settings)
    passes = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    logged = losses(tmp_path / "run")
    with borrowed_process():
        replay = Replay(tmp_path / "run")
        for step in range(4):
            pieces = list(replay.pieces(step))
            assert [piece.place for piece in pieces] == [Place(step, r, m) for m in (0, 1) for r in (0, 1)]
            for piece in pieces:
                check(piece, passes[piece.place.rank][2 * step + piece.place.micro])
            assert sum(piece.total for piece in pieces) == pytest.approx(logged[step + 1], rel=1e-6)
        with pytest.raises(DataError, match="was it of 1 processes"):
            list(Replay(tmp_path / "run", processes=1).pieces(3))


@pytest.mark.slow
def test_what_is_learned_is_that_of_the_nearest_checkpoint(tmp_path: Path, root: Path) -> None:
    words = [
        "meta.learn=[policy,weights]",
        "meta.probabilities=score",
        "data.meta_fraction=0.25",
        "meta.batch_size=4",
        "train.batch_size=8",
    ]
    words += ["meta.every=1", "meta.fraction=1", "train.epochs=3", "augment.aa=null", "meta.policy_lr=0.5"]
    run, passes = train(tmp_path, root, *words)
    with borrowed_process():
        replay = Replay(run)
        for step in range(replay.trainer.last_step):
            assert replay.go_to(step).inputs == "exact"
            for piece in replay.pieces(step):
                check(piece, passes[2 * step + piece.place.micro])
        last = replay.trainer.last_step - 1
        shutil.rmtree(run / "checkpoints" / f"step-{last:08d}")
        known = Replay(run).go_to(last)
    assert known.checkpoint == last - 1
    assert known.inputs == f"what is learned is as of update {last - 1}, no checkpoint is nearer"
    assert known.losses == f"by the weights of update {last - 1}"


@pytest.mark.slow
def test_updates_that_a_meta_step_looks_at(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They draw from the policy as it began, the others from what it has become."""
    monkeypatch.setattr(Evidence, "falls", lambda self: torch.full((len(self.count) - 1,), 9.0, dtype=torch.float64))
    words = ["meta.learn=[policy]", "data.meta_fraction=0.25", "meta.batch_size=4", "train.batch_size=8"]
    words += ["meta.every=2", "train.accumulate=1", "train.epochs=2", "augment.aa=null"]
    run, passes = train(tmp_path, root, *words, *UNMIXED)
    with borrowed_process():
        replay = Replay(run)
        for step in range(replay.trainer.last_step):
            assert replay.go_to(step).inputs == "exact"
            (piece,) = replay.pieces(step)
            check(piece, passes[step])


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("augment.copies=1", *UNMIXED),
        ("augment.repeats=2",),
        ("data.sampling=balanced", "run.seed=7"),
        ("augment.class_weight=[1, 2]", "augment.logit_adjustment=1"),
        ("augment.mix_layer=layer1", "augment.mixup=0", "augment.mixup_mode=batch", "augment.shift=0"),
        ("data.channels=1", "data.mean=[0.4]", "data.std=[0.2]", "augment.cutout=0.3"),
        ("train.resize=[[1,32]]", "augment.start_epochs=1", "augment.fill=noise"),
        ("train.precision=bf16", "model.ema=true"),
        ("augment.trust=1", "run.log_losses=true"),
        ("augment.other_class=true", *UNMIXED, "augment.smoothing=0"),
        ("train.drop_last=true", "train.batch_size=16", "augment.mix_group=4", "augment.anneal_epochs=1"),
    ],
    ids=lambda words: words[0],
)
def test_every_way_to_train(tmp_path: Path, root: Path, words: tuple[str, ...]) -> None:
    run, passes = train(tmp_path, root, *words)
    logged = losses(run)
    assert passes
    with borrowed_process():
        replay = Replay(run)
        for step in range(len(passes) // 2):
            pieces = list(replay.pieces(step))
            for piece in pieces:
                check(piece, passes[2 * step + piece.place.micro])
                assert replay.facts(piece, 0)["id"] == passes[2 * step + piece.place.micro]["ids"][0]
            total = sum((torch.tensor(piece.total) for piece in pieces), torch.zeros(()))
            assert float(total) == logged[step + 1]


@pytest.mark.slow
def test_parts_of_another_run(tmp_path: Path, root: Path) -> None:
    words = ["data.meta_fraction=0.25", "meta.batch_size=4", "train.batch_size=8", "augment.aa=null"]
    first, _ = train(
        tmp_path / "first",
        root,
        "meta.learn=[policy]",
        "meta.probabilities=score",
        "meta.every=1",
        "meta.fraction=1",
        *words,
    )
    words[1:2] = []
    run, passes = train(tmp_path / "second", root, f"meta.reuse={first}", *words)
    shutil.rmtree(first)
    with borrowed_process():
        replay = Replay(run)
        assert replay.go_to(3).inputs == "exact"
        for piece in replay.pieces(3):
            check(piece, passes[2 * 3 + piece.place.micro])


# ---- what is refused ----


def copied(kept: Kept, folder: Path) -> Path:
    shutil.copytree(kept[0], folder / "copy")
    return folder / "copy"


def test_an_image_that_is_not_trained_on(kept: Kept) -> None:
    with borrowed_process():
        replay = Replay(kept[0])
    tested = int(replay.trainer.parts.splits.test[0])
    with pytest.raises(DataError, match=f"--id: {tested} is in the split test; the training split has 24 images, "):
        replay.check_image(tested)
    for sample in (-1, 32):
        with pytest.raises(DataError, match=f"--id: {sample} is in no split of the 32 images"):
            replay.check_image(sample)
    for epoch in (-1, 2):
        with pytest.raises(RecipeError, match=f"--epoch: {epoch} is none of the run's, 0 to 1"):
            replay.check_epoch(epoch)
    for step in (-1, 4):
        with pytest.raises(RecipeError, match=f"--step: {step + 1} is none of the run's updates, 1 to 4"):
            replay.check_step(step)


@pytest.mark.slow
def test_other_data(tmp_path: Path, kept: Kept, root: Path) -> None:
    other = tmp_path / "images"
    shutil.copytree(root, other)
    (other / "class0" / "000.jpg").rename(other / "class0" / "renamed.jpg")
    with borrowed_process(), pytest.raises(DataError, match=r"are not those that .*step-00000004 was trained on"):
        Replay(kept[0], [f"data.root={other}"])
    shutil.rmtree(other / "class1")
    with borrowed_process(), pytest.raises(FastaugError, match="holds one class only"):
        Replay(kept[0], [f"data.root={other}"])


def test_a_recipe_that_is_another(tmp_path: Path, kept: Kept) -> None:
    with pytest.raises(RecipeError, match=r"augment\.shift=0: is part of what was trained; a replay may change data"):
        Replay(kept[0], ["augment.shift=0"])
    with pytest.raises(StorageError, match="is no run folder"):
        Replay(tmp_path)
    run = copied(kept, tmp_path)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace(f"schema: {SCHEMA}", "schema: 99"))
    with pytest.raises(RecipeError, match="was written by a later fastaug"):
        Replay(run)


def test_processes_of_runs_that_noted_none(tmp_path: Path, kept: Kept) -> None:
    from fastaug.training.replay import processes_of

    run = copied(kept, tmp_path)
    (run / "starts.jsonl").unlink()
    assert processes_of(run) == (1, None)  # of result.json
    (run / "result.json").write_text('{"processes": 3}')
    assert processes_of(run) == (3, None)
    (run / "result.json").unlink()
    shutil.copy(run / "ids-0.jsonl", run / "ids-1.jsonl")
    assert processes_of(run) == (2, None)
    for path in run.glob("ids-*"):
        path.unlink()
    count, caution = processes_of(run)
    assert count == 1
    assert "give --processes" in str(caution)
