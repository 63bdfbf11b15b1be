"""A shared policy as plain settings and back: its operations in full, so that a file says all that it needs.

An operation is an entry as a file of operations has it (recipe/operation_files.py): it names a function of ours and
never brings one.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastaug.augment.differentiable_ops import BLACK, Fill
from fastaug.augment.operation_sets import transforms_of
from fastaug.augment.shared_policy import Draws, SharedPolicy
from fastaug.recipe.operation_files import FUNCTIONS, MOST_OPERATIONS, Operation, as_entry, as_operation

MOST_SLOTS = 8
_KEYS = {"slots", "operations"}


def settings_of(policy: SharedPolicy) -> dict[str, Any]:
    """What `policy_of` needs to build a policy of the same operations; ValueError for operations that no file has."""
    return {"slots": policy.slots, "operations": [as_entry(entry) for entry in entries_of(policy)]}


def entries_of(policy: SharedPolicy) -> list[Operation]:
    """The entry of each operation; ValueError where one is made by hand."""
    entries = [transform.entry for transform in policy.transforms]
    if None in entries:
        raise ValueError(f"the operation {policy.transforms[entries.index(None)].name} is not made of a file's entry")
    return entries  # type: ignore[return-value]


@torch.no_grad()
def drawn_values(policy: SharedPolicy, draws: Draws) -> dict[str, Tensor]:
    """What was drawn of each operation, in a file's values: "name, unit" -> [N,slots], NaN where it was not drawn.

    Of operations with several numbers the first one.
    """
    amounts, found = policy.amounts(draws)[..., 0].double().cpu(), {}
    for number, entry in enumerate(entries_of(policy), 1):
        kind = FUNCTIONS[entry.function]
        if kind.neutral is None:
            values = torch.ones_like(amounts)
        else:
            values = kind.neutral * amounts.exp() if kind.log else kind.neutral + amounts
        unit = "pixels" if entry.absolute else kind.unit
        name = entry.name if unit == "none" else f"{entry.name}, {unit}"
        found[name] = torch.where(draws.op == number, values, torch.nan)
    return found


def policy_of(settings: Mapping[str, Any], fill: Fill = BLACK) -> SharedPolicy:
    """The policy of `settings` with probabilities and magnitudes of its own; ValueError names the key that is wrong."""
    if unknown := settings.keys() ^ _KEYS:
        key = min(unknown)
        raise ValueError(f"settings.{key[:100]}: is {'missing' if key in _KEYS else 'no setting of a policy'}")
    slots, operations = settings["slots"], settings["operations"]
    if type(slots) is not int or not 1 <= slots <= MOST_SLOTS:
        raise ValueError(f"settings.slots: {slots!r:.100} must be a whole number from 1 to {MOST_SLOTS}")
    if not isinstance(operations, list) or not 1 <= len(operations) <= MOST_OPERATIONS:
        raise ValueError(f"settings.operations: must be a list of 1 to {MOST_OPERATIONS}, found {operations!r:.100}")
    entries: list[Operation] = []
    for number, given in enumerate(operations):
        try:
            entries.append(as_operation(given))
        except ValueError as error:
            raise ValueError(f"settings.operations[{number}]: {error}") from None
        if entries[-1].function == "identity":
            raise ValueError(f"settings.operations[{number}]: identity does nothing; leave it out")
    names = [entry.name for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"settings.operations: two are called {twice[0]!r:.100}; give each a name of its own")
    return SharedPolicy(transforms_of(entries, fill), slots, fill=fill)
