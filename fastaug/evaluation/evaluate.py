"""Evaluation of one split, exact at any number of processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from fastaug.augment.pipeline import BatchAugment
from fastaug.data.build import DataParts
from fastaug.data.loaders.base import Loader
from fastaug.data.sampler import evaluation_requests
from fastaug.distributed import time_kernels
from fastaug.errors import NoImageError
from fastaug.evaluation.metrics import Evaluation
from fastaug.evaluation.multi_label import MultiLabelEvaluation
from fastaug.evaluation.test_time import TestTimeAugmentation
from fastaug.recipe.schema import Recipe


class Listener(Protocol):
    """What hears of every image of a split what a network says of it; images of one class each."""

    def add(self, ids: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Hears of a batch: ids [N] on the host, logits [N, C] and labels [N] on the device."""


@dataclass
class Evaluator:
    """Evaluates networks on the held-out splits; `loader` covers the split that is asked for."""

    recipe: Recipe
    accelerator: Accelerator
    parts: DataParts
    loader: Loader
    augment: BatchAugment

    @torch.no_grad()
    def run(
        self,
        network: nn.Module,
        split: str,
        copies: int = 0,
        listeners: Sequence[Listener] = (),
        *,
        details: bool = False,
        epoch: int = 0,
    ) -> dict[str, Any]:
        """Figures of `network` on a split, every image counted once; every process must call this.

        With `copies` also "tta", those of predictions averaged over so many copies under the policy. `listeners` hear
        what the network says of each image. `details`: figures of single classes too. `epoch`: that which the loader is
        asked for; it tells a host transform what to do. NoImageError when not one of its images can be decoded.
        """
        accelerator, recipe, classes = self.accelerator, self.recipe, len(self.parts.classes)
        share_buffers(network)
        ids = self.parts.splits.of(split)
        multi_hot = self.parts.multi_hot(torch.device("cpu"))
        several = None if multi_hot is None else MultiLabelEvaluation(multi_hot, recipe.eval.threshold)
        meter = Evaluation(classes, recipe.eval.ece_bins, accelerator.device, pairs=details)
        averaged = Evaluation(classes, recipe.eval.ece_bins, accelerator.device)
        test_time = TestTimeAugmentation(recipe, self.augment, copies) if copies else None
        world, rank = accelerator.num_processes, accelerator.process_index
        network.eval()
        passes = -(-len(ids) // (world * recipe.eval.batch_size))  # of the process with the most batches
        requests = evaluation_requests(ids, recipe.eval.batch_size, world, rank)
        for batch in self.loader.batches(request._replace(epoch=epoch) for request in requests):
            if not len(batch.ids):  # all of its images are damaged
                continue
            time_kernels(recipe, again=len(batch.ids) == recipe.eval.batch_size)
            passes -= 1
            with accelerator.autocast():
                logits = network(self.augment.evaluation(batch))
                if test_time is not None:
                    averaged.add(test_time.logits(network, batch, classes), batch.labels)
            if several is not None:
                several.add(logits, batch.ids)
                continue
            meter.add(logits[:, :classes], batch.labels)  # without the "other" class
            for listener in listeners:
                listener.add(batch.ids, logits[:, :classes], batch.labels)
        if isinstance(network, FSDPModule):
            self._keep_up(network, passes)
        network.train()
        try:
            figures = (several or meter).result(accelerator)
        except NoImageError as error:
            damaged = ((self.parts.name_of(i), why) for i, why in self.loader.skipped.items() if i in ids)
            first = next((f", the first {name}: {why}" for name, why in damaged), "")
            raise NoImageError(f"{split}: {error}, of {len(ids)}{first}; repair them or change data.root") from None
        if details and several is None:
            figures |= meter.details(accelerator, self.parts.classes)
        if copies:
            figures["tta"] = {"copies": copies, **averaged.result(accelerator)}
        return {"skipped": len(ids) - figures["images"], **figures}

    def _keep_up(self, network: nn.Module, passes: int) -> None:
        """Passes of a black image: a divided network is gathered in each, which takes all processes alike."""
        data, accelerator = self.recipe.data, self.accelerator
        side = self.recipe.eval.img_size or data.img_size
        for _ in range(passes):
            with accelerator.autocast():
                network(torch.zeros(1, data.channels, side, side, device=accelerator.device))


def share_buffers(network: nn.Module) -> None:
    """Gives every process the buffers of the main one: between updates their BatchNorm statistics differ."""
    if dist.is_available() and dist.is_initialized():
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def held_out_ids(parts: DataParts) -> np.ndarray[Any, np.dtype[np.int64]]:
    """All images that a run evaluates."""
    return np.concatenate([parts.splits.select, parts.splits.test])
