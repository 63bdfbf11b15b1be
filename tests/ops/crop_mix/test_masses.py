"""Masses against counting pixels, against the published formulas, and their gradients."""

import dataclasses
import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastaug.ops.crop_mix import CropMixParams, Sampling, Soften, cpu, identity_params, sample_crop_mix
from fastaug.ops.crop_mix import masses as definition
from fastaug.ops.crop_mix import params as params_module
from fastaug.ops.crop_mix.masses import masses, soft_targets, visible_counts
from fastaug.seeding import Key

CLASSES = 10


@st.composite
def cases(draw: st.DrawFn) -> tuple[CropMixParams, int, int]:
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9))

    def rows(low: int, high: int) -> torch.Tensor:
        return torch.tensor(draw(st.lists(st.integers(low, high), min_size=n, max_size=n)))

    edges = [torch.stack([rows(0, size), rows(0, size)]).sort(0)[0] for size in (h, w)]
    box = torch.stack([edges[0][0], edges[0][1], edges[1][0], edges[1][1]], 1)
    partner, flip = rows(0, n - 1), rows(0, 1).bool()
    params = CropMixParams(rows(-h - 2, h + 2), rows(-w - 2, w + 2), flip, partner, box, torch.zeros(n, 3))
    return params, h, w


def counted(params: CropMixParams, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """The same counts by marking every pixel."""
    y, x = np.mgrid[:h, :w]
    shown = []
    for dy, dx in zip(params.dy.tolist(), params.dx.tolist(), strict=True):
        shown.append((y + dy >= 0) & (y + dy < h) & (x + dx >= 0) & (x + dx < w))
    parts, views = [], []
    for i, (top, bottom, left, right) in enumerate(params.box.tolist()):
        j = int(params.partner[i])
        box = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        parts.append([(shown[i] & ~box).sum(), (shown[j] & box).sum()])
        views.append([shown[i].sum(), shown[j].sum()])
    return np.array(parts), np.array(views)


def agrees(case: tuple[CropMixParams, int, int]) -> None:
    params, h, w = case
    parts, views = visible_counts(params, (h, w))
    want = counted(params, h, w)
    assert np.array_equal(parts.numpy(), want[0])
    assert np.array_equal(views.numpy(), want[1])
    mass, weight = masses(params, (h, w), CLASSES, Soften(k=3.0))
    seen = want[0].sum(1, keepdims=True)
    by_hand = (1 - (1 - seen / (h * w)) ** 3.0) * want[0] / np.maximum(seen, 1)
    np.testing.assert_allclose(mass.numpy(), by_hand, atol=1e-6)
    total = by_hand.sum(1)
    np.testing.assert_allclose(weight.numpy(), total + (1 - total) / CLASSES, atol=1e-6)


@settings(max_examples=300)
@given(cases())
def test_closed_form_equals_counting(case: tuple[CropMixParams, int, int]) -> None:
    agrees(case)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(cases())
def test_closed_form_equals_counting_often(case: tuple[CropMixParams, int, int]) -> None:
    agrees(case)


@settings(max_examples=300)
@given(
    cases(),
    st.floats(0.01, 8) | st.sampled_from([1, 2, 2.0, 0.5]),
    st.sampled_from([(1.0, 1.0), (0.9, 0.8), (0.1, 0.3), (1.0, 2.0)]),
    st.sampled_from(["pixels", "own", "base"]),
    st.sampled_from(["both", "target", "weight", "none"]),
    st.sampled_from(["area", "iou"]),
    st.lists(st.sampled_from([0.0, 0.3, 0.5, 1.0]), min_size=3, max_size=3) | st.none(),
)
def test_one_pass_on_the_host_equals_the_tensors_to_the_bit(case, k, reach, rule, on, visibility, blend) -> None:
    params, h, w = case
    if blend is not None:
        params = dataclasses.replace(params, blend=torch.tensor(blend[: len(params)]))
    soften = Soften(k=k, p_max=reach[0], threshold=reach[1], rule=rule, on=on, visibility=visibility)
    got = cpu.masses(params, (h, w), CLASSES, soften)
    with mock.patch.object(definition, "_plain", return_value=False):
        want = masses(params, (h, w), CLASSES, soften)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(masses(params, (h, w), CLASSES, soften), want, strict=True))


