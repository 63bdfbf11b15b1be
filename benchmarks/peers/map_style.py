"""torch's DataLoader over a map-style dataset: torchvision's decoder, PIL, or torchcodec's decoder."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder  # type: ignore[import-untyped]
from torchvision.datasets.folder import default_loader  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from benchmarks.peers.job import Job, Stream


class Files(Dataset[tuple[Any, int]]):
    """The files of a folder of class folders, decoded by `decode` and cropped."""

    def __init__(self, job: Job, decode: Callable[[str], Any], pil: bool = False) -> None:
        samples = ImageFolder(job.source).samples
        self.samples, self.decode = samples * job.repeats(len(samples)), decode
        crop = v2.RandomResizedCrop(job.side, scale=job.scale, ratio=job.ratio, antialias=True)
        self.transform = v2.Compose([crop, v2.PILToTensor()]) if pil else crop

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        path, label = self.samples[i]
        return self.transform(self.decode(path)), label


def _stream(job: Job, files: Files) -> Stream:
    loader = DataLoader(
        files,
        batch_size=job.batch,
        shuffle=True,
        num_workers=job.threads,
        persistent_workers=not job.once,
        drop_last=not job.once,
    )
    for images, labels in job.epochs(loader):
        yield images, labels, None


def torchvision_stream(job: Job) -> Stream:
    """torchvision.io.decode_jpeg; the crop on uint8 tensors."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file  # type: ignore[import-untyped]

    return _stream(job, Files(job, lambda path: decode_jpeg(read_file(path), mode=ImageReadMode.RGB)))


def pil_stream(job: Job) -> Stream:
    """ImageFolder's own way: PIL decodes and crops."""
    return _stream(job, Files(job, default_loader, pil=True))


def torchcodec_stream(job: Job) -> Stream:
    """torchcodec's decode_jpeg, the successor of torchvision.io; the crop on uint8 tensors."""
    from torchcodec.decoders import decode_jpeg

    def decode(path: str) -> torch.Tensor:
        return decode_jpeg(path)

    return _stream(job, Files(job, decode))
