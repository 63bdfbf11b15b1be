"""timm's RandAugment, AutoAugment, 3-Augment and AugMix, drawn by timm and applied by timm's operations.

timm draws while it applies. Here its transforms run on a tuple that records the operations in place of an
image: what will be done is known, as a value, before a pixel is touched.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from timm.data import auto_augment as library

from fastaug.augment.fixed.base import Policy
from fastaug.augment.fixed.seeded_draws import SeededModule
from fastaug.recipe.policy_names import PolicyName
from fastaug.seeding import IdArray, Key

SEEDED = SeededModule("timm.data.auto_augment")  # draws; `library` itself is timm's own and only works on pixels
RESAMPLE = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic")}


class Op(NamedTuple):
    """One recorded operation of timm: its name, its arguments, Pillow's number of the interpolation."""

    name: str
    args: tuple[float, ...]
    resample: int


class Mix(NamedTuple):
    """AugMix of one image: blend of the image and, by `share`, of its chains under `weights`."""

    share: float
    weights: tuple[float, ...]
    chains: tuple[tuple[Op, ...], ...]


def timm_policy(name: PolicyName, mean: Sequence[float], interpolation: str | None) -> Policy:
    """timm's policy of that name, with the settings that timm's own training pipeline gives it."""
    hparams: dict[str, Any] = {"img_mean": tuple(min(255, round(255 * x)) for x in mean)}
    if interpolation is not None:
        hparams["interpolation"] = RESAMPLE[interpolation]
    return AugMix(name, hparams) if name.family == "augmix" else TimmPolicy(name, hparams)


def _text(name: PolicyName) -> str:
    """The name for timm; without inc0 and b0, which versions before 1.0.29 take for inc1 and b1."""
    return "-".join(part for part in name.text.split("-") if not re.fullmatch("(inc|b)0+", part))


class TimmPolicy(Policy):
    """timm's RandAugment or AutoAugment: what is drawn are the operations of each image, in order."""

    def __init__(self, name: PolicyName, hparams: dict[str, Any]) -> None:
        self.made_of = name, hparams
        module: Any = SEEDED.module
        if name.family == "rand":
            self.transform = module.rand_augment_transform(_text(name), hparams)
            self.fill = _record(self.transform.ops)
        else:
            self.transform = module.auto_augment_transform(_text(name), hparams)
            self.fill = _record([op for chain in self.transform.policy for op in chain])

    def __reduce__(self) -> tuple[Any, ...]:
        return TimmPolicy, self.made_of  # the classes of a copy of timm cannot be pickled

    def sample(self, key: Key, ids: IdArray) -> list[tuple[Op, ...]]:
        """The operations of each image; an operation skipped by its probability is not listed."""
        return SEEDED.draw_each(lambda: self.transform(()), key, ids)

    def transformed(self, image: Image.Image, value: Sequence[Op]) -> Image.Image:
        """The image under the operations in order."""
        return _run(image, value, self.fill)


class AugMix(Policy):
    """AugMix (Hendrycks et al. 2020, algorithm 1): params are each image's chains and how they are mixed."""

    def __init__(self, name: PolicyName, hparams: dict[str, Any]) -> None:
        self.made_of = name, hparams
        module: Any = SEEDED.module
        self.transform = module.augment_and_mix_transform(_text(name), {**hparams, "translate_pct": 0.3})
        self.fill = _record(self.transform.ops)

    def __reduce__(self) -> tuple[Any, ...]:
        return AugMix, self.made_of

    def sample(self, key: Key, ids: IdArray) -> list[Mix]:
        """Weights of the chains (Dirichlet), share of the mixture (Beta) and operations of each image."""
        return SEEDED.draw_each(self._draw, key, ids)

    def _draw(self) -> Mix:
        timm, generator = self.transform, SEEDED.numpy  # the order of draws is timm's
        weights = generator.dirichlet([timm.alpha] * timm.width)
        share = generator.beta(timm.alpha, timm.alpha)
        chains = []
        for _ in weights:
            depth = timm.depth if timm.depth > 0 else generator.randint(1, 4)
            chain: tuple[Op, ...] = ()
            for op in generator.choice(timm.ops, depth, replace=True):
                chain = op(chain)
            chains.append(chain)
        return Mix(float(share), tuple(weights.tolist()), tuple(chains))

    def transformed(self, image: Image.Image, value: Mix) -> Image.Image:
        """The image blended with its chains."""
        if self.transform.blended:
            return self._blended_in_turn(image, value)
        mixed = np.zeros((image.height, image.width, 3), dtype=np.float32)
        for weight, chain in zip(value.weights, value.chains, strict=True):
            mixed += np.float32(weight) * np.asarray(_run(image, chain, self.fill), dtype=np.float32)
        chains = Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))
        return Image.blend(image, chains, float(np.float32(value.share)))

    def _blended_in_turn(self, image: Image.Image, value: Mix) -> Image.Image:
        """timm's b1: each chain is blended into what there is so far, in 8 bits, by shares that amount to the same."""
        mixed = image
        for share, chain in zip(_shares_in_turn(value), value.chains, strict=True):
            mixed = Image.blend(mixed, _run(image, chain, self.fill), float(share))
        return mixed


def _shares_in_turn(value: Mix) -> list[np.float32]:
    """What each chain is blended in by, one after the other, to end with its share of the whole; in timm's float32."""
    whole = np.array(value.weights, dtype=np.float32) * np.float32(value.share)
    shares, left = [], np.float32(1)
    for part in whole[::-1]:  # the last one is not covered by any other
        shares.append(part / left)
        left = left * (1 - shares[-1])
    return shares[::-1]


def _record(ops: Sequence[Any]) -> tuple[int, int, int]:
    """Makes timm's operations append themselves to a tuple, not change an image; returns their fill."""
    for op in ops:
        op.aug_fn = partial(_append, op.name)
    fill: tuple[int, int, int] = ops[0].kwargs["fillcolor"]
    return fill


def _append(
    name: str, done: tuple[Op, ...], *args: float, fillcolor: tuple[int, int, int], resample: Any
) -> tuple[Op, ...]:
    """`done` and one more operation; draws what timm leaves to be drawn inside the operation."""
    del fillcolor  # the same for all
    if name == "GaussianBlurRand":
        return (*done, Op("GaussianBlur", (SEEDED.random.uniform(0.1, 2.0 * args[0]),), 0))
    moves = name.startswith(("Shear", "Translate", "Rotate"))
    if moves and isinstance(resample, tuple):
        resample = SEEDED.random.choice(resample)
    return (*done, Op(name, args, int(resample) if moves else 0))


def _run(image: Image.Image, ops: Sequence[Op], fill: tuple[int, int, int]) -> Image.Image:
    functions: dict[str, Callable[..., Image.Image]] = library.NAME_TO_OP
    for op in ops:
        if op.name.startswith("Posterize") and op.args[0] <= 0:  # below 0 with mmax above 10
            image = Image.new("RGB", image.size)  # no bit kept: black, as ever; Pillow 13 refuses to do it
        else:
            image = functions[op.name](image, *op.args, fillcolor=fill, resample=op.resample)
    return image
