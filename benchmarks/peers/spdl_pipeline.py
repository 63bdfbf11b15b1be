"""SPDL's thread pipeline: with its own FFmpeg decoding and filtering, or with torchcodec and torchvision in threads.

FFmpeg's libraries come from the system; spdl raises where there are none.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import spdl.io
import torch
from spdl.pipeline import PipelineBuilder
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from benchmarks.peers.job import Job, Stream

Sample = tuple[Any, int]


def _samples(job: Job) -> Iterator[tuple[str, int]]:
    samples = list(ImageFolder(job.source).samples)
    draw = random.Random(0)
    while True:
        draw.shuffle(samples)
        yield from samples
        if job.once:
            return


def _stream(job: Job, load: Callable[[tuple[str, int]], Sample], join: Callable[[list[Sample]], Any]) -> Stream:
    builder: Any = PipelineBuilder().add_source(_samples(job))
    builder = builder.pipe(load, concurrency=job.threads).aggregate(job.batch).pipe(join).add_sink(2)
    pipeline = builder.build(num_threads=job.threads)
    with pipeline.auto_stop():
        for images, labels in pipeline.get_iterator():
            yield images, labels, None


def ffmpeg_stream(job: Job) -> Stream:
    """One FFmpeg filter graph an image: crop and bilinear scale in YUV, then RGB; a batch converted at once."""

    def load(sample: tuple[str, int]) -> Sample:
        packets = spdl.io.demux_image(sample[0])
        top, left, height, width = window(packets.height, packets.width, job)
        scale = f"scale={job.side}:{job.side}:flags=bilinear"
        graph = f"crop={width}:{height}:{left}:{top}:exact=1,{scale},format=rgb24"
        return spdl.io.decode_packets(packets, filter_desc=graph), sample[1]

    def join(samples: list[Sample]) -> tuple[Any, torch.Tensor]:
        images = spdl.io.to_torch(spdl.io.convert_frames([frames for frames, _ in samples]))
        return images, torch.tensor([label for _, label in samples])

    return _stream(job, load, join)


def window(height: int, width: int, job: Job) -> tuple[int, int, int, int]:
    """torchvision's random resized crop window of an image of this size: top, left, height, width."""
    crop = v2.RandomResizedCrop(job.side, scale=job.scale, ratio=job.ratio)
    drawn = crop.make_params([torch.empty((3, height, width), device="meta")])
    return drawn["top"], drawn["left"], drawn["height"], drawn["width"]


def torchcodec_stream(job: Job) -> Stream:
    """torchcodec's decode_jpeg and torchvision's crop on uint8 tensors, in SPDL's threads."""
    from torchcodec.decoders import decode_jpeg

    crop = v2.RandomResizedCrop(job.side, scale=job.scale, ratio=job.ratio, antialias=True)

    def load(sample: tuple[str, int]) -> Sample:
        return crop(decode_jpeg(sample[0])), sample[1]

    def join(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])

    return _stream(job, load, join)
