"""Finds how images of a held-out split are turned, zoomed or moved beside the training images.

    fastaug find-shift runs/plain --out policy.json
    fastaug train RECIPE.yaml meta.learn=[] meta.reuse=policy.json    # the training images, transformed like those

The transformation is the one under which the training images look like the others to the run's network: it brings the
mean features of every class closest. What says how good the answer is stands behind it: the distance that is left, and
the one that chance alone leaves between as many images drawn alike. The run is to be one that was not trained under
such transformations.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastaug.atomic_files import write_atomically
from fastaug.augment.augmenter import KINDS, NUMBERS
from fastaug.commands._argument_types import output_file
from fastaug.errors import DataError, RecipeError, StorageError, remedy_of, told
from fastaug.recipe.reading import read_stored
from fastaug.recipe.schema import IMAGE_PARTS, Recipe

if TYPE_CHECKING:
    from fastaug.augment.augmenter import Augmenter
    from fastaug.evaluation.shift_estimate import Mismatch, Side
    from fastaug.meta.parts.augmenter import AugmenterPart
    from fastaug.training.evaluate_run import Restored

PIECE = 64  # images of which features are computed at once
UNEXPLAINED = 1.5  # times what chance leaves: from here on it is said that something else differs


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug find-shift", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "path", type=Path, metavar="RUN|CHECKPOINT", help="run folder, or one of its checkpoints/step-*"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces one value of the run's recipe")
    parser.add_argument("--split", default="meta", choices=("meta", "select", "test"), help="the others (default meta)")
    parser.add_argument("--kind", default="affine", choices=KINDS, help="what is looked for (default affine)")
    parser.add_argument("--out", type=output_file, metavar="FILE", help="write it as a policy for meta.reuse")
    return parser.parse_intermixed_args(argv)


def find(arguments: argparse.Namespace) -> None:
    """Prints what is found and writes it where asked."""
    from fastaug.distributed import finish
    from fastaug.evaluation.shift_estimate import closest
    from fastaug.training.evaluate_run import Wanted, checkpoint_and_recipe, restored

    wanted = Wanted(arguments.path, split=arguments.split, overrides=arguments.overrides, tta=0)
    path, recipe = checkpoint_and_recipe(wanted)
    refuse_unsuited(path.resolve().parent.parent, recipe, arguments.kind, writes=arguments.out is not None)
    run = restored(path, recipe)
    part = untrained_part(recipe, arguments.kind, run.accelerator.device)
    mismatch = mismatch_of(run, arguments.split, part.net)
    shares = closest(mismatch, len(part.net.names), recipe.run.seed)
    part.net.begin_at(shares)
    if run.accelerator.is_main_process:
        for name, amount in zip(part.net.names, part.net.reach.cpu() * shares, strict=True):
            print(f"{name:<12} {NUMBERS[name].plain(amount).item():8.3f} {NUMBERS[name].unit}")
        before, after = (mismatch(each).norm().item() for each in (torch.zeros_like(shares), shares))
        print(
            f"class means of features differ by {after:.3f} standard deviations, by {before:.3f} without it; chance "
            f"alone leaves {mismatch.chance:.3f}"
        )
        if after > UNEXPLAINED * mismatch.chance:
            print(f"more than chance is left: something else differs too, or no --kind {arguments.kind} would show it")
        if arguments.out:
            write(arguments.out, part, run)
    finish(run.accelerator)


def refuse_unsuited(folder: Path, recipe: Recipe, kind: str, *, writes: bool = False) -> None:
    """RecipeError where the run cannot be asked."""
    stored, _ = read_stored(folder / "recipe.yaml")
    if {*IMAGE_PARTS} & {*stored.meta.learn} or stored.meta.reuse is not None:
        text = "was trained under transformations that were learned, and would find them again; name a run without"
        raise RecipeError([f"{folder}: {text}"])
    if recipe.data.loader == "synthetic":
        raise RecipeError(["data.loader: synthetic images look like none; name a run on images"])
    if recipe.data.multi_label != "off":
        raise RecipeError(
            [f"data.multi_label: {recipe.data.multi_label}: images of one class are compared; name a run of such"]
        )
    if kind == "affine_color" and recipe.data.channels != 3:
        raise RecipeError(
            [f"--kind: affine_color is of colours, and data.channels = {recipe.data.channels}; choose affine"]
        )

    if writes and recipe.data.channels != 3:
        text = f"a policy is for images of three channels, and data.channels = {recipe.data.channels}; leave it out"
        raise RecipeError([f"--out: {text}"])
    if stored.run.plant:
        raise RecipeError(["run.plant: the run's labels were flipped on purpose, and images of a class are compared"])


def untrained_part(recipe: Recipe, kind: str, device: torch.device) -> "AugmenterPart":
    """An augmenter that draws nothing yet, as a recipe with the run's data would learn one."""
    from fastaug.meta.learned_part import Setting
    from fastaug.meta.parts.augmenter import AugmenterPart

    meta = replace(recipe.meta, learn=["augmenter"], augmenter=kind, conditioned=False)  # type: ignore[arg-type]
    unused = torch.optim.SGD([torch.zeros(1)])
    part = AugmenterPart(Setting(replace(recipe, meta=meta), 0, 0, unused, device))
    part.net.to(device)
    return part


