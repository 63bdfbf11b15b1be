"""Times fastaug.ops.crop_mix against a plain copy of the batch and against compositions of other libraries.

Every row does the same work: uint8 [N,H,W,3] in; flip, shift with black fill, CutMix box, normalise; float32
channels_last out. A peer whose pixels differ from the definition is shown with its reason and not timed. Rows take
turns, so that a busy machine slows all of them; figures are medians.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from fastaug.ops.crop_mix import CropMixParams, Sampling, crop_mix, sample_crop_mix
from fastaug.ops.crop_mix.reference import crop_mix_reference, normaliser
from fastaug.ops.crop_mix.sampling import IMAGENET_MEAN, IMAGENET_STD
from fastaug.seeding import Key

Row = Callable[[], Tensor]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
MEAN, STD = [255 * m for m in IMAGENET_MEAN], [255 * s for s in IMAGENET_STD]
TOLERANCE = 1e-5  # normalised units: peers round in another order
OURS = ("copy", "crop_mix", "crop_mix, new memory", "reference")


def pasted(x: Tensor, params: CropMixParams) -> Tensor:
    """CutMix of views [N,C,H,W] by slices."""
    out = x.clone()
    for i, (top, bottom, left, right) in enumerate(params.box.tolist()):
        out[i, :, top:bottom, left:right] = x[int(params.partner[i]), :, top:bottom, left:right]
    return out


def shifts(params: CropMixParams) -> list[tuple[int, int, bool]]:
    return list(zip(params.dy.tolist(), params.dx.tolist(), params.flip.tolist(), strict=True))


def torchvision_row(images: Tensor, params: CropMixParams) -> Row:
    """torchvision.transforms.v2: flip, pad and crop for each sample in uint8, one conversion and normalise."""
    from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

    height, width = images.shape[1:3]

    def view(image: Tensor, dy: int, dx: int, flip: bool) -> Tensor:
        x = F.horizontal_flip(image) if flip else image
        x = F.pad(x, [max(-dx, 0), max(-dy, 0), max(dx, 0), max(dy, 0)])
        return F.crop(x, max(dy, 0), max(dx, 0), height, width)

    def run() -> Tensor:
        nchw = images.permute(0, 3, 1, 2)
        x = torch.stack([view(image, *s) for image, s in zip(nchw, shifts(params), strict=True)])
        return F.normalize(pasted(x, params).float().contiguous(memory_format=torch.channels_last), MEAN, STD)

    return run


def kornia_row(images: Tensor, params: CropMixParams) -> Row:
    """kornia: batched hflip and translate (nearest), slices, batched normalise, all in float32."""
    import kornia

    def run() -> Tensor:
        x = images.permute(0, 3, 1, 2).float()
        x = torch.where(params.flip[:, None, None, None], kornia.geometry.transform.hflip(x), x)
        offset = -torch.stack([params.dx, params.dy], 1).float()
        x = kornia.geometry.transform.translate(x, offset, mode="nearest")
        x = kornia.enhance.normalize(pasted(x, params), torch.tensor(MEAN), torch.tensor(STD))
        return x.contiguous(memory_format=torch.channels_last)

    return run


def timm_row(images: Tensor, params: CropMixParams) -> Row:
    """timm: pad and crop as RandomCropOrPad calls them, Mixup(mode="elem") with these boxes, its loader's normalise."""
    import timm.data.mixup
    from torchvision.transforms import functional as F  # type: ignore[import-untyped]

    class Given(timm.data.mixup.Mixup):
        def _params_per_elem(self, batch_size: int) -> tuple[Any, Any]:
            return np.full(batch_size, 0.5, dtype=np.float32), np.ones(batch_size, dtype=bool)

    height, width = images.shape[1:3]
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    mixup = Given(cutmix_alpha=1.0, mode="elem")

    def run() -> Tensor:
        x = torch.empty(images.permute(0, 3, 1, 2).shape, dtype=torch.uint8, memory_format=torch.channels_last)
        for i, (dy, dx, flip) in enumerate(shifts(params)):
            one = images[i].permute(2, 0, 1)
            one = F.pad(F.hflip(one) if flip else one, [max(-dx, 0), max(-dy, 0), max(dx, 0), max(dy, 0)])
            x[i] = F.crop(one, max(dy, 0), max(dx, 0), height, width)
        boxes = iter([(tuple(b), 0.5) for b in params.box.tolist()])
        with mock.patch.object(timm.data.mixup, "cutmix_bbox_and_lam", side_effect=boxes):
            mixup._mix_elem(x)
        return x.float().sub_(mean).div_(std)

    return run


