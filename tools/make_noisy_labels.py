"""Writes a file of wrong labels for a share of a recipe's training images, to study what finds or survives them.

    python tools/make_noisy_labels.py recipes/mnist5k_weights.yaml --share 0.4 --kind uniform --out noise.tsv

Then train with `data.labels=noise.tsv`; a run that learns sample weights reports how well they tell these images from
the others. `--with-meta FOLDER` also writes lists for `data.splits` that add the meta split to the training split: the
fair control, which trains on the same clean images that the meta step looks at.
"""

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
from pathlib import Path

from fastaug.errors import FastaugError, RecipeError
from fastaug.recipe.reading import read_recipe


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file; recipes/ has examples")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces one value of the recipe")
    parser.add_argument("--share", type=float, default=0.4, help="of the training images (default 0.4)")
    parser.add_argument("--kind", choices=("uniform", "pairwise"), default="uniform", help="which wrong class")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default 0)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.tsv", help="the labels")
    parser.add_argument("--with-meta", type=Path, metavar="FOLDER", help="lists of the control's splits")
    return parser.parse_intermixed_args()


def main() -> int:
    """The exit code, as that of train.py."""
    arguments = parse()
    try:
        recipe = read_recipe(arguments.recipe, arguments.overrides)
        from fastaug.data.label_files import label_lines, noisy_labels
        from fastaug.distributed import build_accelerator
        from fastaug.training.build_data import find_data

        parts = find_data(recipe, build_accelerator(recipe))
        if parts.index is None:
            raise RecipeError(["data.loader: synthetic has no labels to replace; name a data.root"])
        ids, labels = noisy_labels(
            parts.index.labels,
            parts.splits.train,
            len(parts.classes),
            share=arguments.share,
            kind=arguments.kind,
            seed=arguments.seed,
        )
        lines = label_lines(ids, [parts.classes[label] for label in labels])
    except (FastaugError, ValueError) as error:
        print(error, file=sys.stderr)
        return error.code if isinstance(error, FastaugError) else 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(lines)
    if arguments.with_meta is not None:
        splits = parts.splits
        arguments.with_meta.mkdir(parents=True, exist_ok=True)
        # A list without a line empties a split that the folders name.
        lists = {"train": [*splits.train, *splits.meta], "meta": [], "select": splits.select, "test": splits.test}
        for name, members in lists.items():
            (arguments.with_meta / f"{name}.txt").write_text("".join(f"{member}\n" for member in members))
    print(f"{arguments.out}: {len(ids)} of {len(parts.splits.train)} training images with a wrong label")
    return 0


if __name__ == "__main__":
    sys.exit(main())
