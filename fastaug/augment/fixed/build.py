"""Fixed augmentation policies by name: timm's and torchvision's."""

from collections.abc import Sequence

from fastaug.augment.fixed.base import InOrder, Policy
from fastaug.recipe.policy_names import parse_policy
from fastaug.recipe.subpolicy_files import read_subpolicies

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
JITTER_3A = 0.3  # DeiT III (Touvron et al. 2022), section 3.2 and its code


def build_policy(
    aa: str | None,
    *,
    img_size: int | tuple[int, int],
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    interpolation: str | None = None,
    color_jitter: float | None = None,
) -> Policy | None:
    """The policy named `aa` (see recipe/policy_names.py) for images of `img_size`, None if there is nothing to do.

    timm fills what an operation uncovers with `mean` (of images in [0, 1]), torchvision with black.
    `interpolation` of rotations and the like: None is the library's own (timm: bilinear or bicubic by chance;
    torchvision: nearest). `color_jitter` j adds brightness, contrast and saturation factors in
    [1 - j, 1 + j]; None is none, but 0.3 for 3a.
    """
    name = parse_policy(aa)
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        raise ValueError(f"unknown interpolation {interpolation!r}; known: {', '.join(INTERPOLATIONS)}")
    if color_jitter is not None and not 0 <= color_jitter <= 1:
        raise ValueError(f"color_jitter must be in [0, 1], found {color_jitter}")
    if color_jitter is None and name is not None and name.family == "3a":
        color_jitter = JITTER_3A
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    policies: list[Policy] = []
    if name is not None and name.library == "timm":
        from fastaug.augment.fixed.timm_ops import timm_policy

        policies.append(timm_policy(name, mean, interpolation))
    elif name is not None and name.path is not None:
        from fastaug.augment.fixed.listed import ListedPolicy

        policies.append(ListedPolicy(read_subpolicies(name.path), size, mean, interpolation or "nearest"))
    elif name is not None:
        from fastaug.augment.fixed.torchvision_ops import TorchvisionPolicy

        policies.append(TorchvisionPolicy(name, size, interpolation or "nearest"))
    if color_jitter:
        from fastaug.augment.fixed.torchvision_ops import ColorJitter

        policies.append(ColorJitter(color_jitter))
    if len(policies) == 2:
        return InOrder(policies)
    return policies[0] if policies else None
