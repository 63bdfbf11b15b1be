"""A shared policy as plain settings and back: its operations in full, so that a file says all that it needs.

An operation is an entry as a file of operations has it (recipe/operation_files.py): it names a function of ours and
never brings one.
"""

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fastaug.augment.differentiable_ops import BLACK, Colour, Fill
from fastaug.augment.operation_sets import transforms_of
from fastaug.augment.plain_values import load_plain_values
from fastaug.augment.sequence_policy import SequencePolicy
from fastaug.augment.shared_policy import Draws, SharedPolicy
from fastaug.recipe.operation_files import FUNCTIONS, MOST_OPERATIONS, Operation, as_entry, as_operation
from fastaug.recipe.policy_file import AS_WRITTEN, SOUND
from fastaug.recipe.schema import MOST_SLOTS, Padding

LARGEST_TAU = 1e30
PADDINGS = get_args(Padding)
WHITE: Colour = (1.0, 1.0, 1.0)
_KEYS = {"slots", "sequence", "shared_magnitude", "tau", "mix", "padding", "operations"}


def settings_of(policy: SharedPolicy, padding: str) -> dict[str, Any]:
    """What `policy_of` needs to build a policy of this form; ValueError for operations that no file has.

    `padding` is the word for what its operations show outside of an image: a mean colour goes with the data.
    """
    return {
        "slots": policy.slots,
        "sequence": isinstance(policy, SequencePolicy),
        "shared_magnitude": len(policy.strengths) < len(policy.transforms),
        "tau": policy.tau,
        "mix": policy.mix,
        "padding": padding,
        "operations": [as_entry(entry) for entry in entries_of(policy)],
    }


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


def policy_of(settings: Mapping[str, Any], mean: Colour) -> SharedPolicy:
    """The policy of `settings`, for images of mean colour `mean`; ValueError names the key that is wrong."""
    if unknown := settings.keys() ^ _KEYS:
        key = min(unknown)
        found = "is missing" if key in _KEYS else f"is no setting of a policy, which has {', '.join(sorted(_KEYS))}"
        raise ValueError(f"settings.{key[:100]}: {found}; {AS_WRITTEN}")
    slots, padding = settings["slots"], settings["padding"]
    if type(slots) is not int or not 1 <= slots <= MOST_SLOTS:
        raise ValueError(f"settings.slots: {slots!r:.100} must be a whole number from 1 to {MOST_SLOTS}")
    if padding not in PADDINGS:
        raise ValueError(f"settings.padding: {padding!r:.100} is not one of {', '.join(PADDINGS)}")
    for key in ("sequence", "shared_magnitude"):
        if not isinstance(settings[key], bool):
            raise ValueError(f"settings.{key}: {settings[key]!r:.100} must be true or false")
    fill, entries = fill_of(padding, mean), _entries(settings["operations"])
    tau, mix = _form(settings, "tau", LARGEST_TAU), _form(settings, "mix", 1.0)
    kind = SequencePolicy if settings["sequence"] else SharedPolicy
    shared: bool = settings["shared_magnitude"]
    try:
        return kind(transforms_of(entries, fill), slots, fill=fill, shared_magnitude=shared, tau=tau, mix=mix)
    except ValueError as error:
        raise ValueError(f"settings: {error}") from None


def filled_policy(settings: Mapping[str, Any], values: Mapping[str, Any], mean: Colour) -> SharedPolicy:
    """The policy of `settings` with the numbers `values`, by their names in a policy file.

    ValueError names the key that is wrong: also where the probabilities do not come out finite.
    """
    policy = policy_of(settings, mean)
    load_plain_values(nn.ModuleDict({"policy": policy}), values)
    with torch.no_grad():
        finite, largest = policy.probabilities().isfinite().all(), float(policy.logits.abs().max())
    if not finite:
        raise ValueError(
            f"settings.tau: {policy.tau:g} times values.policy.logits, of up to {largest:g}, gives no finite "
            f"probabilities; {SOUND}"
        )
    return policy


def fill_of(padding: str, mean: Colour) -> Fill:
    """What is shown outside of an image by the word of meta.padding."""
    fills: dict[str, Fill] = {"mean": tuple(mean), "black": BLACK, "white": WHITE, "border": "border"}
    return fills.get(padding, "reflect")


def _form(settings: Mapping[str, Any], key: str, most: float) -> float:
    value = settings[key]
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise ValueError(f"settings.{key}: {value!r:.100} must be a number from 0 to {most:g}")
    return float(value)


def _entries(operations: Any) -> list[Operation]:
    """The entries of a list of operations."""
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
    return entries
