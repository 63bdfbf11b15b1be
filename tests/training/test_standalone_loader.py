"""`fastaug.loader`: the batches of a training run, in the forms that other loops want; what it refuses."""

import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import fastaug
from fastaug.augment.pipeline import BatchAugment
from fastaug.batch import Batch
from fastaug.data.exact_loader import ExactLoader
from fastaug.errors import DataError, NoImageError, RecipeError
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Recipe
from fastaug.targets import dense
from fastaug.training.build import build_order
from fastaug.training.build_data import evaluation_loader, find_data, training_loader

SIDE, SIZE = 32, 8
SETTINGS: dict[str, Any] = {"img_size": SIDE, "threads": 1, "seed": 5}
MIXED: dict[str, Any] = {"cutmix": 1.0, "mixup": 0.2, "shift": 0.2, "smoothing": 0.1, "reprob": 0.3, "aa": "ta_wide"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, jpegs: Callable[..., Path]) -> Path:
    """22 training and 22 test images of two classes; tests only read it."""
    return jpegs(tmp_path_factory.mktemp("set") / "images", 2, 11, (40, 60), splits=("train", "val"))


def made(root: Path, batch_size: int = SIZE, **options: Any) -> ExactLoader:
    return fastaug.loader(root, batch_size, **{"device": "cpu", **SETTINGS, **options})


def recipe_of(root: Path, folder: Path, **keys: Any) -> Recipe:
    (folder / "recipe.yaml").write_text("data: {img_size: 32, threads: 1}\nrun: {seed: 5}\n")
    given = {"data.root": root, "train.batch_size": SIZE, **{f"augment.{name}": value for name, value in keys.items()}}
    return read_recipe(folder / "recipe.yaml", list(given.items()))


