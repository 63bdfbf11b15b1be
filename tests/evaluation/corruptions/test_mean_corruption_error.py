"""mCE as the paper defines it: its formula, AlexNet's errors, and a whole evaluation of 1,000 classes at 224 pixels."""

import json
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from PIL import Image

from fastaug.commands.evaluate import main
from fastaug.evaluation.corruptions import NAMES, Corruption, error_table
from fastaug.evaluation.corruptions.published import ALEXNET, SEVERITIES
from fastaug.recipe.reading import read_recipe
from fastaug.training.worker import run

# AlexNet's errors at each severity, of which the published ones, a number for each corruption, are the means.
BY_SEVERITY = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.9487, 0.9872, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
    "frost": (0.6139, 0.79734, 0.8879, 0.89942, 0.9343),
    "fog": (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
    "brightness": (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
    "contrast": (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 200, 40))


def by_the_paper(errors: dict[str, list[float]]) -> float:
    """mCE: the mean over corruptions of CE, a network's sum over severities by AlexNet's."""
    return fmean(sum(errors[name]) / sum(BY_SEVERITY[name]) for name in NAMES)


def test_the_published_errors_are_the_means_over_severities() -> None:
    assert list(ALEXNET) == list(BY_SEVERITY) == list(NAMES)
    assert {name: fmean(row) for name, row in BY_SEVERITY.items()} == pytest.approx(ALEXNET, abs=5e-7)


def test_the_formula_is_the_papers() -> None:
    draw = np.random.default_rng(0)
    errors = {name: draw.random(5).tolist() for name in NAMES}
    table = error_table({Corruption(n, s, 224): errors[n][s - 1] for n in NAMES for s in SEVERITIES}, 0.4, 1000)
    assert table["mce_alexnet"] == pytest.approx(by_the_paper(errors), rel=1e-6)
    assert table["mce_alexnet"] != pytest.approx(
        table["mce"] / fmean(ALEXNET.values()), rel=1e-3
    )  # no quotient of means


def squares(root: Path, count: int, label: int, colour: tuple[int, ...]) -> None:
    """So many noisy images of a colour, 240 pixels a side."""
    draw, folder = np.random.default_rng(label), root / f"{label:04d}"
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.array(colour) + draw.normal(0, 25, (240, 240, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_files_of_1000_classes_at_224_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small network that tells four colours; the other classes have one training image each."""
    root, splits = tmp_path / "images", tmp_path / "splits"
    for label in range(1000):
        squares(root, *((26, label, COLOURS[label]) if label < 4 else (1, label, (128, 128, 128))))
    tested = {f"{label:04d}/{number}.jpg" for label in range(4) for number in range(2)}
    splits.mkdir()
    trained = {str(path.relative_to(root)) for path in root.rglob("*.jpg")} - tested
    for role, names in (("train", trained), ("test", tested)):
        (splits / f"{role}.txt").write_text("".join(f"{name}\n" for name in sorted(names)))
    (tmp_path / "recipe.yaml").write_text(
        "data: {img_size: 32, crop: whole, crop_pct: 1.0, threads: 1}\nmodel: {name: test_resnet}\n"
        "optim: {opt: adamw, lr: 2e-3, sched: constant}\ntrain: {epochs: 8, batch_size: 64}\n"
        "eval: {every: 0, img_size: 224}\n"
    )
    words = [f"data.root={root}", f"data.splits={splits}", f"run.dir={tmp_path / 'run'}"]
    assert run(read_recipe(tmp_path / "recipe.yaml", words)) == 0
    assert main([str(tmp_path / "run"), "--corruptions", "--json", str(tmp_path / "f.json")]) == 0
    found = json.loads((tmp_path / "f.json").read_text())["figures"]["corruptions"]
    errors = {name.removesuffix(" (procedural)"): list(row.values()) for name, row in found["errors"].items()}
    assert found["parameters"] == "ImageNet-C (224 px)"
    assert len({error for row in errors.values() for error in row}) > 2  # neither all right nor all wrong
    assert found["mce_alexnet"] == pytest.approx(by_the_paper(errors), rel=1e-6)
    assert f"mCE {found['mce_alexnet']:.4f} of AlexNet's" in capsys.readouterr().out
