"""Pixels and numbers of the pictures, against the op's own output; and that a run logs one without changing itself."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from fastaug.ops.crop_mix import CropMixParams, Sampling, Soften, crop_mix, identity_params, sample_crop_mix
from fastaug.recipe.reading import read_recipe
from fastaug.reports import batch_grid as pictures
from fastaug.reports.batch_grid import (
    GAP,
    LINE,
    LINES,
    WIDTH,
    batch_grid,
    batch_texts,
    displayed,
    mass_text,
    softening_curve,
)
from fastaug.seeding import Key
from fastaug.targets import SoftTarget, hard_target, softness
from fastaug.training.worker import run

SIDE, NAMES = 32, ("cat", "dog", "a very long name of a class that no cell of the picture could hold", "owl")
ZERO, ONE = (0.0,) * 3, (1.0,) * 3
LABELS = torch.tensor([0, 1, 2, 3, 1, 0])


def params_of(sampling: Sampling, n: int = 6, side: int = SIDE, epoch: int = 0) -> CropMixParams:
    return sample_crop_mix(Key(0, epoch, 0), range(n), (side, side), sampling)


def target_of(*rows: tuple[int, int, float, float]) -> SoftTarget:
    classes = torch.tensor([row[:2] for row in rows])
    return SoftTarget(classes, torch.tensor([row[2:] for row in rows]), torch.ones(len(rows)))


@pytest.fixture
def photographs(photos: list[np.ndarray]) -> Tensor:
    """uint8 [6,32,32,3]"""
    corners = [(20, 30), (200, 300), (100, 400), (300, 50), (250, 500), (10, 10)]
    crops = [photos[i % 2][y : y + SIDE, x : x + SIDE] for i, (y, x) in enumerate(corners)]
    return torch.from_numpy(np.stack(crops))


def cell(page: Image.Image, row: int, column: int, side: int = SIDE) -> np.ndarray:
    """The picture in a cell, reduced to its size."""
    factor = WIDTH // side
    left, top = GAP + column * (WIDTH + GAP), LINE + 2 * GAP + row * (factor * side + LINES * LINE + GAP)
    return np.asarray(page)[top : top + factor * side : factor, left : left + factor * side : factor]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ((0, 1, 0.61, 0.27), "0.61 cat + 0.27 dog, rest 0.12"),
        ((0, 0, 0.5, 0.3), "0.80 cat, rest 0.20"),  # a pair of one class
        ((3, 1, 1.0, 0.0), "1.00 owl"),
        ((3, 1, 0.0, 0.4), "0.40 dog, rest 0.60"),
        ((3, 1, 0.0, 0.0), "rest 1.00"),
    ],
)
def test_masses_in_words(row, text):
    assert mass_text(target_of(row), NAMES, 0) == text


def test_rows_show_what_the_op_did(photographs):
    params = params_of(Sampling(sigma=0.2, cutmix=1.0, mixup_prob=0.6, mixup_mode="elem"))
    pasted = params.pasted() > 0
    assert 0 < pasted.sum() < 6  # both kinds of rows
    images, target = crop_mix(photographs, LABELS, params, classes=4, mean=ZERO, std=ONE)
    results, before = displayed(images, ZERO, ONE), photographs.clone()
    page = batch_grid(photographs, results[:5], params, target, NAMES, torch.arange(6))
    for i in range(5):
        own, result = photographs[i].numpy(), results[i].numpy()
        assert (cell(page, i, 0) == own).all()
        assert (
            cell(page, i, 1)[1:, 1:] == (photographs[params.partner[i]].numpy()[1:, 1:] if pasted[i] else 255)
        ).all()
        assert (cell(page, i, 2) == result).all()
        assert (cell(page, i, 3) == np.abs(result.astype(int) - own)).all()
    assert (photographs == before).all()


def test_text_stays_in_its_cell_and_there_is_some_below_every_image(photographs):
    params = params_of(Sampling(sigma=0.2, cutmix=1.0))
    _, target = crop_mix(photographs, LABELS, params, classes=4)
    page = np.asarray(batch_grid(photographs, photographs, params, target, NAMES, torch.arange(6)).convert("L"))
    step = WIDTH + LINES * LINE + GAP
    for row in range(6):
        below = page[LINE + 2 * GAP + row * step + WIDTH :][: LINES * LINE]
        for column in range(4):
            left = GAP + column * (WIDTH + GAP)
            assert (below[:, left : left + WIDTH] < 128).sum() > 50
            assert (below[:, left + WIDTH : left + WIDTH + GAP - 2] == 255).all()


@given(epoch=st.integers(0, 1000), prob=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=40)
def test_visibility_is_what_counting_pixels_gives(epoch, prob):
    sampling = Sampling(sigma=0.3, cutmix=1.0, mixup_prob=prob, mixup_mode="elem", fill="constant", fill_value=0.0)
    params = params_of(sampling, epoch=epoch)
    images, target = crop_mix(
        torch.full((6, SIDE, SIDE, 3), 255, dtype=torch.uint8), LABELS, params, classes=4, mean=ZERO, std=ONE
    )
    texts = batch_texts(params, target, NAMES, torch.arange(6), (SIDE, SIDE))
    for i, (own, other, _, numbers) in enumerate(texts):
        assert numbers[0] == f"visible {float((images[i, 0] > 0.5).float().mean()):.2f}"
        assert own[:2] == [NAMES[LABELS[i]], f"id {i}"]
        assert (other == ["not mixed"]) == bool(params.pasted()[i] == 0)


def test_a_blend_says_its_share_and_what_of_both_is_visible():
    still = identity_params(2, torch.zeros(3))
    params = CropMixParams(
        torch.tensor([0, 16]),
        still.dx,
        still.flip,
        torch.tensor([1, 0]),
        still.box,
        still.fill,
        torch.tensor([0.75, 1.0]),
    )
    _, target = crop_mix(
        torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8), LABELS[:2], params, classes=4, soften=Soften(k=1)
    )
    first, second = batch_texts(params, target, NAMES, torch.tensor([7, 8]), (SIDE, SIDE))
    # 0.75 of a whole image and 0.25 of a half: mass 0.75 and 0.125, the rest 0.125 over 4 classes
    assert first[0] == ["cat", "id 7", "visible 1.00"]
    assert first[1] == ["dog", "blend 0.25", "visible 0.50"]
    assert first[2] == ["0.75 cat + 0.12 dog, rest 0.12"]
    weight = (0.75 * 1 + 0.125 * (0.5 + 0.5 / 4)) / (
        0.75 + 0.125
    )  # the mean by mass of a whole image's and a half one's
    assert first[3] == ["visible 0.88", "confidence 0.78", f"loss weight {weight:.2f}"]
    assert second[1] == ["not mixed"]


def test_a_partner_in_a_hidden_layer_and_the_other_class_are_told_apart():
    params = identity_params(2, torch.zeros(3))
    crossed = CropMixParams(params.dy, params.dx, params.flip, torch.tensor([1, 0]), params.box, params.fill)
    hidden = batch_texts(crossed, target_of((0, 1, 0.7, 0.3), (1, 0, 1, 0)), NAMES, torch.arange(2), (SIDE, SIDE))
    assert hidden[0][1] == ["dog", "in a hidden layer"]
    assert hidden[1][1] == ["not mixed"]
    other = batch_texts(
        crossed, target_of((0, 4, 0.7, 0.3), (1, 4, 1, 0)), (*NAMES, "rest"), torch.arange(2), (SIDE, SIDE)
    )
    assert other[0][1] == ["not mixed"]


def test_other_shapes_are_refused(photographs):
    params, target = identity_params(6, torch.zeros(3)), hard_target(LABELS)
    for results in (photographs.float(), photographs[:, :16], photographs.repeat(2, 1, 1, 1)):
        with pytest.raises(ValueError, match="originals must be uint8"):
            batch_grid(photographs, results, params, target, NAMES, torch.arange(6))


def test_displayed_undoes_normalisation(photographs):
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    images, _ = crop_mix(photographs, LABELS, identity_params(6, torch.zeros(3)), classes=4, mean=mean, std=std)
    assert (displayed(images, mean, std) == photographs).all()
    assert displayed(torch.full((1, 3, 1, 1), 9.0), mean, std).max() == 255
    assert displayed(torch.full((1, 3, 1, 1), -9.0), mean, std).max() == 0


@pytest.mark.parametrize("channels", [2, 3, 5])
def test_of_n_channels_the_first_three_are_shown(channels):
    images = torch.randint(0, 256, (2, 6, 6, channels), dtype=torch.uint8)
    shown = displayed(images.permute(0, 3, 1, 2) / 255, (0.0,) * channels, (1.0,) * channels)
    assert shown.equal(images[..., :3] if channels >= 3 else images[..., :1].expand(-1, -1, -1, 3))
    page = softening_curve(images[0], torch.full((channels,), 255.0))
    assert page.size == softening_curve(shown[0], torch.full((3,), 255.0)).size


def test_the_curve_shows_the_image_and_bars_as_long_as_its_numbers(photographs):
    page = np.asarray(softening_curve(photographs[0], torch.tensor([255.0, 0.0, 0.0])))
    factor, top = WIDTH // SIDE, LINE // 2 + GAP + GAP // 2
    bar = np.array([int(pictures.BAR[i : i + 2], 16) for i in (1, 3, 5)])
    for i in range(8):
        left, shift = GAP + i * (WIDTH + GAP), SIDE * i // 8
        shown = page[top : top + WIDTH : factor, left : left + WIDTH : factor]
        assert (shown[shift:, shift:] == photographs[0, : SIDE - shift, : SIDE - shift].numpy()).all()
        assert (shown[:shift] == [255, 0, 0]).all()
        v = torch.tensor((SIDE - shift) ** 2 / SIDE**2)
        for number, value in enumerate([v, *(softness(v, k) for k in (1, 2, 3, 4))]):
            line = page[LINE // 2 + 2 * GAP + WIDTH + number * LINE + LINE - 3, left : left + WIDTH]
            assert (line == bar).all(1).sum() == round(float(value) * (WIDTH - 1)) + 1


RECIPE = """
data: {loader: synthetic, img_size: 16, synthetic_images: 24, synthetic_classes: 4}
model: {name: test_resnet, drop: 0.3}
optim: {opt: adamw, lr: 1e-3}
train: {epochs: 1, batch_size: 8, accumulate: 2}
augment: {aa: rand-m9-n2, shift: 0.2, cutmix: 1, mixup: 1, reprob: 0.3}
"""


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Callable[..., dict[str, Tensor]]]:
    """train(name, "key=value", ...): runs RECIPE in tmp_path / name; its weights at the end."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def start(name: str, *overrides: str) -> dict[str, Tensor]:
        assert run(read_recipe(tmp_path / "recipe.yaml", [f"run.dir={tmp_path / name}", *overrides])) == 0
        return load_file(next((tmp_path / name).glob("checkpoints/step-*/model.safetensors")))

    yield start
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_a_run_with_a_tracker_logs_its_first_batch_and_trains_as_without(train, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plain, tracked = train("plain"), train("tracked", "run.trackers=[tensorboard]")
    assert plain.keys() == tracked.keys()
    assert all(torch.equal(plain[name], tracked[name]) for name in plain)
    assert not (tmp_path / "plain/batch.png").exists()
    picture = np.asarray(Image.open(tmp_path / "tracked/batch.png"))
    assert picture.shape == (LINE + 2 * GAP + 4 * (WIDTH + LINES * LINE + GAP), GAP + 4 * (WIDTH + GAP), 3)
    events = EventAccumulator(str(tmp_path / "tracked/fastaug")).Reload()
    (logged,) = events.Images("batch")
    assert logged.step == 0
    assert (np.asarray(Image.open(io.BytesIO(logged.encoded_image_string))) == picture).all()