@pytest.mark.parametrize("rule", ["pixels", "own", "base"])
def test_one_pass_on_the_host_equals_the_tensors_where_torch_uses_vectors(rule: str) -> None:
    sampling = Sampling(sigma=0.4, cutmix=1.0, mixup=0.8, mixup_mode="elem")
    params = sample_crop_mix(Key(0, 0, 0), range(257), (224, 224), sampling)
    soften = Soften(k=0.7, p_max=0.9, threshold=0.8, rule=rule, visibility="iou")
    got = cpu.masses(params, (224, 224), CLASSES, soften)
    with mock.patch.object(definition, "_plain", return_value=False):
        want = masses(params, (224, 224), CLASSES, soften)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("p_max", "threshold", "match"), [(0.05, 1.0, "p_max"), (1.5, 1.0, "p_max"), (1.0, 0.0, "T")])
def test_ranges_are_checked_on_the_host_too(p_max: float, threshold: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        masses(one(), (8, 8), CLASSES, Soften(p_max=p_max, threshold=threshold))


def test_packing_on_the_host_equals_the_tensors(monkeypatch) -> None:
    for seed, dtype in itertools.product(range(8), (torch.float32, torch.float64)):
        sampling = Sampling(sigma=0.9, cutmix=1.0, mixup=1.0, mixup_mode="elem", fill="random")
        params = sample_crop_mix(Key(seed, 0, 0), range(9), (6, 11), sampling)
        params = dataclasses.replace(params, dy=params.dy * 1000, fill=params.fill.double() / 3)
        params.box[0] = torch.tensor([0, 3, 5, 5])  # no pixel, so the sample may blend
        params.box[1] = torch.tensor([2, 2, 0, 5])
        params = params if seed % 2 else dataclasses.replace(params, blend=None)
        if params.blend is not None:
            params.blend[:2] = 0.3
        got = params.packed(6, 11, dtype)
        with monkeypatch.context() as patch:
            patch.setattr(params_module, "on_host", lambda _: False)
            want = params.packed(6, 11, dtype)
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def one(dy: int = 0, dx: int = 0, box: tuple[int, ...] = (0, 0, 0, 0), blend: float = 1.0) -> CropMixParams:
    """Sample 0 as asked for, its partner sample 1 shifted by half of 8 x 8."""
    params = identity_params(2, torch.zeros(3))
    return dataclasses.replace(
        params,
        dy=torch.tensor([dy, 4]),
        dx=torch.tensor([dx, 0]),
        partner=torch.tensor([1, 0]),
        box=torch.tensor([box, (0, 0, 0, 0)]),
        blend=torch.tensor([blend, 1.0]),
    )


def first(params: CropMixParams, soften: Soften) -> tuple[list[float], float]:
    mass, weight = masses(params, (8, 8), CLASSES, soften)
    return mass[0].tolist(), weight[0].item()


def test_without_a_box_it_is_soft_augmentation() -> None:
    """p = 1 - (1 - 1/C)(1 - v)^k on the label, the same p as loss weight; with p_max and T the general form."""
    v = 6 * 5 / 64
    (mass, other), weight = first(one(2, -3), Soften(k=2.0))
    p = 1 - (1 - 1 / CLASSES) * (1 - v) ** 2
    assert other == 0
    assert mass + (1 - mass) / CLASSES == pytest.approx(p)
    assert weight == pytest.approx(p)
    (mass, _), _ = first(one(2, -3), Soften(k=4.0, p_max=0.9, threshold=0.8))
    p = 0.9 - (0.9 - 1 / CLASSES) * ((0.8 - v) / 0.8) ** 4
    assert mass + (1 - mass) / CLASSES == pytest.approx(p)
    (mass, _), _ = first(one(2, -3), Soften(k=1.0, visibility="iou"))
    assert mass == pytest.approx(30 / (128 - 30))


def test_without_a_shift_it_is_cutmix() -> None:
    params = dataclasses.replace(one(box=(0, 4, 0, 4)), dy=torch.zeros(2, dtype=torch.int64))
    for rule in ("pixels", "own", "base"):
        assert first(params, Soften(rule=rule)) == ([0.75, 0.25], 1.0)


def test_rules_for_a_pasted_box() -> None:
    params = one(dy=6, box=(0, 8, 0, 4))  # base shows 2 of 8 rows, partner 4 of 8
    s = [1 - (1 - v) ** 2 for v in (2 / 8, 4 / 8)]
    total = 1 - (1 - 24 / 64) ** 2
    assert first(params, Soften())[0] == pytest.approx([total * 8 / 24, total * 16 / 24])
    assert first(params, Soften(rule="own"))[0] == pytest.approx([0.5 * s[0], 0.5 * s[1]])
    assert first(params, Soften(rule="base"))[0] == pytest.approx([0.5 * s[0], 0.5 * s[0]])
    assert first(params, Soften(on="none")) == ([0.5, 0.5], 1.0)
    mass, weight = first(params, Soften(on="weight"))
    assert mass == [0.5, 0.5]
    assert weight == pytest.approx(total + (1 - total) / CLASSES)
    assert first(params, Soften(on="target"))[1] == 1


def test_mixup_takes_each_images_own_softness() -> None:
    s = [1 - (1 - v) ** 2 for v in (6 / 8, 4 / 8)]
    mass, _ = first(one(dy=2, blend=0.3), Soften())
    assert mass == pytest.approx([0.3 * s[0], 0.7 * s[1]])
    mass, _ = first(one(dy=2, box=(0, 4, 0, 4), blend=0.3), Soften(on="none"))
    assert mass == [0.75, 0.25]


def test_targets_name_both_classes_and_the_other_class() -> None:
    labels = torch.tensor([3, 5])
    target = soft_targets(labels, one(box=(0, 4, 0, 4)), (8, 8), CLASSES, Soften())
    assert target.classes.tolist() == [[3, 5], [5, 3]]
    other = soft_targets(labels, one(2, -3), (8, 8), CLASSES, Soften(other=True))
    assert other.classes.tolist() == [[3, CLASSES], [5, CLASSES]]
    assert other.mass.sum(1).tolist() == pytest.approx([1, 1])
    p = 1 - (1 - 1 / CLASSES) * (1 - 30 / 64) ** 2
    assert other.mass[0, 0].item() == pytest.approx(p)
    assert other.weight[0].item() == pytest.approx(p)
    for mixed in (one(box=(0, 4, 0, 4)), one(blend=0.5)):
        with pytest.raises(ValueError, match="turn mixup and cutmix off"):
            soft_targets(labels, mixed, (8, 8), CLASSES, Soften(other=True))


@pytest.mark.parametrize("rule", ["pixels", "own", "base"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_masses_are_differentiable_in_k(rule: str, per_sample: bool) -> None:
    shift = torch.tensor([0, 8, 3, -2])  # fully in view, out of view, between
    params = dataclasses.replace(
        identity_params(4, torch.zeros(3)),
        dy=shift,
        partner=torch.tensor([1, 0, 3, 2]),
        box=torch.tensor([[0, 0, 0, 0], [0, 8, 0, 8], [1, 5, 2, 8], [0, 0, 0, 0]]),
        blend=torch.tensor([1.0, 1.0, 1.0, 0.4], dtype=torch.float64),
    )
    k = torch.full((4,) if per_sample else (), 1.7, dtype=torch.float64, requires_grad=True)

    def total(k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return masses(params, (8, 8), CLASSES, Soften(k=k, rule=rule))

    total(k)[0].sum().backward()
    assert k.grad is not None
    assert k.grad.isfinite().all()
    assert torch.autograd.gradcheck(lambda k: total(k)[1].double(), k, eps=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"k": 0.0}, "k must be > 0, found 0.0"),
        ({"visibility": "volume"}, "visibility must be one of"),
        ({"on": "both sides"}, "on must be one of"),
        ({"rule": "mine"}, "rule must be one of"),
    ],
)
def test_bad_settings(change: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Soften(**change)  # type: ignore[arg-type]


def test_a_mixed_samples_weight_is_the_mean_of_its_images_by_mass():
    """Mixup of half a whole image and half one out of sight: only the visible one counts."""
    n, size = 2, (8, 8)
    params = CropMixParams(
        dy=torch.tensor([0, 8]),
        dx=torch.zeros(n, dtype=torch.int64),
        flip=torch.zeros(n, dtype=torch.bool),
        partner=torch.tensor([1, 0]),
        box=torch.zeros(n, 4, dtype=torch.int64),
        fill=torch.zeros(n, 3),
        blend=torch.full((n,), 0.5),
    )
    mass, weight = masses(params, size, 100, Soften())
    assert mass.tolist() == [[0.5, 0.0], [0.0, 0.5]]
    assert weight.tolist() == [1.0, 1.0]
    alone = CropMixParams(**{**vars(params), "blend": torch.ones(n)})
    assert masses(alone, size, 100, Soften())[1].tolist() == [1.0, pytest.approx(0.01)]
