"""Files of operations that a policy learns to use: which functions there are, and how a list of them is read.

A file is a YAML list; an entry names a function and the range of its values:

    - {name: rotate, function: rotate, max: 30}                      # -30 to 30 degrees
    - {name: +contrast, function: contrast, min: 1, max: 1.9}        # upwards only
    - {name: thin, function: stroke, min: -1, max: 0}
    - {name: far, function: translate_x, min: 25, max: 30, absolute: true, fixed: true}

The schema of smart_augmentation ({name, function, param: {axis, min, max, absolute, invScale}}, as JSON) is read too.
Imports no torch, so that a recipe is checked at once, and executes nothing.
"""

import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastaug.errors import RecipeError
from fastaug.recipe.list_file import read_list
from fastaug.recipe.schema import Meta

SETS = Path(__file__).parents[1] / "augment" / "sets"  # the packaged ones
LARGEST_TABLE = 20_000  # sequences whose probabilities a policy may learn one by one
SMALLEST = 1e-9  # distance from what changes nothing that still counts as one
LARGEST_FILE, MOST_OPERATIONS, LONGEST_NAME = 2**16, 200, 60
_KEYS = ("name", "function", "min", "max", "absolute", "fixed")


class Function(NamedTuple):
    """What the values of a function mean. `neutral` changes nothing; None: it has no values, only yes or no.

    Values lie in [lowest, highest]. `log`: both ways are equally far in their logarithm. `largest_pixels`: the largest
    value in pixels where one is allowed instead of a share (absolute: true).
    """

    unit: str
    neutral: float | None = None
    lowest: float = 0.0
    highest: float = 0.0
    log: bool = False
    largest_pixels: float = 0.0


_FACTOR = Function("factor", 1, 0, 10)
_ZOOM = Function("factor", 1, 0.1, 10, log=True)
_BLEND = Function("share of the full effect", 0, 0, 1)
FUNCTIONS: dict[str, Function] = {
    "identity": Function("none"),
    "flip_x": Function("none"),
    "flip_y": Function("none"),
    "rotate": Function("degrees", 0, -180, 180),
    "translate_x": Function("share of the width", 0, -1, 1, largest_pixels=4096),
    "translate_y": Function("share of the height", 0, -1, 1, largest_pixels=4096),
    "shear_x": Function("tangent", 0, -4, 4),
    "shear_y": Function("tangent", 0, -4, 4),
    "scale": _ZOOM,
    "scale_x": _ZOOM,
    "scale_y": _ZOOM,
    "perspective": Function("tilt", 0, -0.45, 0.45),
    "elastic": Function("share of the side", 0, -0.5, 0.5),
    "brightness": _FACTOR,
    "contrast": _FACTOR,
    "saturation": _FACTOR,
    "sharpness": _FACTOR,
    "hue": Function("turns of the colour wheel", 0, -0.5, 0.5),
    "posterize": Function("bits kept", 8, 1, 8),
    "solarize": Function("threshold", 1, 0, 1),
    "equalize": _BLEND,
    "autocontrast": _BLEND,
    "invert": _BLEND,
    "cutout": Function("side, share of the shorter one", 0, 0, 1, largest_pixels=4096),
    "blur": Function("standard deviation, share of the shorter side", 0, 0, 0.25, largest_pixels=64),
    "stroke": Function("pixels", 0, -8, 8),
}


@dataclass(frozen=True)
class Operation:
    """One entry of a file: a function under a name, its values from `low` to `high` at magnitude 1.

    `absolute`: values are pixels. `fixed`: the magnitude stays 1 and is not learned.
    """

    name: str
    function: str
    low: float = 0.0
    high: float = 0.0
    absolute: bool = False
    fixed: bool = False


def packaged_sets() -> list[str]:
    """Names of the sets that come with the package."""
    return sorted(path.stem for path in SETS.glob("*.yaml"))


def read_entries(name_or_path: str) -> tuple[Operation, ...]:
    """The operations of a packaged set or of a file; RecipeError names file, entry and remedy, all that is wrong."""
    where = name_or_path
    path = SETS / f"{where}.yaml" if where in packaged_sets() else Path(where)
    entries = _read_list(path, where)
    problems: list[str] = []
    found: list[Operation] = []
    for number, entry in enumerate(entries, 1):
        label = f"meta.operations: {where}: entry {number}"
        try:
            operation = _operation(entry)
        except ValueError as error:
            problems.append(f"{label}: {error}")
            continue
        if operation.name in {other.name for other in found}:
            problems.append(f"{label}: the name {operation.name!r} stands twice; give each a name of its own")
        found.append(operation)
    if problems:
        raise RecipeError(problems[:30])
    acting = tuple(operation for operation in found if operation.function != "identity")
    if not acting:
        raise RecipeError([f"meta.operations: {where}: has no operation that does anything; add one"])
    return acting


def check_operations(meta: Meta) -> None:
    """RecipeError where the policy's operations cannot be read, or make too many sequences."""
    count = (1 + len(read_entries(meta.operations))) ** meta.slots
    if meta.sequence and count > LARGEST_TABLE:
        raise RecipeError(
            [
                f"meta.sequence: {count:,} sequences of {meta.slots} of the operations of {meta.operations}, or none, "
                f"are more than {LARGEST_TABLE:,}; lower meta.slots or take a smaller set"
            ]
        )


def _read_list(path: Path, where: str) -> list[Any]:
    start = f"meta.operations: {where}"
    try:
        return read_list(path, start, most=MOST_OPERATIONS, of="operations", largest=LARGEST_FILE)
    except FileNotFoundError:
        known = packaged_sets()
        close = difflib.get_close_matches(where, known, n=1)
        near = f"; did you mean {close[0]}?" if close else ""
        text = f"{start}: is neither a file nor a packaged set{near} (packaged: {', '.join(known)})"
        raise RecipeError([text]) from None


