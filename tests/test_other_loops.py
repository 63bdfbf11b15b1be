"""The op in loops that are not fastaug's: plain PyTorch and Lightning, on real runs of a few updates."""

import math
import statistics
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fastaug.lightning_callback import CropMixCallback
from fastaug.ops.crop_mix import Sampling, crop_mix, identity_params, sample_crop_mix
from fastaug.seeding import Key, Stream
from fastaug.targets import SoftTarget, dense, soft_cross_entropy

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning"),  # Lightning itself
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),  # on purpose: a set in memory
]
SIDE, CLASSES = 16, 2
MIX = Sampling(sigma=0.2, cutmix=1.0, hflip=0)
STATISTICS: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


class Crops(Dataset[Any]):
    """48 crops of two photographs, a class each; samples as tuples with or without ids, or as dicts."""

    def __init__(self, photos: list[Any], form: str = "ids", as_float: bool = False) -> None:
        self.form, self.as_float = form, as_float
        self.images = [
            torch.from_numpy(photos[i % 2][i * 4 : i * 4 + SIDE, i * 9 : i * 9 + SIDE].copy()) for i in range(48)
        ]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        image = self.images[i].permute(2, 0, 1) / 255 if self.as_float else self.images[i]
        if self.form == "dict":
            return {"images": image, "labels": i % 2, "ids": i}
        return (image, i % 2, i) if self.form == "ids" else (image, i % 2)

    def loader(self, **options: Any) -> DataLoader[Any]:
        return DataLoader(self, batch_size=16, **options)


