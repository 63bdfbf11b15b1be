"""A shared policy as plain settings and back: its operations in full, so that a file says all that it needs.

An operation is {"name", "function", "reach", "noise"}: `function` is one of FUNCTIONS, the rest a Transform's. A file
names functions, it never brings any.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fastaug.augment.differentiable_ops import BLACK, EIGHT, Colour, Transform
from fastaug.augment.shared_policy import SharedPolicy

FUNCTIONS: Mapping[str, Transform] = MappingProxyType({transform.name: transform for transform in EIGHT})
MOST_OPERATIONS, MOST_SLOTS = 1000, 8
_KEYS = {"slots", "operations"}


def settings_of(policy: SharedPolicy) -> dict[str, Any]:
    """What `policy_of` needs to build a policy of the same operations and form."""
    return {"slots": policy.slots, "operations": [_described(transform) for transform in policy.transforms]}


def policy_of(settings: Mapping[str, Any], fill: Colour = BLACK) -> SharedPolicy:
    """The policy of `settings` with probabilities and magnitudes of its own; ValueError names the key that is wrong."""
    if unknown := settings.keys() ^ _KEYS:
        key = min(unknown)
        raise ValueError(f"settings.{key[:100]}: is {'missing' if key in _KEYS else 'no setting of a policy'}")
    slots, operations = settings["slots"], settings["operations"]
    if type(slots) is not int or not 1 <= slots <= MOST_SLOTS:
        raise ValueError(f"settings.slots: {_short(slots)} must be a whole number from 1 to {MOST_SLOTS}")
    if not isinstance(operations, list) or not 1 <= len(operations) <= MOST_OPERATIONS:
        raise ValueError(f"settings.operations: must be a list of 1 to {MOST_OPERATIONS}, found {_short(operations)}")
    built = [_operation(f"settings.operations[{number}]", given) for number, given in enumerate(operations)]
    names = [transform.name for transform in built]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"settings.operations: two are called {twice[0]!r}; rename one")
    return SharedPolicy(built, slots, fill=fill)


def function_of(transform: Transform) -> str:
    """The name in FUNCTIONS of what an operation does."""
    for name, known in FUNCTIONS.items():
        if known.apply is transform.apply and known.matrix is transform.matrix:
            return name
    raise ValueError(f"the operation {transform.name} is of a function of its own, which no file can name")


def _described(transform: Transform) -> dict[str, Any]:
    return {
        "name": transform.name,
        "function": function_of(transform),
        "reach": list(transform.reach),
        "noise": list(transform.noise),
    }


def _operation(where: str, given: Any) -> Transform:
    """The Transform of an operation's settings."""
    if not isinstance(given, dict) or given.keys() != {"name", "function", "reach", "noise"}:
        raise ValueError(f"{where}: must have name, function, reach and noise, found {_short(given)}")
    name, function = given["name"], given["function"]
    if not isinstance(name, str) or re.fullmatch(r"[A-Za-z][A-Za-z0-9_+-]{0,63}", name) is None:
        raise ValueError(f"{where}.name: {_short(name)} must be letters, digits, _, + or -, at most 64")
    if not isinstance(function, str) or function not in FUNCTIONS:
        raise ValueError(f"{where}.function: {_short(function)} is not one of {', '.join(FUNCTIONS)}")
    known = FUNCTIONS[function]
    reach = _floats(f"{where}.reach", given["reach"], len(known.reach), 1000.0)
    low, high = _floats(f"{where}.noise", given["noise"], 2, 1.0)
    if low > high:
        raise ValueError(f"{where}.noise: must be [low, high], found {[low, high]}")
    return known._replace(name=name, reach=reach, noise=(low, high))


def _floats(where: str, given: Any, count: int, largest: float) -> tuple[float, ...]:
    numbers = isinstance(given, list) and all(type(value) in (int, float) for value in given)
    if not numbers or len(given) != count or not all(abs(value) <= largest for value in given):
        raise ValueError(f"{where}: must be {count} numbers of at most {largest:g} in size, found {_short(given)}")
    return tuple(map(float, given))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
