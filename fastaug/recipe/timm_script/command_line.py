"""A training command of timm's script taken apart: how it was started, in how many processes, with which arguments."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from ruamel.yaml.error import YAMLError

from fastaug.errors import RecipeError
from fastaug.recipe.strict_yaml import parse_yaml
from fastaug.recipe.timm_script.arguments import all_arguments, checked_values, parse_words

LARGEST = 2**17  # characters of a command line, bytes of an args.yaml
_OPERATOR = re.compile(r"(\d|&)?(>>?|<)(&\d)?.*|\||\|\||&&?|;")
_PROCESSES = ("--nproc_per_node", "--nproc-per-node", "--num_processes", "--num-processes")
_STARTERS = ("srun", "mpirun", "mpiexec", "horovodrun", "deepspeed", "jsrun", "aprun")  # of one process each
_NODES = ("--nnodes", "--num_machines", "--num-machines")


@dataclass(frozen=True)
class Given:
    """What somebody trained with: every argument's value by name, the names of those that were given, and processes."""

    values: dict[str, Any]
    given: frozenset[str]
    processes: int
    text: str  # as it was written, on one line
    environment: list[str] = field(default_factory=list)  # NAME=VALUE before the command


def read_command(text: str, processes: int | None = None) -> Given:
    """A command line, or the arguments alone; RecipeError names what timm's script does not take.

    `processes` overrules the launcher's, and is needed where that does not say a number.
    """
    lines = re.sub(r"\\\r?\n", " ", text[: LARGEST + 1]).split("\n")
    line = " ".join(each for each in lines if not each.lstrip().startswith("#")).strip()  # no comment, no #!/bin/bash
    if len(line) > LARGEST:
        raise RecipeError([f"the command line is longer than {LARGEST:,} characters; give one command"])
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise RecipeError(
            [f"the command line cannot be read: {error}; close the quote, or write no lone backslash"]
        ) from None
    _check_words(words)
    environment = []
    while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
        environment.append(words.pop(0))
    launcher, words = _at_script(words)
    given = parse_words(words)
    if config := given.get("config"):
        given = read_arguments(Path(config)) | given
    if processes is None:
        _check_launcher(launcher)
    count = _processes(launcher) if processes is None else processes
    return _given(given, count, " ".join(line.split()), environment)


def read_file(path: Path, processes: int | None = None) -> Given:
    """The args.yaml of a run of timm, or a file of its --config; without `processes` it is taken for one of 1."""
    return _given(read_arguments(path), 1 if processes is None else processes, str(path), [])


def read_arguments(path: Path) -> dict[str, Any]:
    """What a YAML file of arguments gives, by name."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise RecipeError([f"{path}: larger than {LARGEST:,} bytes; give the args.yaml of a run of timm"])
        values = parse_yaml(content.decode())
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError([f"{path}: cannot be read ({reason}); give the args.yaml of a run of timm"]) from None
    return checked_values(values, str(path))


def _given(given: dict[str, Any], processes: int, text: str, environment: list[str]) -> Given:
    if processes < 1:
        raise RecipeError([f"{processes} processes cannot train; give --processes N, 1 or more"])
    values = {name: argument.default for name, argument in all_arguments().items()} | given
    return Given(values, frozenset(given), processes, text, environment)


def _check_words(words: list[str]) -> None:
    """RecipeError where a shell would have done more with the line than to take it apart."""
    for word in words:
        if _OPERATOR.fullmatch(word):
            raise RecipeError([f"{word!r}: the command ends before it; leave it and what follows out"])
        if re.search(r"\$[\w{(]|`", word):
            raise RecipeError([f"{word!r}: a shell would replace this; write the value"])


def _at_script(words: list[str]) -> tuple[list[str], list[str]]:
    """The launcher's words, with what distributed_train.sh is told, and those behind the script."""
    for place, word in enumerate(words):
        name = PurePath(word).name
        if name == "train.py":
            return words[:place], words[place + 1 :]
        if name == "distributed_train.sh":
            return ["--nproc_per_node", *words[place + 1 : place + 2]], words[place + 2 :]
        if word.endswith((".py", ".sh")) and not any(before.startswith("--") for before in words[:place]):
            raise RecipeError([f"{word}: not timm's train.py or distributed_train.sh; give a command of theirs"])
    if not words or not words[0].startswith("-"):
        found = repr(words[0]) if words else "nothing"
        raise RecipeError([f"{found}: no train.py in this command; write it, or the arguments alone"])
    return [], words


def _processes(words: list[str]) -> int:
    """The number of processes of torchrun, accelerate launch or torch.distributed.launch, over all machines."""
    found = {"processes": 1, "machines": 1}
    each_machine = False
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in (*_PROCESSES, *_NODES):
            count = _number([value] if equals else words[place + 1 : place + 2], option)
            found["processes" if option in _PROCESSES else "machines"] = count
            each_machine |= option.startswith("--nproc")
    return found["processes"] * (found["machines"] if each_machine else 1)  # Accelerate counts those of all machines


def _check_launcher(words: list[str]) -> None:
    """RecipeError where a launcher starts several processes and its words do not say how many to what reads them."""
    program = PurePath(words[0]).name if words else ""
    counted = any(word.partition("=")[0] in _PROCESSES for word in words)
    if program in _STARTERS or (program == "accelerate" and not counted):
        raise RecipeError(
            [f"{program}: does not say here how many processes train; give --processes N, of all machines"]
        )


def _number(words: list[str], option: str) -> int:
    if not words or not re.fullmatch(r"[1-9]\d{0,5}", words[0]):
        value = repr(words[0]) if words else "nothing"
        raise RecipeError([f"the launcher's {option}: {value} is no number of processes; write it, or --processes N"])
    return int(words[0])
