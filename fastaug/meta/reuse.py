"""Parts that another run has learned, to act here as they are: what meta.reuse names, a run folder or a policy.json."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fastaug.errors import RecipeError
from fastaug.meta.learned_part import Setting
from fastaug.meta.parameters import PARTS, LearnedParts, build_parts
from fastaug.meta.parts.policy import SharedPolicyPart
from fastaug.recipe.operation_files import FUNCTIONS
from fastaug.recipe.policy_file import AS_WRITTEN, PolicyFile, read_policy_file
from fastaug.recipe.reading import read_stored
from fastaug.recipe.rules import validate
from fastaug.recipe.schema import Meta

# Keys of the recipe without which the numbers of a table mean something else, or do not fit.
FORMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "weights": ("weights_form", "table_optimizer"),
        "labels": ("labels_classes", "table_optimizer"),
        "sample_policy": ("sample_policy", "table_optimizer"),
    }
)
StateOf = Callable[[Path], Mapping[str, Any]]  # run folder -> state of its newest checkpoint


def reused_parts(setting: Setting, data: set[str], state_of: StateOf, say: Callable[[str], None]) -> LearnedParts:
    """The parts that meta.learn names, or all there are if it names none, with the values that meta.reuse has.

    `data`: fingerprints of these data, with the meta split or without, one of which numbers of single images have to be
    of; `state_of` reads them. RecipeError names each key that does not fit, and why.
    """
    reuse = setting.recipe.meta.reuse
    assert reuse is not None
    try:
        file = read_policy_file(Path(reuse))
        named = setting.recipe.meta.learn
        setting = setting if named else setting._replace(recipe=_with_parts_of(file, setting))
        learned = build_parts(setting)
        problems = _other_forms(setting.recipe.meta, learned, Path(reuse))
        problems = problems or _tables_misfit(learned, Path(reuse), data, state_of)
        for name, part in learned.each().items():
            if part.export() is not None:
                problems += _fill_part(name, learned, file, given=bool(named))
        if problems:
            raise RecipeError(problems)
    except RecipeError as error:
        raise RecipeError([f"meta.reuse: {problem}" for problem in error.problems]) from error
    left = sorted({*file.pieces, *(kind.rpartition(":")[2] for kind in file.tables)} - learned.each().keys())
    if left:
        say(f"meta.reuse: {', '.join(left)} of {file.path} is not in meta.learn and does not act here")
    say(f"meta.reuse: {', '.join(learned.each())} as learned in {file.path}; nothing learns in this run")
    before, now = file.data.get("img_size"), setting.recipe.data.img_size
    if isinstance(before, int) and before != now and (names := _in_pixels(learned)):
        say(f"meta.reuse: {', '.join(names)} act by pixels: learned on images of {before}, here they are of {now}")
    return learned


def _with_parts_of(file: PolicyFile, setting: Setting) -> Any:
    """The recipe with all parts of the file in meta.learn; RecipeError where a part has no effect in it."""
    kinds = [*(piece.kind for piece in file.pieces.values()), *file.tables]
    if outside := [kind for kind in kinds if kind not in PARTS]:
        raise RecipeError(
            [f"{file.path}: parts: {outside[0]!r:.100} does not come with fastaug; name it in meta.learn if yours"]
        )
    if not kinds:
        raise RecipeError([f"{file.path}: parts: there is none; name a run that has learned something"])
    forms: dict[str, Any] = {}
    if "sample_policy" in kinds:
        forms["sample_policy"] = "each" if "sample_policy" in file.tables else "shared"
    if file.tables and (folder := Path(setting.recipe.meta.reuse or "")).is_dir():
        learned_as = _learned_as(folder)
        forms = {key: getattr(learned_as, key) for kind in kinds for key in FORMS.get(kind, ())}
    recipe = replace(setting.recipe, meta=replace(setting.recipe.meta, learn=kinds, **forms))
    if problems := validate(recipe):
        raise RecipeError([f"{file.path} holds {', '.join(kinds)}, and {problem}" for problem in problems])
    return recipe


def _fill_part(name: str, learned: LearnedParts, file: PolicyFile, *, given: bool) -> list[str]:
    """Gives a part its values; what does not fit. `given`: the recipe has settings, which have to be the file's."""
    if name not in file.pieces:
        found = ", ".join((*file.pieces, *file.tables)) or "nothing"
        return [f"{file.path}: parts.{name}: is missing, {found} is there; take it out of meta.learn"]
    piece, kind = file.pieces[name], learned.kinds[name]
    if kind in PARTS and piece.kind != kind:
        return [f"{file.path}: parts.{name}.kind: is {_short(piece.kind)}, and {_short(kind)} is needed; {AS_WRITTEN}"]
    part = learned.each()[name]
    own = part.settings()
    apart = [key for key in own if given and piece.settings.get(key) != own[key]]
    if apart:
        places = [_first_difference(key, piece.settings.get(key), own[key]) for key in apart]
        return [
            f"{file.path}: parts.{name}.settings.{place}: is {_short(found)}, and the recipe makes it "
            f"{_short(wanted)}; set the recipe's key to it, or meta.learn to [] to take all from the file"
            for place, found, wanted in places
        ]
    try:
        part.load_export({"settings": piece.settings, "values": piece.values})
    except ValueError as error:
        return [f"{file.path}: parts.{name}.{error}"]
    return []


