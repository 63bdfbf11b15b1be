"""The training loop of timm's train.py, which its wheel does not hold, from timm's own functions and defaults.

Written after train_one_epoch of the repository: prefetcher, forward, loss, backward, step, loss read every update, log
line every 50th. Flip, crop, optimizer, learning rate and memory format are those of recipe.yaml.
"""

import logging

import torch
from timm import create_model
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter
from torch import Tensor, nn

from benchmarks.peers.job import Job, Steps
from benchmarks.peers.timm_loader import loader_of

LOG_EVERY = 50  # updates
logger = logging.getLogger(__name__)


class Loop:
    """Model, loss and optimizer, and one update of them."""

    def __init__(self, name: str, classes: int) -> None:
        self.model = create_model(name, num_classes=classes).to(memory_format=torch.channels_last).train()
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = create_optimizer_v2(self.model, opt="momentum", lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.losses, self.updates = AverageMeter(), 0

    def update(self, images: Tensor, labels: Tensor) -> int:
        """Trains on one batch as the prefetcher gives it; its images."""
        loss = self.loss(self.model(images.contiguous(memory_format=torch.channels_last)), labels)
        loss.backward()
        self.optimizer.step()
        self.losses.update(loss.item(), len(images))
        self.optimizer.zero_grad()
        self.updates += 1
        if self.updates % LOG_EVERY == 0:
            logger.info("Train: %d Loss: %.3g (%.3g)", self.updates, self.losses.val, self.losses.avg)
        return len(images)


def steps(job: Job) -> Steps:
    """`train` is an update on the next batch, `load` the batch alone, `compute` an update on a batch at hand."""
    loader = loader_of(job, hflip=0.5)
    loop = Loop(job.model, len(loader.dataset.reader.class_to_idx))
    batches = job.epochs(loader)
    at_hand = next(batches)
    return {
        "train": lambda: loop.update(*next(batches)),
        "load": lambda: len(next(batches)[0]),
        "compute": lambda: loop.update(*at_hand),
    }
