"""Finds the first thing in which two runs differ, from versions and recipe to losses and weights.

    fastaug bisect-runs RUN_A RUN_B

`fastaug same-run` says whether two runs trained the same, this command where they part. What the run folders do not
hold is computed again, by this version of the code and from the data as they are now. Exit codes: 0 no difference
found, 1 one is named, 2 not two run folders; else as those of `fastaug train`. docs/replay.md explains the stages.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastaug.commands._argument_types import output_file
from fastaug.commands.same_run import TIMES, lines_difference, weights_difference
from fastaug.errors import told

if TYPE_CHECKING:
    from fastaug.training.run_evidence import RunEvidence

CROP = ("size", "window", "policy", "loaded")  # facts of a sample, in the order in which they come about
OP = ("shift", "flip", "box", "blend", "partner", "input", "target", "rest", "weight")
MEANING = {"loaded": "pixels as loaded (digest)", "input": "pixels of the network's input (digest)"}
LOG_MORE = "train both again with run.log_every=1"


class Finding(NamedTuple):
    """What a stage has shown: `differs` True, False, or None where it could not be compared; `text` says more."""

    stage: str
    differs: bool | None
    text: str = ""

    def line(self) -> str:
        """The finding as it is printed."""
        state = {True: "differs", False: "equal", None: "not compared"}[self.differs]
        return f"{self.stage}: {state}" + (f": {self.text}" if self.text else "")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug bisect-runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="the folder of a run, ended or not")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="that of the other")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="of both: where the images are now")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the findings here")
    found = parser.parse_intermixed_args(argv)
    for run in (found.run_a, found.run_b):
        if not (run / "recipe.yaml").is_file():
            parser.error(f"{run} is not a run folder: it has no recipe.yaml")
    return found


# ---- the stages, each on the evidence of both runs ----


def versions(a: "RunEvidence", b: "RunEvidence") -> Finding:
    """Libraries, code, device, processes: of every start that both have."""
    if not (a.starts and b.starts):
        return Finding("versions", None, "a run by an earlier version notes them only when it has ended")
    for number, (one, two) in enumerate(zip(a.starts, b.starts, strict=False), start=1):
        flat = [{**start.get("versions", {}), **start} for start in (one, two)]
        for key in [key for key in flat[0] if key in flat[1] and key != "versions"]:
            if flat[0][key] != flat[1][key]:
                return Finding("versions", True, f"start {number}: {key} {flat[0][key]} against {flat[1][key]}")
        if odd := sorted(one.get("versions", {}).keys() ^ two.get("versions", {}).keys()):
            return Finding("versions", True, f"start {number}: {odd[0]} is installed for one of them alone")
    return Finding(
        "versions", False, f"{len(a.starts)} and {len(b.starts)} starts" if len(a.starts + b.starts) > 2 else ""
    )


def recipe(a: "RunEvidence", b: "RunEvidence") -> Finding:
    """The keys; those that change how a run runs, not what it computes, are named and do not count."""
    from fastaug.recipe.reading import differences
    from fastaug.recipe.schema import RESUMABLE

    found = differences(a.recipe, b.recipe)
    trained = {key: values for key, values in found.items() if key not in RESUMABLE}
    if not trained:
        return Finding("recipe", False, f"but for {', '.join(found)}, which train nothing" if found else "")
    (key, (old, new)), *others = trained.items()
    more = f"; {', '.join(key for key, _ in others)} too" if others else ""
    return Finding("recipe", True, f"{key}: {old!r} against {new!r}{more}")


def files(a: "RunEvidence", b: "RunEvidence") -> Finding:
    """Classes, and which images with which labels are trained on: by fingerprints in checkpoints, else as of now."""
    if a.classes and b.classes and a.classes != b.classes:
        odd = sorted(set(a.classes) ^ set(b.classes)) or ["their order"]
        return Finding("files", True, f"{len(a.classes)} against {len(b.classes)} classes; first difference: {odd[0]}")
    now = _files_now(a, b)
    if a.fingerprint and b.fingerprint:
        same = a.fingerprint == b.fingerprint
        return Finding("files", False) if same else Finding("files", True, now or "the fingerprints of the images")
    if a.problem or b.problem:
        return Finding("files", None, a.problem or b.problem or "")
    return Finding("files", now is not None, now or "as they are now; no checkpoint is kept that says of what it was")


def _files_now(a: "RunEvidence", b: "RunEvidence") -> str | None:
    """The first image in which the data of now differ; None where in none, or where they cannot be read."""
    if not (a.files and b.files):
        return None
    one, two = (set(each.files["train"].tolist()) for each in (a, b))
    if "paths" in a.files and "paths" in b.files:
        for sample in sorted(one & two):
            names = [each.files["paths"][sample].decode(errors="replace") for each in (a, b)]
            labels = [int(each.files["labels"][sample]) for each in (a, b)]
            if names[0] != names[1]:
                return f"id {sample} is {names[0]} against {names[1]}"
            if labels[0] != labels[1]:
                return f"id {sample} ({names[0]}) has label {labels[0]} against {labels[1]}"
    if one != two:
        sample = min(one ^ two)
        where = "A" if sample in one else "B"
        return f"{len(one)} against {len(two)} training images; id {sample} is one of {where} alone"
    return None


def order(a: "RunEvidence", b: "RunEvidence") -> Finding:
    """Which images in which update: as run.log_ids noted them, else computed again."""
    logs = [sorted(path.name for path in each.run.glob("ids-*.jsonl")) for each in (a, b)]
    if logs[0] and logs[0] == logs[1]:
        for name in logs[0]:
            lines = [(each.run / name).read_text().splitlines() for each in (a, b)]
            both = min(map(len, lines))
            if found := lines_difference(lines[0][:both], lines[1][:both], frozenset()):
                return Finding("order", True, f"{name}: {found}")
        return Finding("order", False)
    if a.problem or b.problem:
        return Finding("order", None, f"{a.problem or b.problem}; or train both again with run.log_ids=true")
    for epoch in sorted(a.orders.keys() & b.orders.keys()):
        one, two = (each.orders[epoch].tolist() for each in (a, b))
        if one != two:
            place = next((i for i, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), None)
            if place is None:
                return Finding("order", True, f"epoch {epoch}: {len(one)} against {len(two)} images")
            return Finding("order", True, f"epoch {epoch}, position {place}: id {one[place]} against {two[place]}")
    return Finding("order", False, "computed again; run.log_ids=true notes what is trained on")


def samples(a: "RunEvidence", b: "RunEvidence", stage: str, keys: tuple[str, ...]) -> Finding:
    """The facts `keys` of the images that the same update of both has, sample by sample."""
    if a.problem or b.problem:
        return Finding(stage, None, a.problem or b.problem or "")
    compared = 0
    for step in sorted(a.updates.keys() & b.updates.keys()):
        others = {(one["id"], one["copy"]): one for one in b.updates[step]}
        for one in a.updates[step]:
            two = others.get((one["id"], one["copy"]))
            if two is None:
                continue
            compared += 1
            for key in keys:
                if _plain(one[key]) != _plain(two[key]):
                    values = f"{_plain(one[key])} against {_plain(two[key])}"
                    where = f"update {step + 1}, id {one['id']} ({one['file']})"
                    return Finding(stage, True, f"{where}: {MEANING.get(key, key)} {values}")
    if not compared:
        return Finding(stage, None, "no image is in the same update of both")
    return Finding(stage, False, f"{compared} images of update {_listed(a, b)} computed again")


def _plain(value: Any) -> Any:
    """A fact without what only says where it stands."""
    return f"id {value['id']}, {value['class']}" if isinstance(value, dict) and "row" in value else value


def _listed(a: "RunEvidence", b: "RunEvidence") -> str:
    return " and ".join(str(step + 1) for step in sorted(a.updates.keys() & b.updates.keys()))


def forward(a: "RunEvidence", b: "RunEvidence") -> Finding:
    """The loss of update 1, before any weight has moved; beside it what this version computes."""
    from fastaug.training.run_evidence import logged

    losses = [logged(each.run).get(("train", 1), {}).get("loss") for each in (a, b)]
    here = [each.losses.get(0) for each in (a, b)]
    again = f" (computed here: {here[0]} and {here[1]})" if None not in here else ""
    if None in losses:
        if None not in here:
            text = f"{here[0]} against {here[1]}, computed here; not logged: {LOG_MORE}"
            return Finding("forward", True if here[0] != here[1] else None, text)
        return Finding("forward", None, f"the loss of update 1 is not in both logs; {LOG_MORE}")
    if losses[0] == losses[1]:
        return Finding("forward", False, f"loss {losses[0]} in update 1{again}")
    return Finding("forward", True, f"loss {losses[0]} against {losses[1]} in update 1{again}")


def update(a: "RunEvidence", b: "RunEvidence") -> Finding:
    """Log lines and checkpoints that both have: the earliest that differs."""
    from fastaug.training.run_evidence import common_checkpoints, logged

    lines = first_line(logged(a.run), logged(b.run))
    kept = list(common_checkpoints(a.run, b.run))
    weights = next(((step, text) for step, one, two in kept if (text := _weights(one, two))), None)
    found = [each for each in (lines, weights) if each is not None]
    if found:
        step, text = min(found, key=lambda each: each[0])
        other = f"; {weights[1]}" if weights is not None and lines is not None and step == lines[0] else ""
        return Finding("update", True, f"{text}{other}")
    if not kept:
        return Finding("update", None, f"log lines are equal, no checkpoint is kept by both; {LOG_MORE} run.keep=1000")
    return Finding("update", False, f"weights at update {', '.join(str(step) for step, _, _ in kept)}")


def _weights(one: Path, two: Path) -> str | None:
    """The first tensor that differs in the weights of two checkpoint folders."""
    for file in sorted(path.name for path in one.glob("*.safetensors")):
        if not (two / file).is_file():
            return f"{file} is in {one} only"
        if found := weights_difference(one / file, two / file):
            return f"checkpoint {one.name}, {file}: {found}"
    return None


Lines = dict[tuple[str, int], dict[str, Any]]


def first_line(a: Lines, b: Lines) -> tuple[int, str] | None:
    """The first line of both logs that differs, by its update; times do not count."""
    for event, step in sorted((line for line in a if line in b), key=lambda line: line[1]):
        one, two = ({k: json.dumps(v) for k, v in each[event, step].items() if k not in TIMES} for each in (a, b))
        for key in [*one, *(key for key in two if key not in one)]:
            if one.get(key) != two.get(key):
                values = f"{one.get(key, 'not there')} against {two.get(key, 'not there')}"
                return step, f"{event} line of update {step}, {key}: {values}"
    return None


STAGES: tuple[Callable[["RunEvidence", "RunEvidence"], Finding], ...] = (
    *(versions, recipe, files, order),
    lambda a, b: samples(a, b, "crop", CROP),
    lambda a, b: samples(a, b, "op", OP),
    *(forward, update),
)


def findings(run_a: Path, run_b: Path, overrides: list[str]) -> Iterator[Finding]:
    """What each stage shows, in the order in which things come about in a training."""
    from fastaug.training.run_evidence import compute, logged, stored_evidence

    a, b = stored_evidence(run_a), stored_evidence(run_b)
    parted = first_line(*({k: v for k, v in logged(run).items() if k[0] == "train"} for run in (run_a, run_b)))
    steps = sorted({0, *([] if parted is None else [parted[0] - 1])})
    for each in (a, b):
        compute(each, steps, overrides)
    return (stage(a, b) for stage in STAGES)


def compare(arguments: argparse.Namespace) -> int:
    """Prints the findings and which comes first; the exit code."""
    found = list(findings(arguments.run_a, arguments.run_b, arguments.overrides))
    for finding in found:
        print(finding.line())
    first = next((finding for finding in found if finding.differs), None)
    print("no difference found" if first is None else f"first difference: {first.stage}: {first.text}")
    if arguments.json:
        values = {"first": first and first.stage, "findings": [finding._asdict() for finding in found]}
        arguments.json.write_text(json.dumps(values, indent=2) + "\n")
    return 0 if first is None else 1


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    return told(lambda: compare(parse(argv)))
