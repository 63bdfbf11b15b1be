"""Names of the fixed augmentation policies, read strictly: timm's strings, torchvision's `ta_wide`, `ra` and `aa`.

    rand-m9-mstd0.5-inc1   RandAugment (timm): magnitude, its deviation, operations that grow with it
    augmix-m3-w3-b1        AugMix (timm): magnitude, chains mixed, blended one by one; without Jensen-Shannon loss
    original  originalr  v0  v0r   AutoAugment's ImageNet policies (timm); -mstd0.5 adds noise to magnitudes
    3a                     3-Augment of DeiT III: grayscale, solarize or blur, then colour jitter
    ta_wide                TrivialAugment, wide (torchvision)
    ra-n2-m9               RandAugment as torchvision has it: operations, magnitude of 0 to 30
    ra-n2-m9-tcolor        of it what moves no pixels: identity, autocontrast, equalize, invert, colour, sharpness
    aa-cifar10             AutoAugment as torchvision has it: its policies imagenet (`aa` alone), cifar10 and svhn
    file:PATH              sub-policies of a file, as AutoAugment's: see recipe/subpolicy_files.py
    none                   no policy

Sections may come in any order. What timm takes is taken as timm takes it: a magnitude above mmax (10 unless given) is
cut to it, any number but 0 switches `inc` and `b` on, and `mstdinf` says nothing, having no digit: uniform magnitudes
are mstd101, or any above 100, and what augmix has by itself. A section that timm would pass over unread is refused, and
so is one given twice. Imports neither torch nor the libraries, so that a recipe is checked at once.
"""

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Section:
    """What may follow a section's letters: a number of `kind` in [low, high], or one of `choices`."""

    kind: type[int] | type[float] = int
    low: float = 0
    high: float = 1e6
    choices: tuple[str, ...] = ()


_MSTD = {"mstd": Section(float)}
FAMILIES: dict[str, dict[str, Section]] = {
    "rand": {
        "m": Section(),
        "n": Section(high=100),
        "p": Section(float),
        "mmax": Section(),
        "inc": Section(),
        "t": Section(choices=("weights", "3a", "3aw")),
        **_MSTD,
    },
    "augmix": {
        "m": Section(),
        "w": Section(low=1, high=100),
        "d": Section(high=100),
        "a": Section(float, low=1e-3),
        "b": Section(),
        **_MSTD,
    },
    **dict.fromkeys(("original", "originalr", "v0", "v0r", "3a"), _MSTD),
    "ta_wide": {},
    "ra": {"n": Section(low=1), "m": Section(high=30), "t": Section(choices=("color",))},
    "aa": {"": Section(choices=("imagenet", "cifar10", "svhn"))},
    "none": {},
}
FILE = "file:"  # before the path of a list of sub-policies


@dataclass(frozen=True)
class PolicyName:
    """A policy's name taken apart: `family`, its sections, and the name as written.

    Of family "file": a list of sub-policies, the path of which is `path`.
    """

    text: str
    family: str
    sections: dict[str, int | float | str]

    @property
    def library(self) -> Literal["timm", "torchvision"]:
        """Whose implementation it is."""
        return "torchvision" if self.family in ("ta_wide", "ra", "aa", "file") else "timm"

    @property
    def path(self) -> str | None:
        """The path of a list of sub-policies; None of a policy that has a name."""
        return self.text.removeprefix(FILE) if self.family == "file" else None


def parse_policy(text: str | None) -> PolicyName | None:
    """The parts of a policy's name, None for None, "" and "none"; ValueError names the part not known."""
    if not text or text == "none":
        return None
    if text.startswith(FILE):
        if text == FILE:
            raise ValueError(f"policy {text!r} lacks the path of a list of sub-policies; write {FILE}PATH")
        return PolicyName(text, "file", {})
    family, *parts = text.split("-")
    if family not in FAMILIES:
        raise ValueError(f"unknown policy {family!r} in {text!r}; known: {', '.join(FAMILIES)}, {FILE}PATH")
    sections: dict[str, int | float | str] = {}
    for part in parts:
        letters, value = _section(part, family, text)
        if letters in sections:
            raise ValueError(f"section {letters!r} is given twice in policy {text!r}")
        sections[letters] = value
    return PolicyName(text, family, sections)


def _section(part: str, family: str, text: str) -> tuple[str, int | float | str]:
    """Letters and value of one section such as mstd0.5."""
    known = FAMILIES[family]
    for letters, section in known.items():
        if section.choices and part.startswith(letters):
            if part[len(letters) :] in section.choices:
                return letters, part[len(letters) :]
            options = ", ".join(letters + choice for choice in section.choices)
            raise ValueError(f"unknown section {part!r} in policy {text!r}; known: {options}")
    if part == "mstdinf" and "mstd" in known:
        return "mstd", float("inf")
    match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
    if match is None or match[1] not in known:
        sections = f"known: {', '.join(known)}, each with its value" if known else f"{family} has none"
        raise ValueError(f"unknown section {part!r} in policy {text!r}; {sections}")
    section = known[match[1]]
    if section.kind is int and "." in match[2]:
        raise ValueError(f"section {part!r} in policy {text!r} must be a whole number")
    value = section.kind(match[2])
    if not section.low <= value <= section.high:
        raise ValueError(f"section {part!r} in policy {text!r} must be in [{section.low:g}, {section.high:g}]")
    return match[1], value