def slices_row(images: Tensor, params: CropMixParams) -> Row:
    """torch alone, written for speed: slice copies in uint8, then each image converted and normalised in cache."""
    height, width = images.shape[1:3]
    mixed, out = torch.empty_like(images), torch.empty(images.shape)
    scale, bias = (torch.tensor(v) for v in normaliser(IMAGENET_MEAN, IMAGENET_STD, True))

    def part(i: int, j: int, shift: tuple[int, int, bool], top: int, bottom: int, left: int, right: int) -> None:
        dy, dx, flip = shift
        y0, y1 = max(top, -dy), min(bottom, height - dy)
        x0, x1 = max(left, -dx), min(right, width - dx)
        mixed[i, top:bottom, left:right] = 0
        if y0 < y1 and x0 < x1:
            image = images[j].flip(1) if flip else images[j]
            mixed[i, y0:y1, x0:x1] = image[y0 + dy : y1 + dy, x0 + dx : x1 + dx]

    def run() -> Tensor:
        moves = shifts(params)
        for i, j in enumerate(params.partner.tolist()):
            part(i, i, moves[i], 0, height, 0, width)
            part(i, j, moves[j], *params.box[i].tolist())
            torch.mul(mixed[i], scale, out=out[i]).add_(bias)
        return out.permute(0, 3, 1, 2)

    return run


PEERS = {"torchvision v2": torchvision_row, "kornia": kornia_row, "timm": timm_row}
MAKERS = {**PEERS, "torch slices": slices_row}  # the last is no library's: what a careful user of torch could write


def batch(n: int, size: int) -> tuple[Tensor, CropMixParams]:
    """Random images and heavy parameters: Soft Augmentation's sigma, a box in every sample; partners reversed."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator)
    sampling = Sampling(sigma=0.375, cutmix=1.0, mixup_mode="elem", fill="constant")
    params = sample_crop_mix(Key(0, 0, 0), range(n), (size, size), sampling)
    partner = torch.arange(n - 1, -1, -1)  # the only pairing that timm knows
    fields = {**vars(params), "partner": partner}
    return images, CropMixParams(**fields)


def rows(images: Tensor, params: CropMixParams) -> tuple[dict[str, Row], dict[str, str]]:
    """The rows that give the right pixels, and for the others why they are not timed."""
    nchw, labels = images.permute(0, 3, 1, 2), torch.zeros(len(images), dtype=torch.int64)
    buffer, out = (torch.empty(images.shape).permute(0, 3, 1, 2) for _ in range(2))
    scale, bias = normaliser(IMAGENET_MEAN, IMAGENET_STD, True)

    def reference() -> Tensor:
        return crop_mix_reference(images, params, scale, bias, torch.float32)

    found: dict[str, Row] = {
        "copy": lambda: buffer.copy_(nchw),
        "crop_mix": lambda: crop_mix(images, labels, params, classes=1000, out=out)[0],
        "crop_mix, new memory": lambda: crop_mix(images, labels, params, classes=1000)[0],
        "reference": reference,
    }
    refused = {}
    want = reference()
    for name, make in MAKERS.items():
        try:
            found[name] = make(images, params)
        except ImportError as error:
            refused[name] = f"not installed: {error}"
    for name in [name for name in found if name != "copy"]:
        off = (found[name]() - want).abs().max().item()
        if off > (TOLERANCE if name in MAKERS else 0):
            refused[name] = f"pixels differ from the definition by {off:g}"
            del found[name]
    return found, refused


def measure(found: dict[str, Row], threads: int, repetitions: int, clock: Clock) -> dict[str, list[float]]:
    """Milliseconds of every repetition of each row. Rows take turns, the order reversed every other time.

    The short rows, which are compared with the copy, take turns among themselves, ten times as often: after a row of
    a second, a busy machine would take the processor away from them.
    """
    torch.set_num_threads(threads)
    times: dict[str, list[float]] = {name: [] for name in found}
    short, long = ([name for name in found if (name in OURS[:3]) == wanted] for wanted in (True, False))
    for group, turns in ((short, 10 * repetitions), (long, repetitions)):
        for turn in range(turns + 1):
            for name in group[:: 1 if turn % 2 else -1]:
                start = clock()
                found[name]()
                if turn:  # the first turn warms up
                    times[name].append(1e3 * (clock() - start))
    return times


def machine() -> dict[str, Any]:
    """Where and with what this ran."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    names = ("torch", "torchvision", "kornia", "timm", "numba", "numpy")
    return {
        "machine": f"{platform.platform()}, {cpu.partition(':')[2].strip()}",
        "versions": {name: importlib.metadata.version(name) for name in names},
        "commit": git.stdout.strip() or "unknown",
    }


