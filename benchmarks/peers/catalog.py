"""Every loader and training loop by name: where its code is, what form of the data it reads, what it cannot give."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Peer:
    """`open` is `module.function`, called with a Job in the peer's own process."""

    open: str
    form: str  # of the data, see forms.py
    distributions: tuple[str, ...]  # whose versions are reported
    lacks: str  # of order, labels and ids; "" for nothing
    group: str = "files"  # rows that are compared with each other

    def function(self) -> Any:
        """Imports the peer; ImportError where something it needs is not installed."""
        module, _, name = self.open.rpartition(".")
        return getattr(import_module(f"benchmarks.peers.{module}"), name)


_SAMPLER = "ids only by a dataset of one's own; resume"
_OWN = ("torch", "nvidia-dali-cuda120", "nvidia-dali-cuda130")
_FFCV = "order by id; ids only as a field of one's own; resume"

LOADERS = {
    "ours": Peer("ours.stream", "root", _OWN, ""),
    "ours standalone": Peer("ours.standalone_stream", "root", _OWN, "", "standalone"),
    "torchvision": Peer("map_style.torchvision_stream", "files", ("torchvision", "torch"), _SAMPLER),
    "torchvision PIL": Peer("map_style.pil_stream", "files", ("torchvision", "pillow"), _SAMPLER),
    "torchcodec": Peer("map_style.torchcodec_stream", "files", ("torchcodec", "torchvision"), _SAMPLER),
    "timm": Peer("timm_loader.stream", "files", ("timm", "pillow"), _SAMPLER),
    "webdataset": Peer("web_dataset.stream", "tar", ("webdataset", "pillow"), "order by id (shuffle buffer); resume"),
    "spdl": Peer("spdl_pipeline.ffmpeg_stream", "files", ("spdl",), "order (completion order); resume"),
    "spdl torchcodec": Peer(
        "spdl_pipeline.torchcodec_stream", "files", ("spdl", "torchcodec"), "order (completion order); resume"
    ),
    "dali": Peer("dali_reader.stream", "files", _OWN[1:], "order by id; crops keyed by id"),
    "ffcv": Peer("ffcv_beton.stream", "beton", ("ffcv", "numba"), _FFCV),
    "ours shard jpeg": Peer("ours.stream", "shards_jpeg", _OWN, "", "shard jpeg"),
    "ffcv shard jpeg": Peer("ffcv_beton.stream", "beton_jpeg", ("ffcv", "numba"), _FFCV, "shard jpeg"),
    "ours raw": Peer("ours.stream", "shards_raw", _OWN, "", "raw"),
    "ffcv raw": Peer("ffcv_beton.stream", "beton_raw", ("ffcv", "numba"), _FFCV, "raw"),
    "libjpeg-turbo": Peer("decode_limit.stream", "files", ("simplejpeg",), "everything but the decoding", "limit"),
}

TRAINERS = {
    "ours": Peer("ours_training.steps", "root", ("torch", "timm"), ""),
    "timm": Peer("timm_training.steps", "files", ("torch", "timm"), ""),
}

ALWAYS = ("torchvision", "torchcodec", "timm")  # installed by the extra `bench`
