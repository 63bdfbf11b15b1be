"""DALI as its documentation shows it: its own reader, shuffling and crops; region decode and antialiased resize."""

from typing import Any

import torch
from nvidia.dali import fn, pipeline_def, types

from benchmarks.peers.job import Job, Stream


@pipeline_def
def graph(job: Job) -> Any:
    """Images uint8 [S,S,3] and labels."""
    encoded, label = fn.readers.file(file_root=job.source, random_shuffle=not job.once, name="files")
    area, ratio = list(job.scale), list(job.ratio)
    images = fn.decoders.image_random_crop(
        encoded, output_type=types.RGB, random_area=area, random_aspect_ratio=ratio, jpeg_fancy_upsampling=True
    )
    return fn.resize(images, size=[job.side, job.side], interp_type=types.INTERP_LINEAR, antialias=True), label


def stream(job: Job) -> Stream:
    """Batches in DALI's order."""
    pipeline = graph(job, batch_size=job.batch, num_threads=job.threads, device_id=None, seed=0)
    pipeline.build()
    runs = pipeline.epoch_size("files") // job.batch
    while True:
        images, labels = (torch.from_dlpack(output.as_tensor()) for output in pipeline.run())
        yield images, labels.flatten(), None
        runs -= 1
        if job.once and runs == 0:
            return
