"""Softening: how much confidence a label keeps for what is visible of its image, as in Soft Augmentation."""

from dataclasses import dataclass

from torch import Tensor

from fastaug.targets import soft_augmentation_mass

ON = ("both", "target", "weight", "none")


@dataclass(frozen=True)
class Soften:
    """Settings of how visibility turns into confidence: Soft Augmentation (Liu et al. 2023), and its joins with mixing.

    k: exponent of s(v) = 1 - (1 - v)^k, a number or a tensor ([] or [N]) that gradients reach. p_max, threshold: p_max,
    the probability of the label, from the visible share T on. visibility: "area" share, or "iou" of view and image. on:
    soften the target, the loss weight, both or none (the hard control). rule for pasted boxes: "pixels" s of all that
    is visible, shared by visible pixels; "own" area lambda times each image's own s; "base" area lambda times s of the
    base. other: missing confidence goes to an extra class C, not to all; not with mixing.
    """

    k: float | Tensor = 2.0
    p_max: float = 1.0
    threshold: float = 1.0
    visibility: str = "area"
    on: str = "both"
    rule: str = "pixels"
    other: bool = False

    def __post_init__(self) -> None:
        choices = {"visibility": ("area", "iou"), "on": ON, "rule": ("pixels", "own", "base")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {getattr(self, name)!r}")
        if not isinstance(self.k, Tensor) and not self.k > 0:
            raise ValueError(f"the softening exponent k must be > 0, found {self.k}; use on='none' for hard targets")

    def curve(self, v: Tensor, classes: int) -> Tensor:
        """Mass of the label at visible share `v`, any shape [N, ...], of `classes` C."""
        v = v / (2 - v) if self.visibility == "iou" else v  # |A & B| / |A | B| of two equal rectangles
        k = self.k
        if isinstance(k, Tensor) and k.ndim:
            k = k.reshape(-1, *[1] * (v.ndim - 1))
        return soft_augmentation_mass(v, k, classes, self.p_max, self.threshold)
