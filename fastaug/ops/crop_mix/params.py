"""The parameters of the op: what it does to each sample of a batch (shift, flip, box, partner), and their checks."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class CropMixParams:
    """Shift, flip, box, partner and fill of N samples, drawn by `sample_crop_mix` or written by hand; in pixels.

    dy, dx [N] int64: the view reads at (y + dy, x + dx) pixels. flip [N] bool: mirrored left-right before that. partner
    [N] int64: position in the batch of the sample pasted or blended in. box [N,4] int64: top, bottom, left, right in
    pixels, upper ends exclusive. fill [N,C] float: value outside the image (uint8 images: 0 to 255, floats: 0 to 1).
    blend [N] float or None: Mixup's share of the own view, 1 without; only samples with an empty box blend. noise [N]
    int64 or None: seeds of the normal numbers that replace `fill` where no image is in sight, used in host memory (`to`
    leaves them there). white: the level of white that `fill` was made for, 255 or 1; None where that is not known.
    """

    dy: Tensor
    dx: Tensor
    flip: Tensor
    partner: Tensor
    box: Tensor
    fill: Tensor
    blend: Tensor | None = None
    noise: Tensor | None = None
    white: float | None = None

    def __len__(self) -> int:
        return len(self.dy)

    def to(self, device: torch.device | str) -> "CropMixParams":
        """The same parameters on `device`."""
        moved = {name: tensor for name, tensor in self.tensors().items() if name != "noise"}
        on_device = {name: to_device(tensor, torch.device(device)) for name, tensor in moved.items()}
        return replace(self, **on_device)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name: [N, ...] each."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def pasted(self) -> Tensor:
        """Pixels of each box: [N] int64."""
        top, bottom, left, right = self.box.unbind(1)
        return (bottom - top) * (right - left)

    def own_share(self) -> Tensor:
        """Mixup's share of the own view in effect, 1 where a box is pasted: [N] float."""
        if self.blend is None:
            return torch.ones(len(self), device=self.dy.device)
        return torch.where(self.pasted() > 0, 1, self.blend)

    def packed(self, height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What kernels read: int32 [N,8] dy, dx, flip, partner, box; `dtype` [N,C+1] fill, share of the own view.

        For images of `height` x `width` pixels, beyond which a shift shows no more.
        """
        if on_host(self):
            return _packed_on_host(self, height, width, dtype)
        dy, dx = self.dy.clamp(-height, height), self.dx.clamp(-width, width)  # further away shows no more
        geometry = torch.stack([dy, dx, self.flip.long(), self.partner, *self.box.unbind(1)], 1).to(torch.int32)
        return geometry, torch.cat([self.fill, self.own_share()[:, None]], 1).to(dtype)

    @staticmethod
    def unpacked(geometry: Tensor, colour: Tensor) -> "CropMixParams":
        """The parameters that `packed` gave as `geometry` [N,8] and `colour` [N,C+1]."""
        dy, dx, flip, partner = geometry[:, :4].long().unbind(1)
        return CropMixParams(dy, dx, flip.bool(), partner, geometry[:, 4:].long(), colour[:, :-1], colour[:, -1])


def on_host(params: CropMixParams) -> bool:
    """Whether values can be read without waiting for a device, and by libraries other than torch."""
    return params.dy.device.type == "cpu" and not torch.compiler.is_compiling()


def _packed_on_host(params: CropMixParams, height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`packed` by NumPy's operations, which cost a quarter of torch's at this size."""
    geometry = np.empty((len(params), 8), dtype=np.int32)
    geometry[:, 0] = np.maximum(np.minimum(params.dy.numpy(), height), -height)
    geometry[:, 1] = np.maximum(np.minimum(params.dx.numpy(), width), -width)
    geometry[:, 2], geometry[:, 3], geometry[:, 4:] = params.flip.numpy(), params.partner.numpy(), params.box.numpy()
    colour = torch.ones(len(params), params.fill.shape[1] + 1, dtype=dtype)
    colour[:, :-1] = params.fill
    if params.blend is not None:
        colour[:, -1] = params.blend
        top, bottom, left, right = geometry[:, 4:].T
        colour.numpy()[(bottom > top) & (right > left), -1] = 1
    return torch.from_numpy(geometry), colour


def identity_params(n: int, fill: Tensor) -> CropMixParams:
    """`n` samples left as they are: no shift, flip or mixing; `fill` [C], float levels, for every sample."""
    zeros = torch.zeros(n, dtype=torch.int64)
    return CropMixParams(
        zeros, zeros, zeros.bool(), torch.arange(n), torch.zeros(n, 4, dtype=torch.int64), fill.expand(n, -1)
    )


def check_params(params: CropMixParams, n: int, height: int, width: int, channels: int) -> None:
    """ValueError unless `params` fit N images height x width x channels. Values on a device are not read."""
    shapes = {
        "dy": (n,),
        "dx": (n,),
        "flip": (n,),
        "partner": (n,),
        "box": (n, 4),
        "fill": (n, channels),
        "blend": (n,),
        "noise": (n,),
    }
    kinds = {
        "flip": torch.bool,
        "dy": torch.int64,
        "dx": torch.int64,
        "partner": torch.int64,
        "box": torch.int64,
        "noise": torch.int64,
    }
    for name, shape in shapes.items():
        value = getattr(params, name)
        if value is None and name in ("blend", "noise"):
            continue
        if tuple(value.shape) != shape:
            raise ValueError(f"params.{name} must have shape {shape} for these images, found {tuple(value.shape)}")
        kind = kinds.get(name)
        if value.dtype != kind if kind else not value.is_floating_point():
            raise ValueError(f"params.{name} must be {kind or 'floating point'}, found {value.dtype}; cast it")
    if params.fill.requires_grad or (params.blend is not None and params.blend.requires_grad):
        raise ValueError("params.blend and fill are constants of the op: no gradient reaches them; detach() them")
    if params.dy.device.type == "cpu" and n:
        _check_values(params, n, height, width)


def check_white(params: CropMixParams, white: float) -> None:
    """ValueError where the fill was made for images of another white: it would be far outside of these."""
    if params.white is not None and params.white != white:
        kind = "uint8" if white == 255 else "float"
        raise ValueError(
            f"the fill of these params is for images whose white is {params.white:g}, and that of {kind} images is "
            f"{white:g}; draw them with sample_crop_mix(..., white={white:g})"
        )


def _check_values(params: CropMixParams, n: int, height: int, width: int) -> None:
    """The checks that read values; for parameters in host memory, with NumPy's smaller cost per operation."""
    partner, box = params.partner.numpy(), params.box.numpy()
    wrong = (partner < 0) | (partner >= n)
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"params.partner[{at}] = {partner[at]} is outside [0, {n}); partners are positions in this batch"
        )
    start, end = box[:, ::2], box[:, 1::2]
    outside = (start < 0) | (end < start) | (end > (height, width))
    if outside.any():
        at = int(outside.any(1).argmax())
        raise ValueError(
            f"params.box[{at}] = {box[at].tolist()} (top, bottom, left, right) leaves the image of "
            f"{height} x {width} or is turned over; clip it"
        )
    blend = None if params.blend is None else params.blend.double().numpy()
    if blend is not None and not ((blend >= 0) & (blend <= 1)).all():
        raise ValueError("params.blend must be in [0, 1]; it is the share of the own view")


def partner_users(partner: Tensor) -> tuple[Tensor, Tensor]:
    """Samples sorted by partner [N] and where each partner's begin [N+1]; no value is read on the host."""
    order = torch.argsort(partner, stable=True)
    names = torch.arange(len(partner) + 1, device=partner.device, dtype=partner.dtype)
    return order, torch.searchsorted(partner[order], names)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies host memory to a CUDA device by way of pinned memory, so that the host does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def some_samples(params: CropMixParams, chosen: Tensor) -> tuple[Tensor, CropMixParams]:
    """The samples at positions `chosen` [n] and what partners they need: positions [M], and the parameters of those.

    Sample i < n of the result shows what sample chosen[i] showed in the whole batch; those from n on are there to be
    partners. `params` are in host memory.
    """
    n, partners = len(chosen), torch.unique(params.partner[chosen])
    taken = torch.cat([chosen, partners[~torch.isin(partners, chosen)]])
    place = torch.full((len(params),), 0)
    place[taken] = torch.arange(len(taken))
    subset = {name: tensor[taken] for name, tensor in params.tensors().items()}
    subset["partner"] = torch.where(torch.arange(len(taken)) < n, place[subset["partner"]], 0)
    return taken, replace(params, **subset)  # type: ignore[arg-type]
