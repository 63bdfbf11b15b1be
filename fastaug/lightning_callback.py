"""Soft crop and mixing for a Lightning Trainer: a callback that augments training batches on their device.

    trainer = lightning.Trainer(callbacks=[CropMixCallback(1000, Sampling(sigma=0.3, cutmix=1.0))])

    def training_step(self, batch, batch_idx):
        images, target = batch[:2]
        loss = soft_cross_entropy(self(images), target)
        self.log("loss", loss, batch_size=len(images))  # Lightning cannot tell the size from a SoftTarget
        return loss

Nothing else of fastaug imports this module: Lightning (`pip install lightning`) is needed only where it is used.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from fastaug.ops.crop_mix import Sampling, Soften, crop_mix, sample_crop_mix
from fastaug.ops.crop_mix.sampling import IMAGENET_MEAN, IMAGENET_STD
from fastaug.seeding import IdArray, Key, Stream


class CropMixCallback(Callback):
    """Replaces a training batch's images by [N,C,H,W] `dtype`, normalised, and its labels [N] by their SoftTarget.

    A batch is a list [images, labels, (ids, ...)], which Lightning makes of default-collated tuples, or a dict with
    the entries `keys`; images are uint8 [N,H,W,C] or float [N,C,H,W] in [0, 1], not normalised. The batch object is
    changed in place in `on_train_batch_start`, on the device and before `training_step` gets it; validation, test
    and prediction never see the callback. ValueError for other batches.

    Draws are a function of (seed, epoch, id). Without ids, samples are numbered as they come in each epoch: the draws
    then belong to positions and not to images, and change with batch size and number of processes. Ids on a GPU
    are read back, for which the host waits; lists and NumPy arrays stay where they are.

    In the last `anneal_epochs` of the trainer's `max_epochs` the shift is `anneal_factor` times smaller, as in Soft
    Augmentation (Liu et al. 2023). ValueError at the start of training where `max_epochs` is not above `anneal_epochs`.
    """

    def __init__(
        self,
        classes: int,
        sampling: Sampling = Sampling(),
        soften: Soften = Soften(),
        *,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        anneal_epochs: int = 0,
        anneal_factor: float = 1000.0,
        keys: tuple[Hashable, Hashable, Hashable] = ("images", "labels", "ids"),
    ) -> None:
        if anneal_epochs < 0 or not anneal_factor >= 1:
            raise ValueError(f"anneal_epochs must be >= 0, anneal_factor >= 1, found {anneal_epochs}, {anneal_factor}")
        self.anneal_epochs, self.anneal_factor = anneal_epochs, anneal_factor
        self.classes, self.sampling, self.soften = classes, sampling, soften
        self.mean, self.std, self.seed, self.dtype, self.keys = tuple(mean), tuple(std), seed, dtype, keys
        self._epoch, self._met = 0, 0  # samples that this process met in the epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Sees that there is an end to anneal towards."""
        if self.anneal_epochs and (trainer.max_epochs is None or trainer.max_epochs <= self.anneal_epochs):
            raise ValueError(
                f"anneal_epochs = {self.anneal_epochs} needs a Trainer with more max_epochs than that, found "
                f"{trainer.max_epochs}; set max_epochs, or anneal_epochs to 0"
            )

    def strength(self, trainer: Trainer) -> float:
        """Factor on the shift in the trainer's epoch: 1, or 1 / anneal_factor in the last anneal_epochs."""
        annealed = self.anneal_epochs and trainer.current_epoch >= (trainer.max_epochs or 0) - self.anneal_epochs
        return 1 / self.anneal_factor if annealed else 1.0

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002 - Lightning's signature
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Augments `batch` in place."""
        image_key, label_key, id_key = self._entries(batch)
        images, labels = batch[image_key], batch[label_key]
        ids = self._count(trainer, len(labels))
        if id_key is not None:
            ids = batch[id_key].cpu() if isinstance(batch[id_key], torch.Tensor) else batch[id_key]
        as_bytes = images.dtype == torch.uint8
        params = sample_crop_mix(
            Key(self.seed, trainer.current_epoch, Stream.MIX),
            ids,
            images.shape[1:3] if as_bytes else images.shape[2:4],
            self.sampling,
            mean=self.mean,
            std=self.std,
            white=255.0 if as_bytes else 1.0,
            strength=self.strength(trainer),
        )
        batch[image_key], batch[label_key] = crop_mix(
            images,
            labels,
            params,
            classes=self.classes,
            soften=self.soften,
            mean=self.mean,
            std=self.std,
            dtype=self.dtype,
        )

    def _entries(self, batch: Any) -> tuple[Any, Any, Any]:
        """Where images, labels and ids (None: nowhere) stand in `batch`; ValueError unless it can be changed."""
        if isinstance(batch, dict) and all(key in batch for key in self.keys[:2]):
            return self.keys[0], self.keys[1], self.keys[2] if self.keys[2] in batch else None
        if isinstance(batch, list) and len(batch) >= 2:
            return 0, 1, 2 if len(batch) > 2 else None
        found = f"a dict of {list(batch)}" if isinstance(batch, dict) else f"a {type(batch).__name__}"
        raise ValueError(
            f"a training batch must be a list [images, labels, (ids)] or a dict with {self.keys[0]!r} and "
            f"{self.keys[1]!r}, found {found}; return one from collate_fn (tuples cannot be changed) or set `keys`"
        )

    def _count(self, trainer: Trainer, n: int) -> IdArray:
        """Numbers of the next `n` samples, shared by no other process: [n] int64."""
        if trainer.current_epoch != self._epoch:
            self._epoch, self._met = trainer.current_epoch, 0
        first, self._met = self._met, self._met + n
        return np.arange(first, self._met) * trainer.world_size + trainer.global_rank

    def state_dict(self) -> dict[str, Any]:
        """The sample counter, for Lightning's checkpoints."""
        return {"epoch": self._epoch, "met": self._met}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the counter up again."""
        self._epoch, self._met = state_dict["epoch"], state_dict["met"]
