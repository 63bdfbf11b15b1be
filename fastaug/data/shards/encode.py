"""One image for a shard: decoded as the loaders decode, its short side resized with antialiasing, encoded again."""

import io
import os
import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastaug.data.image_files import (
    Bytes,
    Colour,
    DamagedImageError,
    decode_by_pillow,
    file_for_dali,
    read_image_file,
)
from fastaug.data.image_headers import Status
from fastaug.data.index import Index
from fastaug.data.packed.index import PackedIndex
from fastaug.data.shards.layout import Settings

BATCH = 8  # images a worker decodes at once: enough to hide DALI's cost per batch, few enough for photographs of 100 MB


class Picture(NamedTuple):
    """One image as it goes into a shard. `start`: where the JPEG file, or the pixels, begin in `payload`."""

    id: int
    height: int
    width: int
    payload: bytes = b""
    start: int = 0
    resized: bool = False
    copied: bool = False
    reason: str = ""  # why it is damaged; then there is no payload


def stored_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with short side `short_side` or less, the long one rounded down as crop_windows.center does."""
    short = min(height, width)
    if short <= short_side:
        return height, width
    return max(short_side * height // short, 1), max(short_side * width // short, 1)


class Preparer:
    """Makes Pictures of ids, in order, when called; from several threads at once, each with a decoder of its own."""

    def __init__(self, index: Index, settings: Settings) -> None:
        self.index, self.settings = index, settings
        self._local = threading.local()

    def __call__(self, ids: npt.NDArray[np.int64]) -> list[Picture]:
        read = {int(id): self._read(int(id)) for id in ids}
        good = {id: found for id, found in read.items() if not isinstance(found, str)}
        images = dict(zip(good, self._decoder().decode(list(good.values())), strict=True))
        return [self._picture(id, found, images.get(id)) for id, found in read.items()]

    def _decoder(self) -> "Decoder":
        if not hasattr(self._local, "decoder"):
            self._local.decoder = Decoder(self.settings.exif, self.settings.background)
        decoder: Decoder = self._local.decoder
        return decoder

    def _read(self, id: int) -> Bytes | str:
        """The file's bytes, or why there are none; DataError when the storage is at fault."""
        if self.index.status[id] == Status.DAMAGED:
            return self.index.reasons[id]
        try:
            if isinstance(self.index, PackedIndex):
                return self.index.encoded(id)
            return read_image_file(self.index.path(id))[0]
        except DamagedImageError as error:
            return str(error)

    def _picture(self, id: int, file: Bytes | str, image: Bytes | str | None) -> Picture:
        if isinstance(file, str) or image is None or isinstance(image, str):
            reason = file if isinstance(file, str) else str(image)
            return Picture(id, int(self.index.heights[id]), int(self.index.widths[id]), reason=reason)
        height, width = stored_size(image.shape[0], image.shape[1], self.settings.short_side)
        resized = (height, width) != image.shape[:2]
        if self.settings.format == "raw":
            header = _npy_header(height, width)
            pixels = _resize(image, height, width).permute(1, 2, 0).numpy() if resized else image
            return Picture(id, height, width, header + pixels.tobytes(), len(header), resized)
        # Turned pixels must not stand under a tag that turns them once more.
        if not resized and self.settings.exif == "ignore" and bytes(file[:2]) == b"\xff\xd8":
            return Picture(id, height, width, file.tobytes(), copied=True)
        assert self.settings.quality is not None
        return Picture(id, height, width, _jpeg(_resize(image, height, width), self.settings.quality), resized=resized)


def _resize(image: Bytes, height: int, width: int) -> Tensor:
    """uint8 [3, height, width] in channels_last memory, bilinear with antialiasing."""
    source = torch.from_numpy(image).permute(2, 0, 1)
    if image.shape[:2] == (height, width):
        return source
    out = torch.empty((1, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    torch.ops.aten._upsample_bilinear2d_aa.out(source[None], [height, width], False, None, None, out=out)
    return out[0]


def _jpeg(image: Tensor, quality: int) -> bytes:
    from PIL import Image

    # In a file that the system knows: for one of Python's own, Pillow would hold up the other threads while it encodes.
    with open(os.memfd_create("jpeg"), "w+b", buffering=0) as file:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        file.seek(0)
        return file.read()


def _npy_header(height: int, width: int) -> bytes:
    out = io.BytesIO()
    described = {"descr": "|u1", "fortran_order": False, "shape": (height, width, 3)}
    np.lib.format.write_array_header_1_0(out, described)
    return out.getvalue()


class Decoder:
    """Decodes files in memory to uint8 [H, W, 3] RGB as the loaders do; for one thread."""

    def __init__(self, exif: str, background: Colour | None = None) -> None:
        self.exif, self.background = exif, background
        self._pipeline = _build(exif, BATCH)

    def decode(self, files: list[Bytes]) -> list[Bytes | str]:
        """Each file's image, or why it cannot be decoded; BATCH files at most."""
        fit = [file_for_dali(file, self.exif, self.background) for file in files]
        images = iter(self._by_dali([one[0] for one in fit if one]))
        return [next(images) if one else self._by_pillow(file) for file, one in zip(files, fit, strict=True)]

    def _by_dali(self, files: list[Bytes]) -> list[Bytes | str]:
        if not files:
            return []
        try:
            return list(_run(self._pipeline, files))
        except RuntimeError:  # one of them is damaged, and DALI gives up the whole batch and the pipeline with it
            self._pipeline = _build(self.exif, BATCH)
        return [self._alone(file) for file in files]

    def _alone(self, file: Bytes) -> Bytes | str:
        try:
            (image,) = _run(_build(self.exif, 1), [file])
        except RuntimeError:
            return self._by_pillow(file)
        return image

    def _by_pillow(self, file: Bytes) -> Bytes | str:
        try:
            return decode_by_pillow(file, self.exif, self.background)
        except DamagedImageError as error:
            return str(error)


def _build(exif: str, batch: int) -> Any:
    from fastaug.data.dali_graphs.whole import build_whole_pipeline

    return build_whole_pipeline(batch_size=batch, exif=exif)


def _run(pipeline: Any, files: list[Bytes]) -> list[Bytes]:
    pipeline.feed_input("files", files)
    (output,) = pipeline.run()
    return [np.array(image) for image in output]  # copied: the memory is the pipeline's
