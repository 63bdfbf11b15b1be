"""webdataset: tar shards of the same JPEG bytes, decoded and cropped by PIL, in worker processes."""

from typing import Any

import webdataset as wds
from torchvision.transforms import v2  # type: ignore[import-untyped]

from benchmarks.peers.job import Job, Stream


def stream(job: Job) -> Stream:
    """Batches in the order of shards and a shuffle buffer."""
    crop = v2.RandomResizedCrop(job.side, scale=job.scale, ratio=job.ratio, antialias=True)
    transform = v2.Compose([crop, v2.PILToTensor()])
    shards: Any = wds.WebDataset(job.source, shardshuffle=0 if job.once else 100)
    if not job.once:
        shards = shards.repeat().shuffle(500)
    samples = shards.decode("pilrgb").to_tuple("jpg", "cls").map_tuple(transform, int)
    # One worker reads every shard in order where each image has to come once in whole batches.
    loader = wds.WebLoader(samples.batched(job.batch), batch_size=None, num_workers=1 if job.once else job.threads)
    for images, labels in loader:
        yield images, labels, None
