"""FFCV: .beton files of raw or JPEG images, written here and read by its compiled loader."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import Squeeze, ToTensor
from ffcv.writer import DatasetWriter
from PIL import Image

from benchmarks.peers.forms import QUALITY, labelled_files, shrunk
from benchmarks.peers.job import Job, Stream


class Pictures:
    """Decoded files for FFCV's writer, shrunk to the short side or as they are."""

    def __init__(self, folder: Path, short: bool) -> None:
        self.files, self.short = labelled_files(folder), short

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[npt.NDArray[np.uint8], int]:
        path, label = self.files[i]
        image = Image.open(path).convert("RGB")
        return np.asarray(shrunk(image) if self.short else image), label


def write(folder: Path, destination: Path, form: str) -> None:
    """beton: JPEG at full size; beton_jpeg, beton_raw: at the short side of the prepared forms."""
    mode = "raw" if form == "beton_raw" else "jpg"
    fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=QUALITY), "label": IntField()}
    writer = DatasetWriter(str(destination), fields, num_workers=1)
    writer.from_indexed_dataset(Pictures(folder, short=form != "beton"), shuffle_indices=False)


def stream(job: Job) -> Stream:
    """Batches in FFCV's random order, from the system's page cache."""
    from ffcv.reader import Reader

    decoder = RandomResizedCropRGBImageDecoder((job.side, job.side), scale=job.scale, ratio=job.ratio)
    images = int(Reader(job.source).num_samples)
    loader = Loader(
        job.source,
        batch_size=job.batch,
        num_workers=job.threads,
        os_cache=True,
        order=OrderOption.RANDOM,
        indices=np.tile(np.arange(images, dtype=np.uint64), job.repeats(images)),
        drop_last=True,
        seed=0,
        pipelines={
            "image": [decoder, ToTensor()],
            "label": [IntDecoder(), ToTensor(), Squeeze(1)],
        },
    )
    for batch, labels in job.epochs(loader):
        yield batch, labels, None
