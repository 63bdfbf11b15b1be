"""Fill "noise": what no image covers becomes a normal number per pixel and channel, after the fused pass.

Plain torch on every device and its own definition: a second pass over the batch, slower than the other fills.
"""

import torch
from torch import Tensor

from fastaug.ops.crop_mix.params import CropMixParams
from fastaug.ops.crop_mix.reference import in_box, view_index


def uncovered(params: CropMixParams, height: int, width: int) -> Tensor:
    """Pixels where no image is in sight [N,H,W] bool: own view outside the box, the partner's inside.

    A blended sample shows both views: there neither is in sight. Beside only one of them lies `fill`.
    """
    own, _ = view_index(params, height, width)
    other = own[params.partner]
    blends = (params.own_share() < 1)[:, None, None]
    return ~torch.where(in_box(params, height, width), other, own | (other & blends))


def with_noise(mixed: Tensor, params: CropMixParams, out: Tensor | None) -> Tensor:
    """Normalised float [N,H,W,C] with standard normal numbers where `uncovered`; written to `out` if given.

    Seeded by `params.noise`: a sample gets the same numbers in every batch, but a GPU's differ from a CPU's.
    Noise passes no gradient on.
    """
    hidden = uncovered(params.to(mixed.device), *mixed.shape[1:3])[..., None]
    return torch.where(hidden, _drawn(mixed, params), mixed, out=out)


@torch.compiler.disable
def _drawn(like: Tensor, params: CropMixParams) -> Tensor:
    """Standard normal numbers for every pixel of each sample, in the shape and type of `like`."""
    assert params.noise is not None
    noise = torch.empty_like(like, requires_grad=False)
    generator = torch.Generator(like.device)
    for sample, seed in zip(noise, params.noise.tolist(), strict=True):
        generator.manual_seed(seed)
        sample.copy_(torch.randn(sample.shape, generator=generator, device=like.device))
    return noise
