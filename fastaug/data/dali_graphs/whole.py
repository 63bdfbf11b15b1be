"""The DALI graph from files in memory to whole images, on the CPU, with the decoder settings of the training graph."""

from typing import Any

from nvidia.dali import fn, pipeline_def, types


@pipeline_def
def whole_graph(exif: str) -> Any:
    """Fed "files", a batch of uint8 [length]; gives uint8 [H, W, 3] RGB."""
    files = fn.external_source(name="files", batch=True, no_copy=True)
    turned = exif == "apply"
    return fn.decoders.image(files, output_type=types.RGB, adjust_orientation=turned, jpeg_fancy_upsampling=True)


def build_whole_pipeline(*, batch_size: int, exif: str) -> Any:
    """A built pipeline for up to `batch_size` files on one thread."""
    pipeline = whole_graph(
        exif, batch_size=batch_size, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_dynamic=True
    )
    pipeline.build()
    return pipeline
