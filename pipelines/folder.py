"""From paths and windows to uint8 [N, S, S, 3]: read, decode the window, resize, cut. Training and evaluation alike.

One graph for both devices: on a GPU the decoder is "mixed" (the bytes come from the host) and the rest runs there.
Paths, windows and sizes come from outside, so the pixels of an image depend on nothing but its window: not on the
batch it is in, the threads that decode it or the rank that asks.
"""

from collections.abc import Callable
from typing import Any

from nvidia.dali import fn, pipeline_def, types

Source = Callable[[], tuple[Any, ...]]  # raises StopIteration behind the last batch

_INTERPOLATION = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}


@pipeline_def
def folder_graph(source: Source, device: str, side: int, interpolation: str, exif: str) -> Any:
    """`source()` gives a batch's paths (uint8), anchors, extents (int32 [N, 2], y then x), sizes (float32), offsets."""
    path, anchor, extent, size, offset = fn.external_source(source=source, num_outputs=5, batch=True)
    images = fn.decoders.image_slice(
        fn.io.file.read(path),
        anchor,
        extent,
        device="mixed" if device == "gpu" else "cpu",
        output_type=types.RGB,
        axis_names="HW",
        adjust_orientation=exif == "apply",
        jpeg_fancy_upsampling=True,  # the same chroma on the GPU as on the CPU
    )
    images = fn.resize(images, size=size, interp_type=_INTERPOLATION[interpolation], antialias=True)
    return fn.slice(images, start=offset, shape=[side, side], axis_names="HW")


def build_folder_pipeline(
    source: Source,
    *,
    batch_size: int,
    threads: int,
    device_id: int | None,
    prefetch: int,
    side: int,
    interpolation: str,
    exif: str,
) -> Any:
    """A built pipeline for up to `batch_size` images; `device_id=None` runs without a GPU."""
    pipeline = folder_graph(
        source,
        device="cpu" if device_id is None else "gpu",
        side=side,
        interpolation=interpolation,
        exif=exif,
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,  # outputs own their memory: a batch stays valid as long as somebody holds it
    )
    pipeline.build()
    return pipeline
