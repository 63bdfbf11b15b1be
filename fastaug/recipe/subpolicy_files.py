"""Files of fixed sub-policies, as AutoAugment, Fast AutoAugment and DADA publish theirs: which operations, how read.

A file of YAML or JSON is a list of sub-policies; each is a list of steps (operation, probability, level) in order:

    - [[ShearX, 0.9, 0.5], [Invert, 0.2, 0.1]]
    - [[Rotate, 0.4, 0.8], [Color, 0.7, 0.25]]

An image draws one sub-policy, and takes each of its steps with the step's probability. A level in [0, 1] goes from the
low to the high end of the operation's range (OPERATIONS), those of Fast AutoAugment and DADA; what moves pixels is
mirrored half of the time. No list comes with fastaug. Needs no torch, and executes nothing.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fastaug.errors import RecipeError
from fastaug.recipe.list_file import read_list

LARGEST_FILE, MOST_SUBPOLICIES, MOST_STEPS = 2**20, 10_000, 16  # bytes; of a file; of a sub-policy


class Range(NamedTuple):
    """Values of an operation at the levels 0 and 1; `mirrored`: of either sign."""

    low: float = 0.0
    high: float = 0.0
    mirrored: bool = False


# Tangents, shares of the side, degrees; Solarize: a grey value; Posterize: bits; factors; Cutout: share of the side.
OPERATIONS: Mapping[str, Range] = MappingProxyType(
    {
        **dict.fromkeys(("ShearX", "ShearY"), Range(-0.3, 0.3, mirrored=True)),
        **dict.fromkeys(("TranslateX", "TranslateY"), Range(-0.45, 0.45, mirrored=True)),
        "Rotate": Range(-30, 30, mirrored=True),
        **dict.fromkeys(("AutoContrast", "Invert", "Equalize"), Range()),
        "Solarize": Range(0, 256),
        "Posterize": Range(4, 8),
        **dict.fromkeys(("Contrast", "Color", "Brightness", "Sharpness"), Range(0.1, 1.9)),
        "Cutout": Range(0, 0.2),
    }
)


class Step(NamedTuple):
    """One step of a sub-policy."""

    operation: str
    probability: float
    level: float


SubPolicy = tuple[Step, ...]


def read_subpolicies(path: str) -> tuple[SubPolicy, ...]:
    """The sub-policies of a file; RecipeError says what is wrong with which of them."""
    start, largest = f"augment.aa: {path}", LARGEST_FILE
    try:
        values = read_list(Path(path), start, most=MOST_SUBPOLICIES, of="sub-policies", largest=largest)
    except FileNotFoundError as error:
        raise RecipeError([f"{start}: cannot be read: {error}; give a YAML or JSON file in UTF-8"]) from error
    found, problems = [], []
    for number, entry in enumerate(values, 1):
        try:
            found.append(_subpolicy(entry))
        except ValueError as error:
            problems.append(f"augment.aa: {path}: sub-policy {number}: {error}")
    if problems:
        raise RecipeError(problems[:30])
    return tuple(found)


def _subpolicy(entry: Any) -> SubPolicy:
    if not isinstance(entry, list) or not 1 <= len(entry) <= MOST_STEPS:
        raise ValueError(f"must be a list of 1 to {MOST_STEPS} steps, found {entry!r:.100}")
    return tuple(_step(step) for step in entry)


def _step(step: Any) -> Step:
    if not isinstance(step, list) or len(step) != 3:
        raise ValueError(f"a step must be [operation, probability, level], found {step!r:.100}")
    name, *numbers = step
    if not isinstance(name, str) or name not in OPERATIONS:
        close = difflib.get_close_matches(str(name)[:60], OPERATIONS, n=1)
        near = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown operation {name!r:.100}{near} (known: {', '.join(OPERATIONS)})")
    for kind, number in zip(("probability", "level"), numbers, strict=True):
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= 1:
            raise ValueError(f"{name}: the {kind} must be a number in [0, 1], found {number!r:.100}")
    return Step(name, *(float(number) for number in numbers))
