"""Tells what augmenters have found of a known shift: angle, zoom and shift of what they draw.

    fastaug known-shift runs/mnist5k_bilevel

By the last checkpoints of runs.

Of an affine map with shear, the angle is that of the nearest rotation, and the zoom the root of its determinant: other
shares of shear and scale in the same map do not change them. Means over 1,024 draws (standard deviation of the draws).
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from fastaug.augment.augmenter import Augmenter, matrix
from fastaug.errors import StorageError, told
from fastaug.recipe.reading import read_stored
from fastaug.training import checkpoint


def learned_augmenter(folder: Path) -> Augmenter:
    """The augmenter of a run, as its last checkpoint has it."""
    if not (folder / "recipe.yaml").exists():
        raise StorageError(f"{folder}: is no run folder, it has no recipe.yaml; name the run.dir of a training")
    recipe, _ = read_stored(folder / "recipe.yaml")
    if "augmenter" not in recipe.meta.learn or recipe.meta.conditioned:
        raise StorageError(
            f"{folder}: has no augmenter of noise alone; name runs with meta.learn=[augmenter], not conditioned"
        )
    path, passed_over = checkpoint.latest(folder / "checkpoints")
    if path is None:
        raise StorageError(
            "; ".join([f"{folder}: has no sound checkpoint; wait for the run's first one", *passed_over])
        )
    state = checkpoint.load(path, whole=False).state["meta"]["learned"]
    net, before = Augmenter(recipe.meta.augmenter), "parts.augmenter.net."
    net.load_state_dict({n.removeprefix(before): value for n, value in state.items() if n.startswith(before)})
    return net


def found(net: Augmenter) -> dict[str, Tensor]:
    """Angle in degrees, zoom, and shift in shares of the side, of each draw."""
    amounts = dict(zip(net.names, net.drawn().double().unbind(1), strict=True))
    shown = torch.linalg.inv(matrix(amounts))  # from the image to what is shown; y down
    angle = torch.atan2(shown[:, 0, 1] - shown[:, 1, 0], shown[:, 0, 0] + shown[:, 1, 1]).rad2deg()
    zoom = torch.linalg.det(shown[:, :2, :2]).sqrt()
    return {"angle": angle, "zoom": zoom, "right": shown[:, 0, 2] / 2, "down": shown[:, 1, 2] / 2}


def tell(folders: list[Path]) -> None:
    """A line for each run folder."""
    for folder in folders:
        figures = {name: f"{v.mean():.3f} ({v.std():.3f})" for name, v in found(learned_augmenter(folder)).items()}
        result = json.loads((folder / "result.json").read_text()) if (folder / "result.json").exists() else {}
        test = {name: f"{result[name]:.4f}" for name in ("top1", "nll") if name in result}
        print(folder.name, *(f"{name} {value}" for name, value in (figures | test).items()), sep="  ")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug known-shift", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders with meta.learn=[augmenter]")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Prints a line for each run folder; the exit code, as that of `fastaug train`."""
    return told(lambda: tell(parse(argv).runs))