def trained_on(recipe: Recipe) -> Iterator[tuple[Batch, int]]:
    """The batches of a run's two first epochs, as its loop asks for them."""
    accelerator = Accelerator(cpu=True)
    parts = find_data(recipe, accelerator)
    order = build_order(recipe, accelerator, parts)
    steps = 2 * order.steps_per_epoch
    batches = training_loader(recipe, accelerator, parts, order).batches(order.requests(0, steps))
    return ((batch, step // order.steps_per_epoch) for step, batch in enumerate(batches))


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_batches_are_those_of_a_training_run(root, tmp_path):
    loader = made(root, aa="ta_wide")
    found = [batch for _ in range(2) for batch in loader]
    wanted = [batch for batch, _ in trained_on(recipe_of(root, tmp_path, aa="ta_wide"))]
    assert len(found) == len(wanted) == 6
    assert all(same(one, other) for one, other in zip(found, wanted, strict=True))
    assert found[0].images.shape == (SIZE, SIDE, SIDE, 3)


def test_soft_targets_are_those_of_a_training_run(root, tmp_path):
    recipe = recipe_of(root, tmp_path, **MIXED)
    augment, loader = BatchAugment(recipe, 2), made(root, gives="soft", **MIXED)
    found = [pair for _ in range(2) for pair in loader]
    for (images, target), (batch, epoch) in zip(found, trained_on(recipe), strict=True):
        wanted, wanted_target = augment.training(batch, epoch)
        assert torch.equal(images, wanted)
        assert same(target[:3], wanted_target[:3])
    assert any(target.mass.max() < 1 for _, target in found)
    assert min(float(target.weight.min()) for _, target in found) < 1


def test_soft_targets_as_probabilities(root):
    settings = {**MIXED, "soften": "target"}
    rows, soft = made(root, gives="dense", **settings), made(root, gives="soft", **settings)
    for (images, probabilities), (others, target) in zip(rows, soft, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(probabilities, dense(target, 2))
        assert torch.equal(target.weight, torch.ones(len(images)))


def test_shift_does_not_anneal_in_long_trainings(root):
    loader = made(root, gives="soft", shift=0.5)
    loader.set_epoch(5000)
    assert next(iter(loader))[1].mass[:, 0].min() < 0.9


def test_pairs_are_normalised_batches_flipped_where_asked_for(root):
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    plain, flipped = made(root), made(root, hflip=0.5)
    pairs, dicts = made(root, gives="pairs", hflip=0.5), made(root, gives="dict", hflip=0.5)
    some_flipped = False
    for batch, mirrored, (images, labels), pair in zip(plain, flipped, pairs, dicts, strict=True):
        wanted = (mirrored.images.permute(0, 3, 1, 2) / 255 - mean) / std
        torch.testing.assert_close(images, wanted, rtol=0, atol=1e-5)
        assert labels.dtype == torch.int64
        assert torch.equal(labels, batch.labels)
        assert torch.equal(pair["pixel_values"], images)
        assert torch.equal(pair["labels"], labels)
        for one, other in zip(batch.images, mirrored.images, strict=True):
            assert torch.equal(one, other) or torch.equal(one.flip(1), other)
            some_flipped |= not torch.equal(one, other)
    assert some_flipped


def test_evaluation_is_that_of_a_run(root, tmp_path):
    recipe, accelerator = recipe_of(root, tmp_path), Accelerator(cpu=True)
    parts = find_data(recipe, accelerator)
    loader = made(root, split="test", crop_pct=0.875)
    found = list(loader)
    ids = torch.cat([batch.ids for batch in found])
    assert ids.tolist() == parts.splits.test.tolist()
    augment = BatchAugment(recipe, 2)
    for batch, (images, labels) in zip(found, made(root, split="test", gives="pairs"), strict=True):
        assert torch.equal(images, augment.evaluation(batch))
        assert torch.equal(labels, batch.labels)
    source = evaluation_loader(recipe, accelerator, parts, parts.splits.test)
    assert same(next(iter(loader)), next(iter(source.batches(loader.order.requests(0, 1)))))


def test_a_last_batch_of_one_image_is_not_filled_up(root):
    loader = made(root, 7, gives="soft")
    *_, (images, target) = loader
    assert len(images) == len(target.mass) == 1


def test_splits_by_fraction_and_modes(jpeg_folder):
    root = jpeg_folder(images=10)
    sizes = {}
    for split in ("train", "select", "test"):
        loader = made(root, 2, split=split, mode="eval", test_fraction=0.2, select_fraction=0.1)
        sizes[split] = sum(len(batch.ids) for batch in loader)
    assert sizes == {"train": 14, "select": 2, "test": 4}
    assert sum(len(batch.ids) for batch in made(root)) == 20  # no test split is wanted of a training loader
    assert len(made(root, 2, split="select", mode="train", select_fraction=0.2, sampling="balanced")) == 2
    with pytest.raises(DataError, match=r"split: test has no image \(train 20, meta 0, select 0, test 0\)"):
        made(root, split="test")


def test_loaders_of_two_sets_do_not_take_each_others_states(root, jpeg_folder):
    state = made(root).state_dict()
    made(root).load_state_dict(state)
    with pytest.raises(RecipeError, match="set: the state was saved on other images"):
        made(jpeg_folder(images=11)).load_state_dict(state)
    with pytest.raises(RecipeError, match="split: the state was saved with 'train', and this loader has 'test'"):
        made(root, split="test", mode="train").load_state_dict(state)


def test_no_thread_is_left(root):
    import gc
    import threading

    before = set(threading.enumerate())
    loader = made(root, aa="ta_wide")
    list(loader)
    for _ in loader:
        break
    left = {thread.name.rpartition("_")[0] for thread in set(threading.enumerate()) - before}
    assert left <= {"fastaug-resize"}  # these wait, as long as there is the loader
    del loader
    gc.collect()
    deadline = time.monotonic() + 10  # threads that were told to end do so when they are next given the processor
    while not set(threading.enumerate()) <= before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before


# ---- damaged files ----


@pytest.fixture
def damaged(jpeg_folder: Callable[..., Path]) -> Path:
    """20 images of two classes, of which three are cut off: one in the middle of its pixels."""
    root = jpeg_folder(images=10)
    for name, size in (("class0/001.jpg", 40), ("class0/002.jpg", 0), ("class1/003.jpg", 500)):
        (root / name).write_bytes((root / name).read_bytes()[:size])
    return root


def test_damaged_images_are_skipped_and_told(damaged):
    loader = made(damaged)
    assert sum(len(batch.ids) for batch in loader) == 17
    assert sorted(Path(loader.path(i)).name for i in loader.skipped) == ["001.jpg", "002.jpg", "003.jpg"]
    assert loader.state_dict()["images"] == 20
    assert loader.classes == ("class0", "class1")


def test_damaged_images_can_be_an_error(damaged):
    loader = made(damaged, damaged="raise")
    with pytest.raises(DataError, match=r"00\d\.jpg: .+; repair or remove it, or set damaged='skip'"):
        list(loader)


def test_a_batch_without_an_image_is_left_out_unless_processes_wait_for_it(damaged):
    loader = made(damaged, 1)
    assert sum(1 for _ in loader) == 17
    assert len(loader) == 20
    with pytest.raises(NoImageError, match=r"no image of a batch of process \d can be read, and the others wait"):
        list(chain(*(made(damaged, 2, rank=rank, world=2) for rank in (0, 1))))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "split: 'val' is not one of train, meta, select, test; a folder val/ is the split test"),
        ({"mode": "valid"}, "mode: 'valid' is not one of train, eval"),
        ({"gives": "tuple"}, "gives: 'tuple' is not one of batch, pairs, dict, soft, dense"),
        ({"damaged": "ignore"}, "damaged: 'ignore' is not one of skip, raise"),
        ({"batch_size": 0}, "batch_size: 0 is no number of images"),
        ({"img_sise": 32}, "img_sise: no setting of a loader; did you mean 'img_size'"),
        ({"img_size": "32"}, "^img_size: expected .+, got '32'"),
        ({"scale": (0.5, 1.5)}, "^scale"),
        ({"aa": "rand-x9"}, "^aa: "),
        ({"mean": "auto"}, "mean: auto is what a network wants"),
        ({"loader": "synthetic"}, "loader: synthetic reads no images"),
        ({"repeats": 3}, "^repeats: 3 does not divide batch_size = 8"),
        ({"split": "test", "hflip": 0.5}, "hflip: acts in training, and this loader is for evaluation"),
        ({"split": "test", "crop": "rrc"}, "crop: acts in training"),
        ({"split": "test", "gives": "soft"}, "gives: soft is for training"),
        ({"cutmix": 1.0}, "cutmix: acts on normalised images; leave it out, or set gives to soft"),
        ({"gives": "pairs", "smoothing": 0.1}, "smoothing: is for soft targets, and gives=pairs has labels"),
        (
            {"gives": "dense", "shift": 0.3},
            "soften: both gives images loss weights, for which gives=dense has no place",
        ),
        ({"rank": 1}, "rank: is one of `world` processes; give both"),
        ({"rank": 2, "world": 2}, "rank: 2 is not one of 0 to world - 1 = 1"),
        ({"device": "gpu"}, "device: 'gpu' is none that torch knows"),
    ],
)
def test_settings_that_are_refused(root, options, message):
    with pytest.raises(RecipeError, match=message):
        made(root, **options)


