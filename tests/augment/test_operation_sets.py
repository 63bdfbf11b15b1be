"""Packaged sets, files of one's own and smart_augmentation's, as they act on images."""

import json

import numpy as np
import pytest
import torch

from fastaug.augment.differentiable_ops import EIGHT
from fastaug.augment.operation_sets import read_operations
from fastaug.augment.shared_policy import SharedPolicy
from fastaug.recipe.operation_files import packaged_sets
from fastaug.seeding import Key, Stream

KEY, N = Key(0, 0, Stream.LEARNED), 200


@pytest.mark.parametrize("name", packaged_sets())
def test_a_packaged_set_acts_with_a_gradient_in_all_magnitudes_that_are_not_fixed(name):
    policy = SharedPolicy(read_operations(name), identity=None)
    images = torch.rand(N, 3, 12, 14, generator=torch.Generator().manual_seed(0))
    draws = policy.sample(KEY, np.arange(N))
    out = policy.apply(images, draws)
    assert ((out >= -1e-6) & (out <= 1 + 1e-6)).all()
    (found,) = torch.autograd.grad(out.square().sum(), policy.strengths)
    assert found.isfinite().all()
    assert ((found != 0) | policy.fixed()).all()
    assert not found[policy.fixed()].any()


def test_the_sets_are_those_of_smart_augmentation_less_the_identity():
    counts = {"base": 13, "wide": 13, "wide_geom": 7, "inv_scale": 17, "inv_scale_wide": 17, "bad_tf": 21}
    counts |= {"inv_scale_wide_cutout": 18, "eight": 8, "geometry": 8, "broad": 23}
    assert {name: len(read_operations(name)) for name in packaged_sets()} == counts


def test_the_eight_in_the_file_are_the_eight_in_the_code():
    images = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found, expected = (SharedPolicy(transforms) for transforms in (read_operations("eight"), EIGHT))
    draws = expected.sample(KEY, np.arange(N))
    assert torch.equal(found.apply(images, draws), expected.apply(images, draws))
    for ours, fixed in zip(found.transforms, EIGHT, strict=True):
        assert (ours.name, ours.reach, ours.noise) == (fixed.name, fixed.reach, fixed.noise)


def test_ranges_end_where_nothing_changes_or_go_both_ways(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "- {name: up, function: contrast, min: 1, max: 1.9}\n"
        "- {name: down, function: contrast, min: 0.1, max: 1}\n"
        "- {name: both, function: contrast, max: 1.9}\n"
        "- {name: zoom, function: scale, max: 2}\n"
        "- {name: far, function: translate_x, min: 25, max: 30, absolute: true, fixed: true}\n"
        "- {function: posterize, min: 4, max: 8}\n"
        "- {function: flip_x}\n"
    )
    found = {t.name: (t.reach[0], *t.noise, t.fixed) for t in read_operations(str(path))}
    assert found == {
        "up": (0.9, 0, 1, False),
        "down": (0.9, -1, 0, False),
        "both": (0.9, -1, 1, False),
        "zoom": (pytest.approx(np.log(2)), -1, 1, False),
        "far": (30, pytest.approx(25 / 30), 1, True),
        "posterize": (4, -1, 0, False),
        "flip_x": (1, 1, 1, True),
    }


def test_magnitude_0_is_the_image_and_1_the_whole_range():
    """The seed's invScale: what leaves an image alone stands at the end of the range."""
    for name in ("-contrast", "posterize", "solarize"):
        (transform,) = (t for t in read_operations("inv_scale") if t.name == name)
        policy = SharedPolicy([transform], slots=1, magnitude=1.0, identity=1e-9)
        amounts = policy.amounts(policy.sample(KEY, np.arange(3000))).detach()
        assert float(amounts.max()) == pytest.approx(0, abs=0.01)
        assert float(amounts.min()) == pytest.approx(-transform.reach[0], rel=0.01)


def test_a_blank_square_may_be_anywhere_whatever_its_size():
    (transform,) = (t for t in read_operations("inv_scale_wide_cutout") if t.name == "cutout")
    policy = SharedPolicy([transform], slots=1, magnitude=0.2, identity=1e-9)
    amounts = policy.amounts(policy.sample(KEY, np.arange(3000))).detach()[:, 0]
    assert (float(amounts[:, 0].min()), float(amounts[:, 0].max())) == pytest.approx((0, 0.1), abs=1e-3)
    for place in amounts[:, 1:].unbind(1):
        assert (float(place.min()), float(place.max())) == pytest.approx((-1, 1), abs=5e-3)


def test_the_json_of_smart_augmentation_is_read_as_the_packaged_set(tmp_path):
    def entry(name, function, low, high, inverse=False, **more):
        return {"name": name, "function": function, "param": {"min": low, "max": high, "invScale": inverse, **more}}

    def axis(letter, *, absolute=False):
        return {"axis": letter, "absolute": absolute}

    theirs = [
        {"name": "Identity", "function": "identity"},
        {"name": "FlipUD", "function": "flip", "param": {"axis": "Y"}},
        {"name": "FlipLR", "function": "flip", "param": {"axis": "X"}},
        entry("Rotate", "rotate", None, 180),
        entry("TranslateX", "translate", None, 0.5, **axis("X")),
        entry("TranslateY", "translate", None, 0.5, **axis("Y")),
        entry("ShearX", "shear", None, 1.0, **axis("X", absolute=True)),
        entry("ShearY", "shear", None, 1.0, **axis("Y", absolute=True)),
        *(entry(f"+{f}", f, 1.0, 1.9) for f in ("contrast", "color", "brightness", "sharpness")),
        *(entry(f"-{f}", f, 0.1, 1.0, True) for f in ("contrast", "color", "brightness", "sharpness")),
        entry("Posterize", "posterize", 4.0, 8.0, True),
        entry("Solarize", "solarize", 0.00390625, 1.0, True),
        entry("CutOut", "cutout", 0.0, 0.5, absolute=False),
    ]
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(theirs))
    found, ours = read_operations(str(path)), read_operations("inv_scale_wide_cutout")
    assert found[0].name == "FlipUD"
    ours = (ours[1], ours[0], *ours[2:])  # theirs begins with the vertical flip
    assert [(t.reach, t.noise, t.fixed) for t in found] == [(t.reach, t.noise, t.fixed) for t in ours]
