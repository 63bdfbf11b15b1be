"""The DALI graph from image files and crop windows to decoded windows; on a GPU it also resizes and cuts.

One graph for both devices. On a GPU the decoder is "mixed" (the bytes come from the host) and the rest runs there, up
to uint8 [N, S, S, 3]. On a CPU the graph ends with the decoded windows, uint8 [h_i, w_i, 3]: DALI's antialiased resize
is several times slower there than data/loaders/cpu_resize.py. Everything random comes from outside, so the pixels of an
image depend on nothing but its window: not on the batch it is in, the threads that decode it or the rank that asks.
"""

from collections.abc import Callable
from typing import Any

from nvidia.dali import fn, pipeline_def, types

Source = Callable[[], tuple[Any, ...]]  # raises StopIteration behind the last batch

_INTERPOLATION = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}


@pipeline_def
def folder_graph(
    source: Source, device: str, side: int, interpolation: str, exif: str, largest: tuple[int, int]
) -> Any:
    """`source()` gives a batch: the files' bytes, anchors and extents (int32 [N, 2], y then x) of the windows; for a
    GPU also sizes (float32) and offsets. `largest`: height and width of the largest image.
    """
    on_gpu = device == "gpu"
    # Not copied: DALI holds the arrays that it is given until it has read them.
    files, anchor, extent, *cut = fn.external_source(source, 5 if on_gpu else 3, batch=True, no_copy=True)
    how = {"output_type": types.RGB, "adjust_orientation": exif == "apply", "jpeg_fancy_upsampling": True}
    if not on_gpu:
        return fn.decoders.image_slice(files, anchor, extent, axis_names="HW", **how)
    # Whole images: asked for windows with that chroma, nvJPEG before 13.2 leaves all decoding to the CPU.
    images = fn.decoders.image(
        files, device="mixed", preallocate_height_hint=largest[0], preallocate_width_hint=largest[1], **how
    )
    size, offset = cut
    images = fn.slice(images, start=anchor, shape=extent, axis_names="HW")
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
    largest: tuple[int, int] = (0, 0),
) -> Any:
    """A built pipeline for up to `batch_size` images; `device_id=None` runs without a GPU."""
    pipeline = folder_graph(
        source,
        device="cpu" if device_id is None else "gpu",
        side=side,
        interpolation=interpolation,
        exif=exif,
        largest=largest,
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
        exec_dynamic=True,  # outputs own their memory: a batch stays valid as long as somebody holds it
    )
    pipeline.build()
    return pipeline