def _operation(entry: Any) -> Operation:
    """One entry of a list, ours or smart_augmentation's; ValueError says what is wrong with it."""
    if not isinstance(entry, dict):
        raise ValueError(f"must be a mapping with a function, found {entry!r:.100}")
    if "param" in entry or entry.get("function") in ("flip", "translate", "shear", "color"):
        entry = _in_our_keys(entry)
    if unknown := [key for key in entry if key not in _KEYS]:
        raise ValueError(f"unknown key {unknown[0]!r:.100}; known: {', '.join(_KEYS)}")
    function = entry.get("function")
    if not isinstance(function, str) or function not in FUNCTIONS:
        close = difflib.get_close_matches(str(function)[:60], FUNCTIONS, n=1)
        near = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"unknown function {function!r:.100}{near} (known: {', '.join(FUNCTIONS)})")
    name = entry.get("name", function)
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or "/" in name:
        raise ValueError(f"name {name!r:.100} must be a text of 1 to {LONGEST_NAME} characters without a slash")
    switches = {key: entry.get(key, False) for key in ("absolute", "fixed")}
    if wrong := [key for key, value in switches.items() if not isinstance(value, bool)]:
        raise ValueError(f"{name}: {wrong[0]} must be true or false, found {switches[wrong[0]]!r:.100}")
    if FUNCTIONS[function].neutral is None:
        if extra := [key for key in ("min", "max", "absolute") if key in entry]:
            raise ValueError(f"{name}: {function} has no values; leave out {extra[0]}")
        return Operation(name, function, fixed=True)
    low, high = _range(entry, name, function, switches["absolute"])
    return Operation(name, function, low, high, **switches)


def _range(entry: dict[str, Any], name: str, function: str, absolute: bool) -> tuple[float, float]:
    """The two ends of an entry's values; without `min` both are equally far from what changes nothing, or one is it."""
    kind = FUNCTIONS[function]
    assert kind.neutral is not None
    if absolute and not kind.largest_pixels:
        raise ValueError(f"{name}: {function} has no values in pixels; leave out absolute")
    most = kind.largest_pixels if absolute else kind.highest
    least = max(kind.lowest, -1) * kind.largest_pixels if absolute else kind.lowest
    high = _number(entry, "max", name)
    if "min" in entry:
        low = _number(entry, "min", name)
    elif high <= kind.neutral:
        raise ValueError(
            f"{name}: without min, max has to be above {kind.neutral:g}, which changes nothing ({function}), found "
            f"{high:g}; write min and max"
        )
    else:
        low = max(least, kind.neutral**2 / high if kind.log else 2 * kind.neutral - high)
    if low > high:
        raise ValueError(f"{name}: min {low:g} is above max {high:g}; exchange them")
    if not least <= low <= high <= most:
        raise ValueError(
            f"{name}: {low:g} to {high:g} is outside of {least:g} to {most:g} ({function}, {kind.unit}); narrow it"
        )
    if max(abs(low - kind.neutral), abs(high - kind.neutral)) < SMALLEST:
        raise ValueError(f"{name}: {low:g} to {high:g} changes nothing ({function}); widen it or use identity")
    return low, high


def _number(entry: dict[str, Any], key: str, name: str) -> float:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
        raise ValueError(f"{name}: {key} must be a finite number, found {value!r:.100}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: {key} is a number of hundreds of digits; narrow it") from None


# ---- single entries, for policy.json ----


def as_entry(operation: Operation) -> dict[str, Any]:
    """The entry that `as_operation` makes this operation of."""
    found = {"name": operation.name, "function": operation.function}
    if FUNCTIONS[operation.function].neutral is None:
        return found
    given = {"min": operation.low, "max": operation.high, "absolute": operation.absolute, "fixed": operation.fixed}
    return found | given


def as_operation(entry: Any) -> Operation:
    """The operation of an entry; ValueError says what is wrong with it."""
    return _operation(entry)


# ---- the schema of smart_augmentation ----

_AXES = {"flip": "flip", "translate": "translate", "shear": "shear"}


def _in_our_keys(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of smart_augmentation in our keys.

    There a `min` of null or 0 means as far as `max` the other way, but for cutout. `invScale` says which end changes
    nothing, which follows from the function here, and a shear is `absolute` without meaning pixels.
    """
    param = entry.get("param", {})
    if not isinstance(param, dict):
        raise ValueError(f"param must be a mapping, found {param!r:.100}")
    known = ("axis", "min", "max", "absolute", "invScale")
    if unknown := [key for key in param if key not in known]:
        raise ValueError(f"unknown key {unknown[0]!r:.100} in param; known: {', '.join(known)}")
    ours = {key: value for key, value in entry.items() if key != "param"}
    function = entry.get("function")
    if isinstance(function, str) and function in _AXES:
        axis = str(param.get("axis", "")).lower()
        if axis not in ("x", "y"):
            raise ValueError(f"{function} needs the axis X or Y in param, found {param.get('axis')!r:.100}")
        ours["function"] = f"{_AXES[function]}_{axis}"
    elif function == "color":
        ours["function"] = "saturation"
    if "max" in param:
        ours["max"] = param["max"]
    if param.get("min") or (function == "cutout" and "min" in param):
        ours["min"] = param["min"]
    if "absolute" in param and function in ("translate", "cutout"):
        ours["absolute"] = param["absolute"]
    return ours
