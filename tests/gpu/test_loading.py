"""Decoding on a device against decoding on the CPU: pixels, identity, hand-over, damage."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastaug.batch import Batch
from fastaug.data.sampler import evaluation_requests
from fastaug.training.build import Trainer

MEAN_DIFFERENCE = 3  # of 255, of the project's contract for fixed crops


def training(trainer: Trainer, steps: int) -> list[Batch]:
    """The first training batches."""
    return list(trainer.loader.batches(trainer.order.requests(0, steps)))


def evaluated(trainer: Trainer) -> list[Batch]:
    """All test batches."""
    ids = trainer.parts.splits.test
    return list(trainer.evaluator.loader.batches(evaluation_requests(ids, 8, 1, 0)))


CUTS = [("rrc", "bilinear", "dali"), ("rrc", "bicubic", "dali"), ("center", "bilinear", "resident")]


@pytest.mark.parametrize(
    ("device", "kind", "interpolation", "loader"),
    [("cpu", *CUTS[0]), *(pytest.param("cuda", *cut, marks=pytest.mark.gpu) for cut in CUTS)],
    indirect=["device"],
)
def test_same_pixels_labels_and_ids_as_on_the_cpu(
    device: torch.device,
    make_trainer: Callable[..., Trainer],
    jpeg_folder: Callable[..., Path],
    kind: str,
    interpolation: str,
    loader: str,
) -> None:
    words = [f"data.root={jpeg_folder(images=16)}", f"data.crop={kind}", f"data.interpolation={interpolation}"]
    words.append(f"data.loader={loader}")
    for batches in (lambda trainer: training(trainer, 3), evaluated):
        expected = batches(make_trainer(torch.device("cpu"), *words))
        for want, got in zip(expected, batches(make_trainer(device, *words)), strict=True):
            assert got.images.device.type == got.labels.device.type == device.type
            assert got.ids.device.type == got.draws.device.type == "cpu"
            assert torch.equal(got.ids, want.ids)
            assert torch.equal(got.labels.cpu(), want.labels)
            difference = (got.images.cpu().float() - want.images.float()).abs().mean()
            assert difference <= MEAN_DIFFERENCE


@pytest.mark.parametrize("loader", ["dali", "resident", "synthetic"])
def test_a_fixed_policy_is_applied_on_the_host_with_the_pixels_of_the_cpu(
    device: torch.device, make_trainer: Callable[..., Trainer], jpeg_folder: Callable[..., Path], loader: str
) -> None:
    words = [f"data.loader={loader}", "augment.aa=ta_wide"]
    words += ["data.test_fraction=0"] if loader == "synthetic" else [f"data.root={jpeg_folder(images=16)}"]
    words += ["data.crop=center"] if loader == "resident" else []
    expected = training(make_trainer(torch.device("cpu"), *words), 3)
    for want, got in zip(expected, training(make_trainer(device, *words), 3), strict=True):
        assert got.images.device.type == got.labels.device.type == device.type
        assert torch.equal(got.images.cpu(), want.images)
        assert torch.equal(got.labels.cpu(), want.labels)


def test_a_held_batch_stays_as_it_was(
    device: torch.device, make_trainer: Callable[..., Trainer], jpeg_folder: Callable[..., Path]
) -> None:
    """The hand-over copies nothing, so the loader must not write again into a batch that somebody holds."""
    trainer = make_trainer(device, f"data.root={jpeg_folder(images=16)}")
    batches = trainer.loader.batches(trainer.order.requests(0, 8))
    held = [(batch, batch.images.clone()) for batch in itertools.islice(batches, 8)]
    assert all(torch.equal(batch.images, copy) for batch, copy in held)
    assert len({batch.images.data_ptr() for batch, _ in held}) == len(held)


@pytest.mark.filterwarnings("ignore:.* was changed since it was indexed")
def test_a_damaged_image_is_left_out(
    device: torch.device, make_trainer: Callable[..., Trainer], jpeg_folder: Callable[..., Path]
) -> None:
    root = jpeg_folder(images=16)
    trainer = make_trainer(device, f"data.root={root}")
    damaged = int(trainer.parts.splits.train[3])
    path = Path(trainer.parts.name_of(damaged))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[20:middle] = bytes(middle - 20)  # tables gone, both ends in place: the index cannot tell
    path.write_bytes(content)
    seen = torch.cat([batch.ids for batch in training(trainer, trainer.order.steps_per_epoch)])
    assert sorted(seen.tolist()) == sorted(set(trainer.parts.splits.train.tolist()) - {damaged})
    assert set(trainer.loader.skipped) == {damaged}