def test_a_root_that_is_no_path_is_refused():
    with pytest.raises(RecipeError, match="root: None is no path"):
        made(None)


def test_every_problem_is_told_at_once(root):
    with pytest.raises(RecipeError) as caught:
        made(root, split="dev", gives="x", nonsense=1)
    assert [text.partition(":")[0] for text in caught.value.problems] == ["gives", "split", "nonsense"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 23, "drop_last": True}, "23 is larger than the split of 22 images, and drop_last leaves none"),
        ({"batch_size": 7, "rank": 0, "world": 2}, "the last batch of an epoch has 1 images for 2 processes"),
        ({"batch_size": 2, "rank": 0, "world": 3}, "every batch of an epoch has 2 images for 3 processes"),
    ],
)
def test_batches_that_do_not_suit_the_split_are_refused(root, options, message):
    with pytest.raises(DataError, match=message):
        made(root, **options)


def test_other_forms_of_sets_are_read(tmp_path):
    """Arrays of MNIST's kind are a root as they are for a recipe; grey, and kept in memory."""
    for split in ("train", "t10k"):
        pixels = bytes(range(250)) * 4 * 20
        files = {
            "images-idx3": (2051, (20, 28, 28), pixels[: 20 * 784]),
            "labels-idx1": (2049, (20,), bytes(range(10)) * 2),
        }
        for name, (magic, sizes, data) in files.items():
            head = b"".join(number.to_bytes(4) for number in (magic, *sizes))
            (tmp_path / f"{split}-{name}-ubyte").write_bytes(head + data)
    loader = made(f"mnist:{tmp_path}", 8, img_size=28, crop="whole", loader="resident", verify=False)  # type: ignore[arg-type]
    assert [len(batch.ids) for batch in loader] == [8, 8, 4]
    grey = made(f"mnist:{tmp_path}", 8, img_size=28, channels=1, mean=[0.1], std=[0.3], verify=False)  # type: ignore[arg-type]
    assert next(iter(grey)).images.shape == (8, 28, 28, 1)