def compared_sides(run: "Restored", split: str) -> "tuple[Side, Side]":
    """Training images and those of `split`, as evaluation cuts them; DataError without a class in common."""
    from fastaug.augment.pipeline import BatchAugment
    from fastaug.data.class_names import shown
    from fastaug.data.sampler import Ids, evaluation_requests
    from fastaug.evaluation.shift_estimate import FEWEST, Side, compared_ids, in_common, side_of
    from fastaug.training.build_data import evaluation_loader

    recipe, accelerator, parts = run.recipe, run.accelerator, run.parts
    assert parts.index is not None
    chosen = compared_ids(parts.index.labels, parts.splits.train, parts.splits.of(split), recipe.run.seed)
    augment = BatchAugment(recipe, len(parts.classes))

    def side(ids: Ids, held_out: bool) -> Side | None:
        loader = evaluation_loader(recipe, accelerator, parts, ids)
        batches = loader.batches(evaluation_requests(ids, recipe.eval.batch_size, 1, 0))
        found = side_of(batches, partial(augment.floats, held_out=held_out))
        for sample, reason in loader.skipped.items():
            accelerator.print(f"skipped: damaged image {shown(parts.name_of(sample))}: {reason}")
        return found

    one, other = (side(ids, held) if len(ids) else None for ids, held in zip(chosen, (False, True), strict=True))
    sides = None if one is None or other is None else in_common(one, other)
    if sides is None:
        sizes = f"train has {len(parts.splits.train)} images, {split} {len(parts.splits.of(split))}"
        text = f"no class has {FEWEST} images that can be read in it and in train ({sizes})"
        raise DataError(f"{split}: {text}; choose another --split")
    return sides


def mismatch_of(run: "Restored", split: str, net: "Augmenter") -> "Mismatch":
    """How far training images under amounts, as shares of the augmenter's reach, are from those of `split`."""
    from fastaug.evaluation.shift_estimate import Mismatch

    accelerator, network, data = run.accelerator, run.network.eval(), run.recipe.data
    mean, std = (torch.tensor(v, device=accelerator.device)[:, None, None] for v in (data.mean, data.std))

    def sight(images: Tensor) -> Tensor:
        """Features, or logits where the network has none in one tensor."""
        found = getattr(network, "forward_features", network)(images)
        return found if isinstance(found, Tensor) else network(images)

    def features(images: Tensor) -> Tensor:
        with accelerator.autocast():
            seen = [sight((piece - mean) / std) for piece in images.split(PIECE)]
        return torch.cat([each.flatten(1).float() for each in seen])

    def change(images: Tensor, shares: Tensor) -> Tensor:
        return net.apply(images, (net.reach * shares.to(net.reach)).expand(len(images), -1))

    return Mismatch(*compared_sides(run, split), features, change)


def write(file: Path, part: "AugmenterPart", run: "Restored") -> None:
    """The policy file of an augmenter that draws what was found; StorageError where it cannot be written."""
    from fastaug.meta.parameters import LearnedParts
    from fastaug.training.policy_files import legible, pieces_of, policy_file

    part.net.cpu()
    pieces = pieces_of(LearnedParts({"augmenter": part}), {})
    try:
        write_atomically(file, legible(policy_file(run.recipe, run.state["progress"]["step"], pieces, [])).encode())
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error}; {remedy_of(error)}") from error
    print(f"policy: {file}")


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    return told(lambda: find(parse(argv)))
