"""Shows what a run's network got, without training: an image in an epoch, the batch of an update.

    fastaug replay RUN --id 17 --epoch 3
    fastaug replay RUN --step 120

Pixels, target and loss weight are made again from recipe, data and draws; what the run learns, and the network's
weights for the loss, are those of the nearest checkpoint at or before the update, and it says which. Updates are
counted as in metrics.jsonl and ids-*.jsonl, from 1; epochs from 0, as there. docs/replay.md explains the figures.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastaug.commands._argument_types import output_file
from fastaug.errors import DataError, told

if TYPE_CHECKING:
    from fastaug.training.replay import Known, Replay


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, ended or not")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="say data.root, where the images are now"
    )
    parser.add_argument("--id", type=int, metavar="N", help="an image's number, as in samples.csv and ids-*.jsonl")
    parser.add_argument("--epoch", type=int, metavar="E", help="the epoch in which it is shown, from 0")
    parser.add_argument("--step", type=int, metavar="S", help="instead: the batch of this update, from 1")
    parser.add_argument("--processes", type=int, metavar="P", help="of the training, where the run does not know it")
    parser.add_argument(
        "--out", type=output_file, metavar="FILE.png", help="the picture (default: in the present folder)"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write all numbers here")
    found = parser.parse_intermixed_args(argv)
    if (found.step is None) == (found.id is None and found.epoch is None):
        parser.error("give --id and --epoch, or --step alone")
    if found.step is None and (found.id is None or found.epoch is None):
        parser.error("--id and --epoch go together: an image looks different in every epoch")
    if found.processes is not None and found.processes < 1:
        parser.error(f"--processes must be at least 1, found {found.processes}")
    what = f"step-{found.step}" if found.step is not None else f"id-{found.id}-epoch-{found.epoch}"
    found.out = found.out or Path(f"replay-{what}.png")
    return found


def show(arguments: argparse.Namespace) -> None:
    """Writes picture and numbers, prints what they say."""
    from fastaug.training.borrowed_process import borrowed_process
    from fastaug.training.replay import Replay

    with borrowed_process():
        replay = Replay(arguments.run, arguments.overrides, arguments.processes)
        found = _batch(replay, arguments) if arguments.step is not None else _image(replay, arguments)
        found["notes"] = replay.notes
    for note in found["notes"]:
        print(f"note: {note}")
    print(arguments.out)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def _image(replay: "Replay", arguments: argparse.Namespace) -> dict[str, Any]:
    """One image in one epoch: its picture is written, its numbers are printed and given back."""
    from fastaug.reports.batch_grid import WIDTH, displayed, sheet
    from fastaug.reports.replay_pictures import image_cells

    replay.check_epoch(arguments.epoch)
    replay.check_image(arguments.id)
    places = replay.places(arguments.id, arguments.epoch)
    if not places:
        raise DataError(
            f"--id: {arguments.id} was not trained on in epoch {arguments.epoch}, which train.drop_last, data.sampling "
            "or augment.repeats leave it out of; choose another epoch"
        )
    shown, rows, data = [], [], replay.recipe.data
    source = replay.source(arguments.id, WIDTH)
    for place in places:
        known = replay.go_to(place.step)
        piece = replay.piece(place, losses=known.has_losses)
        for row in (piece.batch.ids == arguments.id).nonzero()[:, 0].tolist():
            facts = replay.facts(piece, row)
            at = {
                "step": place.step + 1,
                "epoch": piece.epoch,
                "process": place.rank,
                "micro_batch": place.micro,
                "row": row,
            }
            shown.append({**at, **facts, **_basis(known)})
            result = displayed(piece.inputs[row : row + 1], data.mean, data.std)[0]
            rows.append(image_cells(source, piece.batch, result, row, facts))
            print("\n".join(lines({**at, **facts}, known)))
    sheet(rows, ("source", "loaded", "partner", "what the network got")).save(arguments.out, "PNG")
    return {"run": str(arguments.run), "id": arguments.id, "epoch": arguments.epoch, "shown": shown}


def _batch(replay: "Replay", arguments: argparse.Namespace) -> dict[str, Any]:
    """The batch of an update: its picture is written, a line an image is printed, all numbers are given back."""
    from fastaug.reports.batch_grid import sheet
    from fastaug.reports.replay_pictures import COLUMNS, batch_cells

    step = arguments.step - 1
    replay.check_step(step)
    known, cells, samples, total, data = (
        replay.go_to(step),
        list[Any](),
        list[dict[str, Any]](),
        0.0,
        replay.recipe.data,
    )
    for piece in replay.pieces(step):
        facts = [replay.facts(piece, row) for row in range(len(piece.batch.ids))]
        cells += batch_cells(piece.inputs[: len(facts)], facts, data.mean, data.std)
        samples += [{"process": piece.place.rank, "micro_batch": piece.place.micro, **one} for one in facts]
        total += piece.total or 0.0
    for one in samples:
        print(f"id {one['id']}  {one['class']}  {target_text(one)}  weight {one['weight']:.4g}{loss_text(one['loss'])}")
    loss = total if known.has_losses else None
    print(f"update {arguments.step}: {len(samples)} images{loss_text(loss)}")
    print("\n".join(basis_lines(known)))
    rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    sheet(rows, [f"update {arguments.step}", *[""] * (COLUMNS - 1)]).save(arguments.out, "PNG")
    epoch = step // replay.steps_per_epoch
    return {
        "run": str(arguments.run),
        "step": arguments.step,
        "epoch": epoch,
        "loss": loss,
        "samples": samples,
        **_basis(known),
    }


def _basis(known: "Known") -> dict[str, Any]:
    return {"checkpoint": known.checkpoint, "inputs_are": known.inputs, "losses_are": known.losses}


def basis_lines(known: "Known") -> list[str]:
    """What pixels, targets and losses rest on."""
    return [f"inputs and targets: {known.inputs}", f"losses: {known.losses}"]


def loss_text(loss: float | None) -> str:
    """A loss behind other numbers; nothing where it is not known."""
    return "" if loss is None else f"  loss {loss:.6g}"


def target_text(facts: dict[str, Any]) -> str:
    """A target in words, as in "0.61 cat + 0.27 dog, rest 0.12"."""
    named = " + ".join(f"{mass:.4g} {name}" for name, mass in facts["target"].items())
    return named + (f", rest {facts['rest']:.4g}" if facts["rest"] > 5e-5 else "")


def lines(facts: dict[str, Any], known: "Known") -> list[str]:
    """One image's numbers for the screen, without those that say that nothing was done."""
    mixed = f"id {facts['partner']['id']}, {facts['partner']['class']}"
    mixing = {
        "box (top, bottom, left, right)": facts["box"],
        "blend (own share)": facts["blend"] and f"{facts['blend']:.4g}",
    }
    rows = {
        "image": f"id {facts['id']}, {facts['file']}, {facts['class']}",
        "trained on": f"update {facts['step']}, process {facts['process']}, micro-batch {facts['micro_batch']}, "
        f"row {facts['row']}",
        "window (top, left, height, width)": facts["window"] and f"{facts['window']} of {facts['size']}",
        "policy": facts["policy"],
        "flip": "yes" if facts["flip"] else None,
        "view shifted (down, right)": facts["shift"] if any(facts["shift"]) else None,
        "partner": mixed if facts["mixed"] else None,
        **mixing,
        "target": target_text(facts),
        "confidence": f"{facts['confidence']:.4g}",
        "loss weight": f"{facts['weight']:.4g}",
        "loss": None if facts["loss"] is None else f"{facts['loss']:.6g}",
    }
    return [f"{name}: {value}" for name, value in rows.items() if value is not None] + basis_lines(known)


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    return told(lambda: show(parse(argv)))
