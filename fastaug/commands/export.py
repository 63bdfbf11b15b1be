"""Writes the network of a run for others: timm's hub layout and checkpoint, ONNX, torch.export.

    fastaug export runs/quickstart --to hub onnx --out my_model

Each form is read back by the program it is for, and compared. docs/using_models.md has its options.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from fastaug.errors import FastaugError, RecipeError, StorageError, remedy_of

_FORMS = ("hub", "timm", "onnx", "torch")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, metavar="RUN|CHECKPOINT", help="run folder, or a checkpoints/step-* of it")
    parser.add_argument("--to", nargs="+", required=True, choices=_FORMS, help="one or several forms, into one folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a folder that is new, or empty")
    parser.add_argument("--weights", choices=("raw", "ema"), help="default: as the recipe's headline")
    parser.add_argument("--best", action="store_true", help="the best checkpoint of a run folder, not the last one")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of train.py."""
    arguments = parse(argv)
    try:
        export(arguments)
    except FastaugError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


def export(arguments: argparse.Namespace) -> None:
    """Writes all forms beside the folder that is asked for, and renames it when every one of them was read back."""
    from fastaug.inference.exports import Exported, check_forms, write_forms
    from fastaug.inference.model_card import model_card
    from fastaug.inference.saved_model import find_checkpoint, kind_of, network_of
    from fastaug.training.model_facts import read_facts

    out, forms = arguments.out, list(dict.fromkeys(arguments.to))
    check_folder(out)
    path = find_checkpoint(arguments.path, "best" if arguments.best else "last")
    facts = read_facts(path)
    check_forms(forms, facts)
    if facts.incomplete:
        print(facts.incomplete, file=sys.stderr)
    run = path.resolve().parent.parent
    network = network_of(path, facts, arguments.weights)
    exported = Exported(
        network, facts, run if (run / "recipe.yaml").is_file() else None, kind_of(facts, arguments.weights)
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            found = write_forms(forms, exported, made)
            (made / "README.md").write_text(model_card(exported, forms, found), encoding="utf-8")
            os.replace(made, out)
    except OSError as error:
        raise StorageError(f"--out: {out} cannot be written: {error}; {remedy_of(error)}") from error
    print(f"{out}: {path}, {exported.weights} weights")
    for form, apart in found.items():
        print(f"  {form}: read back, outputs differ by {apart:.2g} at most")


def check_folder(out: Path) -> None:
    """RecipeError unless `out` is new or an empty folder."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise RecipeError([f"--out: {out} is no folder; name a new one"])
    if out.is_dir() and any(out.iterdir()):
        raise RecipeError([f"--out: {out} is not empty; name a new folder, or empty it"])