def summary(times: dict[int, dict[str, list[float]]], refused: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Gates and figures."""
    median = {t: {name: statistics.median(v) for name, v in by.items()} for t, by in times.items()}
    names = [name for name in PEERS if name in median[1]]
    figures = {f"op_over_copy_{t}thread{'s' * (t > 1)}": m["crop_mix"] / m["copy"] for t, m in median.items()}
    if "torch slices" in median[1]:
        figures["torch_slices_over_op"] = min(m["torch slices"] / m["crop_mix"] for m in median.values())
    figures["best_peer_over_op"] = min(m[name] / m["crop_mix"] for m in median.values() for name in names)
    gates = {f"{name} correct": name not in refused for name in (*OURS[1:], *MAKERS)}
    gates |= {f"op_over_copy_{t} <= 2": m["crop_mix"] <= 2 * m["copy"] for t, m in median.items()}
    gates["best_peer_over_op >= 10"] = figures["best_peer_over_op"] >= 10
    return {"gates": gates, "figures": figures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="images (default 64)")
    parser.add_argument("--size", type=int, default=224, help="height and width (default 224)")
    parser.add_argument(
        "--repetitions",
        type=int,
        default=9,
        help="timed turns of a peer; ten times as many of the op (default 9)",
    )
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: time of this process, all threads, on a busy machine"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    found, refused = rows(*batch(args.batch, args.size))
    if "crop_mix" in refused:
        print(f"crop_mix is wrong, nothing was timed: {refused['crop_mix']}", file=sys.stderr)
        return 1
    times = {threads: measure(found, threads, args.repetitions, CLOCKS[args.clock]) for threads in (1, 2)}
    for threads, by in times.items():
        copy = statistics.median(by["copy"])
        print(f"{threads} thread(s), {args.clock} ms per {args.batch} images of side {args.size}: median [min-max]")
        for name, values in by.items():
            m = statistics.median(values)
            print(f"  {name:22} {m:9.2f} [{min(values):.2f}-{max(values):.2f}]  {m / copy:6.2f} x copy")
    for name, reason in refused.items():
        print(f"  {name:22} not timed: {reason}")
    result = summary(times, refused)
    print("\n".join(f"{k}: {v}" for part in result.values() for k, v in part.items()))
    if args.json:
        settings = {
            "batch": args.batch,
            "size": args.size,
            "clock": args.clock,
            "milliseconds": times,
            "refused": refused,
        }
        args.json.write_text(json.dumps({**machine(), **settings, **result}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
