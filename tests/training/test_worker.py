"""Runs in this process: how they end, on sound data and on data that cannot be used, with a code and a reason."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from fastaug.data.sampler import Order
from fastaug.recipe.network_names import ZOO
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import SMALLEST_BATCH, Recipe
from fastaug.training.worker import run


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def attempt(tmp_path):
    """attempt("key=value", ...) -> (exit code, reason in status.json)."""

    def start(*overrides):
        path = tmp_path / "r.yaml"
        path.write_text(
            "model: {name: test_resnet}\ndata: {img_size: 32, threads: 1}\ntrain: {epochs: 1, batch_size: 4}"
        )
        code = run(read_recipe(path, [f"run.dir={tmp_path / 'run'}", *overrides]))
        ended = json.loads((tmp_path / "run" / "status.json").read_text())
        assert ended["code"] == code
        assert ended["step"] == 0
        return code, ended["reason"]

    return start


def test_missing_folder(attempt, tmp_path):
    code, reason = attempt(f"data.root={tmp_path / 'nowhere'}")
    assert code == 3
    assert "nowhere" in reason


def test_no_classes(attempt, tmp_path):
    (tmp_path / "empty").mkdir()
    code, reason = attempt(f"data.root={tmp_path / 'empty'}")
    assert code == 3
    assert "holds no class folders" in reason


def test_empty_class(attempt, jpeg_folder):
    root = jpeg_folder(classes=2, images=4)
    (root / "hollow").mkdir()
    code, reason = attempt(f"data.root={root}", "data.test_fraction=0.5")
    assert code == 3
    assert "hollow" in reason


def test_classes_that_differ(attempt, jpeg_folder):
    root = jpeg_folder(classes=2, images=4, splits=("train", "val"))
    first = sorted(path for path in (root / "val").iterdir())[0]
    first.rename(root / "val" / "stranger")
    code, reason = attempt(f"data.root={root}")
    assert code == 3
    assert "stranger" in reason
    assert first.name in reason


def test_one_image(attempt, jpeg_folder):
    root = jpeg_folder(classes=1, images=1)
    code, reason = attempt(f"data.root={root}", "data.test_fraction=0.5")
    assert code == 3
    assert reason


def test_batch_larger_than_the_set(attempt, jpeg_folder):
    root = jpeg_folder(classes=2, images=4)
    code, reason = attempt(f"data.root={root}", "data.test_fraction=0.5", "train.batch_size=64")
    assert code == 3
    assert "train.batch_size: 64" in reason
    assert "4 images" in reason


def test_overlapping_splits(attempt, jpeg_folder, tmp_path):
    root = jpeg_folder(classes=2, images=4)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("0\n1\n4\n5\n")
    (lists / "test.txt").write_text("5\n6\n")
    code, reason = attempt(f"data.root={root}", f"data.splits={lists}")
    assert code == 3
    assert "train and test share 1 images" in reason
    assert "id 5" in reason


def test_a_last_batch_of_one_image_is_refused(attempt, jpeg_folder):
    root = jpeg_folder(classes=2, images=5)
    code, reason = attempt(f"data.root={root}", "data.test_fraction=0.1", "train.batch_size=7")
    assert code == 3
    assert "train.drop_last=true" in reason


def test_unknown_network(attempt, jpeg_folder):
    root = jpeg_folder(classes=2, images=4)
    code, reason = attempt(f"data.root={root}", "data.test_fraction=0.5", "model.name=resnet_18")
    assert code == 2
    assert "model.name" in reason


def test_a_tracker_that_is_not_installed(attempt, jpeg_folder):
    code, reason = attempt(f"data.root={jpeg_folder()}", "data.test_fraction=0.5", "run.trackers=[csv, aim]")
    assert code == 2
    assert "pip install aim" in reason


SMALL = [
    *("data.img_size=28", "data.test_fraction=0.3", "data.threads=1", "model.name=test_resnet", "train.batch_size=8"),
    *(
        "train.epochs=1",
        "optim.opt=adamw",
        "optim.lr=1e-3",
        "eval.batch_size=16",
        "run.log_ids=true",
        "run.log_every=1",
    ),
    *("augment.shift=0.1", "augment.cutmix=1.0"),
]


@pytest.fixture
def train(tmp_path, jpeg_folder):
    """train("key=value", ..., name="run") -> (exit code, run folder): 40 training and 16 test images of two classes."""
    root = jpeg_folder(classes=2, images=28)
    (tmp_path / "small.yaml").write_text(f"data: {{root: {root}}}")

    def start(*overrides, name="run"):
        folder = tmp_path / name
        code = run(read_recipe(tmp_path / "small.yaml", [*SMALL, f"run.dir={folder}", *overrides]))
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return code, folder

    start.root = root
    return start


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def status(folder):
    return json.loads((folder / "status.json").read_text())


def test_select_picks_the_best_checkpoint_and_it_is_kept(train):
    code, folder = train("data.select_fraction=0.2", "train.epochs=5", "run.keep=1")
    assert code == 0
    result = json.loads((folder / "result.json").read_text())
    kept = {path.name for path in (folder / "checkpoints").glob("step-*")}
    last = (folder / "checkpoints" / "last").read_text()
    assert kept == {last, f"step-{result['best']['step']:08d}"}
    log = lines(folder / "metrics.jsonl")
    assert result["best"]["select_top1"] == max(line["top1"] for line in log if line["event"] == "select")
    assert [line["epoch"] for line in log if line["event"] == "test"] == [5]  # test is looked at once, at the end


@pytest.mark.filterwarnings("ignore:changed since the index")
def test_damaged_images_are_skipped_named_and_counted(train):
    """Two are damaged when the index is made; two more are damaged behind its back, between two runs."""
    damage = {"class0/003.jpg": 300, "class1/005.jpg": 0, "class0/007.jpg": 400, "class0/011.jpg": 500}
    for name in ("class0/003.jpg", "class1/005.jpg"):
        os.truncate(train.root / name, damage[name])
    assert train(name="first")[0] == 0
    for name in ("class0/007.jpg", "class0/011.jpg"):
        os.truncate(train.root / name, damage[name])
    code, folder = train("train.epochs=2")
    assert code == 0
    named = {Path(line["path"]).relative_to(train.root).as_posix() for line in lines(folder / "skipped.jsonl")}
    assert named == damage.keys()
    result = json.loads((folder / "result.json").read_text())
    assert result["skipped_images"] == 4
    assert result["test"]["images"] + result["test"]["skipped"] == 16
    used = [i for line in lines(folder / "ids-0.jsonl") if line["epoch"] == 0 for i in line["ids"]]
    assert len(used) == len(set(used)) == 40 - (4 - result["test"]["skipped"])


@pytest.mark.slow
def test_damaged_images_are_counted_once_where_images_to_evaluate_came_and_moved_their_numbers(train):
    """Images behind those of training, as test/ is behind train/, may come while a run is stopped."""
    for name in ("train", "val"):
        (train.root / name).mkdir()
    for label in ("class0", "class1"):
        (train.root / "val" / label).mkdir()
        for path in sorted((train.root / label).iterdir())[:4]:
            path.rename(train.root / "val" / label / path.name)
        (train.root / label).rename(train.root / "train" / label)
    os.truncate(train.root / "val/class0/003.jpg", 300)
    overrides = ("data.test_fraction=0", "run.checkpoint_every=1", "eval.every=1")
    code, folder = train("train.epochs=2", *overrides)
    assert code == 0
    shutil.rmtree(max((folder / "checkpoints").glob("step-*")))  # as if killed behind the one before
    (train.root / "val/class0/000b.jpg").write_bytes((train.root / "val/class0/001.jpg").read_bytes())
    assert train("train.epochs=2", *overrides)[0] == 0
    (line,) = lines(folder / "skipped.jsonl")
    assert line["path"].endswith("val/class0/003.jpg")
    result = json.loads((folder / "result.json").read_text())
    assert (result["skipped_images"], result["test"]["images"], result["test"]["skipped"]) == (1, 8, 1)


def test_a_batch_of_damaged_images_alone_does_not_end_the_run(train):
    for path in (train.root / "class0").iterdir():
        os.truncate(path, 300)
    code, folder = train("train.batch_size=4", "train.accumulate=2", "data.split_seed=1")
    assert code == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["skipped_images"] == 28
    assert min(len(line["ids"]) for line in lines(folder / "ids-0.jsonl")) < 2


def test_a_loss_that_is_not_finite_stops_before_the_update(train):
    settings = ["optim.opt=sgd", "optim.lr=1e30", "optim.sched=constant", "run.checkpoint_every=1", "eval.every=0"]
    code, folder = train(*settings)
    assert code == status(folder)["code"] == 4
    assert f"not finite in update {status(folder)['step']};" in status(folder)["reason"]
    saved = sorted((folder / "checkpoints").glob("step-*"))[-1]
    assert int(saved.name[5:]) == status(folder)["step"]


def test_the_recipe_of_a_started_run_cannot_change(train, tmp_path, capsys):
    assert train()[0] == 0
    ended = status(folder := tmp_path / "run")
    assert ended["code"] == 0
    assert train("optim.lr=0.5")[0] == 2
    assert "optim.lr: is 0.5 but this run was started with 0.001" in capsys.readouterr().out
    assert status(folder) == ended  # of the run that is there, not of the start that was refused
    assert train("run.log_every=3")[0] == 0


def test_a_run_does_not_continue_on_other_images(train):
    assert train()[0] == 0
    (train.root / "class0" / "003.jpg").rename(train.root / "class0" / "003b.jpg")
    code, folder = train()
    assert code == 3
    assert "not those that" in (folder / "errors.log").read_text()
    assert status(folder)["code"] == 0  # the run that ended on the old ones is still there


def test_advice_of_a_start_that_trained_nothing_can_be_followed(train):
    code, folder = train("data.test_fraction=0")
    assert code == status(folder)["code"] == 3
    assert "data.test_fraction" in status(folder)["reason"]
    assert train()[0] == status(folder)["code"] == 0


@pytest.mark.parametrize(
    "settings", [["train.precision=bf16"], ["model.ema=true", "eval.weights=ema"], ["optim.clip_grad=0.1"]]
)
def test_settings_of_training_run_to_a_result(train, settings):
    code, folder = train(*settings)
    assert code == 0
    assert json.loads((folder / "result.json").read_text())["test"]["images"] == 16


SHAKEN = ["model.name=pyramidnet_110_a84", "model.kwargs={depth: 8, alpha: 6, shakedrop: 0.9}", "data.img_size=16"]


def test_a_shaken_network_continues_exactly(train, tmp_path):
    """From the middle of an epoch, as if killed behind an earlier checkpoint."""
    _, folder = train(*SHAKEN, "run.checkpoint_every=2", name="whole")
    shutil.copytree(folder, tmp_path / "cut")
    last = max((folder / "checkpoints").glob("step-*"))
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / last.name)
    code, cut = train(*SHAKEN, "run.checkpoint_every=2", name="cut")
    assert code == 0
    found = [load_file(run / "checkpoints" / last.name / "model.safetensors") for run in (folder, cut)]
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == []


def test_a_shaken_network_takes_meta_steps(train):
    """For weights of images; what passes through pixels is refused."""
    meta = ["data.meta_fraction=0.2", "meta.batch_size=4", "meta.learn=[weights]", "meta.every=1", "optim.opt=sgd"]
    code, folder = train(*SHAKEN, *meta)
    assert code == 0
    assert any(line["event"] == "meta" for line in lines(folder / "metrics.jsonl"))


@pytest.mark.slow
def test_compiled_training_gives_the_losses_of_eager_training(train):
    losses = []
    for compiled in ("false", "true"):
        code, folder = train(f"model.compile={compiled}", "model.kwargs={norm_layer: groupnorm1}", name=compiled)
        assert code == 0
        losses.append([line["loss"] for line in lines(folder / "metrics.jsonl") if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


ALWAYS = {  # trained whenever tests run: each has what no other of them has
    *("imagenet_sa", "imagenet_a1", "imagenet_sa_meta", "imagenet_bilevel", "fine_tune", "mnist5k_policy"),
    *("mnist5k_smart", "svhn_autodo", "cifar10n", "cifar100_cutmix_shakedrop"),
}
RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
SHRUNK = [
    *("data.test_fraction=0.3", "data.threads=1", "data.img_size=20", "model.name=test_resnet"),
    "model.pretrained=false",
    *("train.epochs=1", "train.accumulate=1", "train.precision=no", "eval.batch_size=16"),
    *("augment.anneal_epochs=0", "optim.warmup_epochs=0", "run.log_every=1"),
]
# 4 of the 16 training images; the third update has a meta step at any K, behind the two that Adam needs to settle.
META = ["data.meta_fraction=0.2", "meta.batch_size=4", "meta.start_epochs=0", "meta.settle_epochs=0"]
THIN = {"wrn": {"depth": 10, "widen": 1}, "pyramidnet": {"depth": 11, "alpha": 6}}


def shrunk(given: Recipe) -> list[str | tuple[str, object]]:
    """What makes of a recipe a training of seconds: fewer and smaller images, copies and layers, nothing turned off."""
    batch = 4 if given.augment.repeats == 1 else 2 * given.augment.repeats
    found: list[str | tuple[str, object]] = [*SHRUNK, f"train.batch_size={batch}"]
    found += [f"augment.mix_group={batch}"] if given.augment.mix_group else []
    found += ["augment.copies=1"] if given.augment.copies else []
    found += ["optim.decay_milestones=[1]"] if given.optim.sched == "multistep" else []
    found += ["eval.img_size=32"] if given.eval.img_size else []
    found += ["eval.tta=2"] if given.eval.tta else []
    found += ["train.resize=[[0, 24]]"] if given.train.resize else []
    if given.model.name in ZOO:
        thin = THIN[given.model.name.split("_")[0]]
        found += [("model.name", given.model.name), ("model.kwargs", given.model.kwargs | thin)]
    found += META if given.meta.learn else []
    found += (
        ["meta.engine=forward"] if given.meta.learn and given.meta.engine == "auto" else []
    )  # what auto tries first
    return found


@pytest.fixture(scope="module")
def few_images(tmp_path_factory, jpegs):
    return jpegs(tmp_path_factory.mktemp("few") / "images", classes=2, images=12)


@pytest.mark.parametrize(
    "path",
    [path if path.stem in ALWAYS else pytest.param(path, marks=pytest.mark.slow) for path in RECIPES],
    ids=lambda path: path.stem,
)
def test_every_recipe_trains_on_a_small_folder(path, few_images, tmp_path):
    """A few updates of a small network: that the keys go together, not that the claim at the recipe's head holds."""
    given = read_recipe(path)
    recipe = read_recipe(path, [f"data.root={few_images}", f"run.dir={tmp_path / 'run'}", *shrunk(given)])
    assert run(recipe) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["images_seen"] == (12 if given.meta.learn or given.augment.repeats > 1 else 16)
    assert result["test"]["images"] == 8
    log = lines(tmp_path / "run" / "metrics.jsonl")
    assert all(0 < line["loss"] < 100 for line in log if "loss" in line)
    assert any(line["event"] == "meta" for line in log) == bool(given.meta.learn)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("path", [path for path in RECIPES if "imagenet" in path.stem], ids=lambda path: path.stem)