class Classifier(LightningModule):
    """A linear classifier that keeps what its steps were given."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, CLASSES))
        for parameter in self.network.parameters():
            nn.init.zeros_(parameter)
        self.seen: list[tuple[Tensor, SoftTarget]] = []
        self.validated: list[Any] = []
        self.losses: list[float] = []

    def training_step(self, batch: Any, _: int) -> Tensor:
        images, target = (batch["images"], batch["labels"]) if isinstance(batch, dict) else batch[:2]
        self.seen.append((images, target))
        loss = soft_cross_entropy(self.network(images), target)
        self.losses.append(loss.item())
        self.log("loss", loss, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(data: Any, callback: CropMixCallback, epochs: int = 1, validation: Any = None, **options: Any) -> Classifier:
    module = Classifier()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"enable_checkpointing": False, "num_sanity_val_steps": 0, **options}
    Trainer(max_epochs=epochs, accelerator="cpu", devices=1, callbacks=[callback], **quiet, **options).fit(
        module, data, validation or data
    )
    return module


def expected(
    data: Crops, epoch: int = 0, ids: Any = None, strength: float = 1.0
) -> Iterator[tuple[Tensor, SoftTarget]]:
    """What each batch of an epoch has to become."""
    for start in range(0, len(data), 16):
        images = torch.stack(data.images[start : start + 16])
        rows = range(start, start + 16) if ids is None else ids[start : start + 16]
        options = {**STATISTICS, "strength": strength}
        params = sample_crop_mix(Key(0, epoch, Stream.MIX), list(rows), (SIDE, SIDE), MIX, **options)
        yield crop_mix(images, torch.arange(start, start + 16) % 2, params, classes=CLASSES, **STATISTICS)


def assert_equal(seen: list[tuple[Tensor, SoftTarget]], wanted: Any, atol: float = 0) -> None:
    for (images, target), (images_wanted, target_wanted) in zip(seen, wanted, strict=True):
        torch.testing.assert_close(images, images_wanted, rtol=0, atol=atol)
        torch.testing.assert_close(dense(target, CLASSES), dense(target_wanted, CLASSES), rtol=0, atol=0)
        torch.testing.assert_close(target.weight, target_wanted.weight, rtol=0, atol=0)


@torch.no_grad()
def assert_learned(network: nn.Module, losses: list[float], data: Crops) -> None:
    """The loss fell: in training, where mixed targets keep it up, and more so on the plain images."""
    params = identity_params(len(data), torch.zeros(3))
    labels = torch.arange(len(data)) % 2
    images, target = crop_mix(torch.stack(data.images), labels, params, classes=CLASSES, **STATISTICS)
    plain = soft_cross_entropy(network(images), target).item()
    assert statistics.mean(losses[-6:]) < 0.9 * losses[0]
    assert plain < 0.6 * math.log(CLASSES)


def test_plain_loop(photos):
    torch.manual_seed(0)  # of the shuffling
    data, model = Crops(photos), Classifier().network
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.05), []
    for epoch in range(10):
        for images, labels, ids in data.loader(shuffle=True):
            params = sample_crop_mix(Key(0, epoch, 0), ids, images.shape[1:3], MIX, **STATISTICS)
            images, target = crop_mix(images, labels, params, classes=CLASSES, **STATISTICS)
            loss = soft_cross_entropy(model(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert_learned(model, losses, data)


@pytest.mark.parametrize("form", ["ids", "dict"])
def test_lightning_steps_get_mixed_images_and_soft_targets(photos, form):
    data = Crops(photos, form)
    module = fit(data.loader(), CropMixCallback(CLASSES, MIX, **STATISTICS), epochs=2)
    assert_equal(module.seen, [*expected(data), *expected(data, epoch=1)])
    masses = torch.cat([target.mass for _, target in module.seen])
    assert ((masses[:, 1] > 0) & (masses.sum(1) < 1)).any()  # some are mixed and soft: the test compares no identities


def test_lightning_floats_equal_bytes(photos):
    module = fit(Crops(photos, as_float=True).loader(), CropMixCallback(CLASSES, MIX, **STATISTICS))
    assert_equal(module.seen, expected(Crops(photos)), atol=1e-5)


def test_lightning_loss_falls_and_validation_is_untouched(photos):
    data = Crops(photos)
    module = fit(data.loader(), CropMixCallback(CLASSES, MIX, **STATISTICS), epochs=10, validation=data.loader())
    assert_learned(module.network, module.losses, data)
    for batch, plain in zip(module.validated[:3], data.loader(), strict=True):
        for found, wanted in zip(batch, plain, strict=True):
            assert torch.equal(found, wanted)


def test_lightning_counts_samples_that_have_no_ids(photos):
    data, order = Crops(photos, "plain"), list(range(48))
    module = fit(data.loader(), CropMixCallback(CLASSES, MIX, **STATISTICS), epochs=2)
    assert_equal(module.seen, [*expected(data, ids=order), *expected(data, epoch=1, ids=order)])


def test_lightning_counter_goes_on_from_its_state(photos):
    data = Crops(photos, "plain")
    callback = CropMixCallback(CLASSES, MIX, **STATISTICS)
    callback.load_state_dict({"epoch": 0, "met": 16})
    module = fit(data.loader(), callback, limit_train_batches=2)
    first = next(expected(data, ids=list(range(16, 32))))
    assert_equal(module.seen[:1], [first])
    assert callback.state_dict() == {"epoch": 0, "met": 48}


def test_lightning_batches_kept_by_the_loader_stay_whole(photos):
    """A loader may hand out the same list in every epoch."""
    batches = [list(batch) for batch in Crops(photos).loader()]
    loader = DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)
    module = fit(loader, CropMixCallback(CLASSES, MIX, **STATISTICS), epochs=2)
    assert_equal(module.seen, [*expected(Crops(photos)), *expected(Crops(photos), epoch=1)])
    assert all(batch[0].dtype == torch.uint8 for batch in batches)


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (lambda samples: tuple(torch.utils.data.default_collate(samples)), "found a tuple; return one from collate_fn"),
        (lambda samples: {"pixels": samples[0][0]}, r"found a dict of \['pixels'\]"),
    ],
)
def test_lightning_refuses_batches_it_cannot_change(photos, collate, message):
    with pytest.raises(ValueError, match=message):
        fit(Crops(photos).loader(collate_fn=collate), CropMixCallback(CLASSES, MIX, **STATISTICS))


def test_lightning_takes_other_keys(photos):
    data = Crops(photos, "plain")
    callback = CropMixCallback(CLASSES, MIX, **STATISTICS, keys=("images", "labels", "number"))
    batches = [{"images": i, "labels": c, "number": c * 0 + 5} for i, c in data.loader()]
    module = fit(DataLoader(batches, batch_size=None), callback)
    assert_equal(module.seen, expected(data, ids=[5] * 48))


def test_lightning_anneals_the_shift_in_the_last_epochs(photos):
    data = Crops(photos)
    callback = CropMixCallback(CLASSES, MIX, **STATISTICS, anneal_epochs=2, anneal_factor=50)
    module = fit(data.loader(), callback, epochs=3)
    wanted = [*expected(data), *expected(data, 1, strength=1 / 50), *expected(data, 2, strength=1 / 50)]
    assert_equal(module.seen, wanted)
    confidence = [target.mass.sum(1).mean() for _, target in module.seen]
    assert confidence[0] < confidence[3] == confidence[6] == 1  # sigma of 0.06 pixels: all whole


@pytest.mark.parametrize("limits", [{"epochs": 2}, {"epochs": -1, "max_steps": 5}])
def test_lightning_annealing_needs_a_longer_training(photos, limits):
    callback = CropMixCallback(CLASSES, MIX, **STATISTICS, anneal_epochs=2)
    with pytest.raises(ValueError, match="anneal_epochs = 2 needs a Trainer with more max_epochs"):
        fit(Crops(photos).loader(), callback, **limits)


@pytest.mark.parametrize("change", [{"anneal_epochs": -1}, {"anneal_factor": 0.5}, {"anneal_factor": float("nan")}])
def test_lightning_annealing_is_checked(change):
    with pytest.raises(ValueError, match="anneal_epochs must be >= 0, anneal_factor >= 1"):
        CropMixCallback(CLASSES, MIX, **change)
