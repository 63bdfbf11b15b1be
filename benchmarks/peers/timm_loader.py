"""timm's create_dataset and create_loader up to the uint8 batch, which its prefetcher would normalise on the device."""

from typing import Any

import torch
from timm.data import create_dataset, create_loader

from benchmarks.peers.job import Job, Stream


def dataset_of(job: Job) -> Any:
    """The folder as timm reads it, listed as often as an epoch of a large set wants."""
    dataset = create_dataset("", root=job.source, split="train", is_training=True, batch_size=job.batch)
    dataset.reader.samples = dataset.reader.samples * job.repeats(len(dataset.reader.samples))
    return dataset


def loader_of(job: Job, hflip: float) -> Any:
    """timm's training loader on the CPU, the prefetcher around it."""
    return create_loader(
        dataset_of(job),
        input_size=(3, job.side, job.side),
        batch_size=job.batch,
        is_training=True,
        scale=job.scale,
        ratio=job.ratio,
        hflip=hflip,
        color_jitter=None,
        interpolation="bilinear",
        num_workers=job.threads,
        persistent_workers=not job.once,
        device=torch.device("cpu"),
    )


def stream(job: Job) -> Stream:
    """Batches of PIL's crops, collated by timm's fast_collate."""
    for images, labels in job.epochs(loader_of(job, hflip=0.0).loader):
        yield images, labels, None