def test_imagenet_recipes_suit_the_size_of_imagenet(path, world):
    recipe = read_recipe(path)
    train, augment = recipe.train, recipe.augment
    keys = {"accumulate": train.accumulate, "drop_last": train.drop_last, "group": augment.mix_group or 1}
    Order(np.arange(1_281_167), 0, train.batch_size, world, **keys).check(SMALLEST_BATCH)


def test_a_largest_confidence_below_chance_is_refused(train):
    code, folder = train("augment.soften_p_max=0.3")
    assert code == 2
    assert "augment.soften_p_max" in status(folder)["reason"]


def test_the_other_class_is_trained_and_left_out_of_the_figures(train):
    code, folder = train("augment.cutmix=0", "augment.shift=0.4", "augment.other_class=true", "augment.soften=target")
    assert code == 0
    assert json.loads((folder / "result.json").read_text())["test"]["top5"] == 1.0  # of two classes, not three


def test_repeated_augmentation_and_a_hidden_layer_train_to_a_result(train):
    code, folder = train("augment.repeats=2", "augment.shift=0", "augment.mix_layer=layer1")
    assert code == 0
    ids = [line["ids"] for line in lines(folder / "ids-0.jsonl")]
    assert all(sorted(set(step)) == sorted(step)[::2] == sorted(step)[1::2] for step in ids)
