"""What a run leaves to be taken elsewhere: policy.json, and policy.py for policies that torchvision can play."""

import json
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastaug.augment.learned_policy import PART
from fastaug.meta.parameters import LearnedParts
from fastaug.meta.parts.policy import SharedPolicyPart
from fastaug.provenance import commit, versions
from fastaug.recipe.policy_file import FILE, VERSION
from fastaug.recipe.schema import Recipe
from fastaug.reports.policy_source import policy_source
from fastaug.training.build import Trainer

PROGRAM = "policy.py"


def write_policy(trainer: Trainer) -> None:
    """Writes the files of `policy_texts`; main process."""
    if trainer.accelerator.is_main_process:
        for name, text in policy_texts(trainer).items():
            trainer.folder.write(name, text)


def policy_texts(trainer: Trainer) -> dict[str, bytes]:
    """policy.json and, where torchvision can play it, policy.py with the values of now; nothing where none are learned.

    Says what is left out of the last policy.py.
    """
    learned = trainer.meta.learned
    if learned is None:
        return {}
    pieces = pieces_of(learned, trainer.meta.start())
    tables = [learned.kinds[name] for name, part in learned.each().items() if part.tables()]
    if not (pieces or tables):
        return {}
    texts = {FILE: legible(policy_file(trainer.recipe, trainer.progress.step, pieces, tables)).encode()}
    shared = learned.each().get(PART)
    if isinstance(shared, SharedPolicyPart) and PART in pieces:
        source = policy_source(shared.policy, trainer.augment.size)
        texts[PROGRAM] = source.text.encode()
        if source.left_out and trainer.progress.step == trainer.last_step:
            trainer.console.print(f"{PROGRAM} is without {', '.join(map(ascii, source.left_out))}: see its first lines")
    return texts


def legible(values: dict[str, Any]) -> str:
    """JSON with a list of numbers in a line."""
    text = json.dumps(values, indent=2)
    return re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def pieces_of(learned: LearnedParts, start: Mapping[str, Tensor]) -> dict[str, Any]:
    """What each part with values leaves, by its name, with the values that it started from where it learned."""
    kinds, summaries = learned.kinds, learned.summaries()
    exports = {name: part.export() for name, part in learned.each().items()}
    return {
        name: {"kind": kinds[name], **found, **_start_of(name, found, start), "summary": summaries[name]}
        for name, found in exports.items()
        if found is not None
    }


def _start_of(name: str, found: Mapping[str, Any], start: Mapping[str, Tensor]) -> dict[str, Any]:
    """The values that a part started from; those of parameters that are not learned are what they are."""
    if not start:
        return {}
    began = {key: start[f"{name}.{key}"].double().tolist() for key in found["values"] if f"{name}.{key}" in start}
    return {"start": found["values"] | began}


def policy_file(recipe: Recipe, step: int, pieces: dict[str, Any], tables: list[str]) -> dict[str, Any]:
    """All of policy.json; `step`: updates of the training that it comes from."""
    data = recipe.data
    return {
        "fastaug_policy": VERSION,
        "version": versions().get("fastaug"),
        "commit": commit(),
        "step": step,
        "data": {"img_size": data.img_size, "mean": list(data.mean), "std": list(data.std)},
        "parts": pieces,
        "tables": tables,
    }
