"""Operations that change colours, beyond those of the set of eight: hue, posterize, solarize, equalize and others.

As in `differentiable_ops.py`: images float [n,3,H,W] in [0, 1], amounts [n], 0 leaves an image exactly as it is. Each
says how it is differentiated. Where it has steps, its gradient in the images is straight through: that of the identity.
"""

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V  # type: ignore[import-untyped]

SOLARIZE_WIDTH = 0.1  # of the sigmoid whose gradient stands in for that of solarize's step


def hue(images: Tensor, amount: Tensor) -> Tensor:
    """Hue: turned by `amount` of the colour wheel, in HSV. Exact gradient in the amount; straight through in images."""
    with torch.no_grad():
        high, low = images.amax(1), images.amin(1)
        spread = high - low
        red, green, blue = images.unbind(1)
        safe = torch.where(spread > 0, spread, 1)
        of_blue = torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
        sixth = torch.where(high == red, (green - blue) / safe, of_blue)
        sixth = torch.where(spread > 0, sixth, 0)
    turned = sixth + 6 * amount[:, None, None]
    change = [spread * (_wave(n + sixth) - _wave(n + turned)) for n in (5, 3, 1)]
    return (images + torch.stack(change, 1)).clamp(0, 1)


def _wave(sixths: Tensor) -> Tensor:
    """How far a channel is below the largest one, by its place on the colour wheel in sixths."""
    sixths = sixths.remainder(6)
    return torch.minimum(sixths, 4 - sixths).clamp(0, 1)


def posterize(images: Tensor, amount: Tensor) -> Tensor:
    """Posterize: |amount| of a value's 8 bits are dropped, the lowest; in between, the blend of both numbers of bits.

    Piecewise linear in the amount, with that gradient; straight through in the images.
    """
    dropped = torch.where(amount < 0, -amount, amount)[:, None, None, None]
    fewer = dropped.detach().floor()
    with torch.no_grad():
        low, high = _coarse(images, fewer), _coarse(images, fewer + 1)
    return images + ((low + (dropped - fewer) * (high - low)) - images.detach())


def _coarse(images: Tensor, bits: Tensor) -> Tensor:
    """Images without the lowest `bits` [n,1,1,1] of 8, themselves at 0."""
    step = 2**bits
    return torch.where(bits == 0, images, ((images * 255 + 1e-3) / step).floor() * step / 255)


def solarize(images: Tensor, amount: Tensor) -> Tensor:
    """Solarize: values above 1 - |amount| are inverted.

    In the amount it takes the gradient of a sigmoid in place of the step (straight-through); in the images too it is
    straight through.
    """
    size = torch.where(amount < 0, -amount, amount)[:, None, None, None]
    still = images.detach()
    hard = (still > 1 - size.detach()).to(images)
    soft = ((still - (1 - size)) / SOLARIZE_WIDTH).sigmoid()
    return images + (1 - 2 * still) * (hard + (soft - soft.detach()))


def equalize(images: Tensor, amount: Tensor) -> Tensor:
    """Equalize: the blend, by `amount`, with the image whose histogram is flat in each channel (8 bits, as Pillow's).

    Exact gradient in the amount; straight through in the images.
    """
    with torch.no_grad():
        flat = V.equalize(images) - images
    return images + amount[:, None, None, None] * flat


def autocontrast(images: Tensor, amount: Tensor) -> Tensor:
    """Autocontrast: the blend, by `amount`, with the image whose channels reach from 0 to 1. Exact gradients."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high == low
    stretched = torch.where(flat, images, (images - low) / torch.where(flat, 1, high - low))
    return images + amount[:, None, None, None] * (stretched - images)


def invert(images: Tensor, amount: Tensor) -> Tensor:
    """Invert: the blend, by `amount`, with the negative. Exact gradients."""
    return images + amount[:, None, None, None] * (1 - 2 * images)