def _in_pixels(learned: LearnedParts) -> list[str]:
    """The operations of shared policies whose values are pixels, so that they do more on smaller images."""
    operations = [e for part in learned.each().values() if isinstance(part, SharedPolicyPart) for e in part.operations]
    return [e.name for e in operations if e.absolute or FUNCTIONS[e.function].unit == "pixels"]


def _first_difference(place: str, found: Any, wanted: Any) -> tuple[str, Any, Any]:
    """Where two values first differ, through lists and objects, and what stands there in each."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        key = next(key for key in {**wanted, **found} if found.get(key) != wanted.get(key))
        return _first_difference(f"{place}.{key}", found.get(key), wanted.get(key))
    if isinstance(found, list) and isinstance(wanted, list):
        if len(found) != len(wanted):
            return f"{place} (how many)", len(found), len(wanted)
        row = next(row for row, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
        return _first_difference(f"{place}[{row}]", found[row], wanted[row])
    return place, found, wanted


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


# ---- numbers of single images ----


def _learned_as(folder: Path) -> Meta:
    """The settings under which the parts of a run folder were learned, in that run or the one that it reuses."""
    if not (folder / "recipe.yaml").exists():
        text = "is gone, and says how the numbers of single images were learned; put that run's folder back"
        raise RecipeError([f"{folder}: {text}, or start where its path leads to it"])
    meta = read_stored(folder / "recipe.yaml")[0].meta
    return _learned_as(Path(meta.reuse)) if meta.reuse and not meta.learn else meta


def _other_forms(meta: Meta, learned: LearnedParts, reuse: Path) -> list[str]:
    """Settings of tables that are others than those they were learned under."""
    kept = [name for name, part in learned.each().items() if part.tables() and name in FORMS]
    if not kept or not reuse.is_dir():
        return []
    before = _learned_as(reuse)
    apart = {key: name for name in kept for key in FORMS[name] if getattr(before, key) != getattr(meta, key)}
    return [
        f"{reuse}: {name}: was learned with meta.{key} = {getattr(before, key)}, and the recipe has "
        f"{getattr(meta, key)}; set it to that, or meta.learn to [] to take all from the run"
        for key, name in apart.items()
    ]


def _tables_misfit(learned: LearnedParts, reuse: Path, data: set[str], state_of: StateOf) -> list[str]:
    """Gives every part with tables its whole state, from the newest checkpoint; what does not fit."""
    kept = {name: part for name, part in learned.each().items() if part.tables()}
    if not kept:
        return []
    names = ", ".join(kept)
    if not reuse.is_dir():
        return [f"{reuse}: {names}: numbers of single images are in no policy file; name the run's folder instead"]
    state = state_of(reuse)
    if state["data"] not in data:
        return [
            f"{reuse}: {names}: belongs to that run's images, labels and splits, which this recipe's are not; set them "
            "to those, or take it out of meta.learn"
        ]
    stored: Mapping[str, Any] = state["meta"]["learned"]
    problems = []
    for name, part in kept.items():
        start = f"parts.{name}."
        own = {key.removeprefix(start): value for key, value in stored.items() if key.startswith(start)}
        try:
            part.load_state_dict(own)
        except RuntimeError as error:
            problems.append(f"{reuse}: {name}: {' '.join(str(error).split())}; take it out of meta.learn")
    return problems
