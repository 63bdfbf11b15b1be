"""Parameters: distributions, dependence on nothing but (key, id), partners, bad input."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastaug.ops.crop_mix import CropMixParams, Sampling, sample_crop_mix
from fastaug.ops.crop_mix.sampling import beta_lambda, cutmix_box, truncated_shift
from fastaug.seeding import Key

KEY = Key(7, 3, 0)
FULL = Sampling(sigma=0.3, cutmix=1.0, mixup=0.2, fill="random", mixup_mode="elem")


def same(a: CropMixParams, b: CropMixParams, rows: slice) -> bool:
    names = ("dy", "dx", "flip", "box", "fill", "blend")
    return all(torch.equal(getattr(a, n)[rows], getattr(b, n)) for n in names)


def test_types_and_shapes_of_the_contract() -> None:
    p = sample_crop_mix(KEY, torch.arange(5), (32, 48), FULL)
    assert all(t.dtype == torch.int64 for t in (p.dy, p.dx, p.partner, p.box))
    assert p.flip.dtype == torch.bool
    assert p.fill.dtype == torch.float32
    assert [tuple(t.shape) for t in (p.dy, p.dx, p.flip, p.partner, p.box, p.fill)] == [(5,)] * 4 + [(5, 4), (5, 3)]
    assert len(sample_crop_mix(KEY, [], (32, 48), FULL)) == 0


def test_draws_are_functions_of_key_and_id() -> None:
    whole = sample_crop_mix(KEY, range(64), (32, 48), FULL)
    assert same(whole, sample_crop_mix(KEY, range(16, 32), (32, 48), FULL), slice(16, 32))
    shuffled = sample_crop_mix(KEY, range(63, -1, -1), (32, 48), FULL)
    assert torch.equal(shuffled.dy.flip(0), whole.dy)
    other = sample_crop_mix(KEY._replace(epoch=4), range(64), (32, 48), FULL)
    assert not torch.equal(other.dy, whole.dy)


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_partners_depend_on_their_block_alone(mode: str) -> None:
    sampling = Sampling(cutmix=1.0, mix_group=16, mixup_mode=mode)
    whole = sample_crop_mix(KEY, range(100, 164), (32, 32), sampling)
    for start in range(0, 64, 16):
        part = sample_crop_mix(KEY, range(100 + start, 116 + start), (32, 32), sampling)
        assert torch.equal(whole.partner[start : start + 16] - start, part.partner)
        assert torch.equal(whole.box[start : start + 16], part.box)
        assert (part.box == part.box[0]).all() == (mode == "batch")


@settings(max_examples=100)
@given(st.integers(1, 70), st.one_of(st.none(), st.integers(1, 20)))
def test_partners_are_a_permutation_inside_blocks(n: int, group: int | None) -> None:
    partner = sample_crop_mix(KEY, range(n), (8, 8), Sampling(mix_group=group)).partner.numpy()
    assert sorted(partner) == list(range(n))
    block = np.arange(n) // (group or n)
    assert (block[partner] == block).all()
    alone = np.bincount(block)[block] == 1
    assert ((partner == np.arange(n)) == alone).all()


@pytest.mark.parametrize(("sigma", "limit", "size"), [(0.375, 1.0, 32), (0.2, 0.25, 224), (5.0, 1.0, 16)])
def test_shift_has_the_distribution_of_redrawing(sigma: float, limit: float, size: int) -> None:
    rng = np.random.default_rng(0)
    got = truncated_shift(rng.random(40_000), size, sigma, limit)
    drawn = rng.normal(0, sigma * size, 400_000)
    drawn = np.trunc(drawn[np.abs(drawn) <= limit * size])  # the release looks at the number before int() cuts it
    assert np.abs(got).max() < limit * size
    assert stats.ks_2samp(got, drawn).statistic < 0.012


def test_shift_at_its_ends() -> None:
    ends = np.array([0.0, 0.5, 1 - 2.0**-53])
    assert truncated_shift(ends, 32, 0.5, 1.0).tolist() == [-31, 0, 31]
    assert truncated_shift(ends, 32, 0.0, 1.0).tolist() == [0, 0, 0]
    assert truncated_shift(ends, 32, 0.5, 0.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("shift", "sigma"), [("normal", 0.375), ("normal", 0.5), ("normal", 5.0), ("uniform", 5.0)])
def test_an_image_never_leaves_the_frame(shift: str, sigma: float) -> None:
    for size in ((32, 1), (1, 3)):
        p = sample_crop_mix(KEY, range(20_000), size, Sampling(sigma=sigma, shift=shift))
        assert p.dy.abs().max() == size[0] - 1
        assert p.dx.abs().max() == size[1] - 1


def test_lambda_and_boxes() -> None:
    u = (np.arange(2000) + 0.5) / 2000
    for alpha in (0.2, 1.0, 3.0):
        assert stats.kstest(beta_lambda(u, alpha), stats.beta(alpha, alpha).cdf).statistic < 0.01
    boxes = cutmix_box(np.array([0.0, 1.0, 0.75]), np.array([[0.5, 0.5], [0.2, 0.3], [0.99, 0.0]]), (32, 48))
    assert boxes.tolist() == [[0, 32, 0, 48], [6, 6, 14, 14], [23, 32, 0, 12]]


def test_folded_lambda_keeps_the_larger_part() -> None:
    ids = range(3000)
    fold = sample_crop_mix(KEY, ids, (64, 64), Sampling(cutmix=1.0, lam_fold=True, mixup_mode="elem"))
    free = sample_crop_mix(KEY, ids, (64, 64), Sampling(cutmix=1.0, mixup_mode="elem"))
    assert fold.pasted().max() <= 64 * 64 / 2 < free.pasted().max()
    blend = sample_crop_mix(KEY, ids, (64, 64), Sampling(mixup=1.0, lam_fold=True, mixup_mode="elem")).blend
    assert blend is not None
    assert blend.min() >= 0.5


def test_probabilities() -> None:
    n = 20_000
    s = Sampling(cutmix=1.0, mixup=1.0, mixup_prob=0.8, mixup_switch_prob=0.25, mixup_mode="elem", hflip=0.3)
    p = sample_crop_mix(KEY, range(n), (64, 64), s)
    assert p.blend is not None
    assert abs(p.flip.float().mean() - 0.3) < 0.01
    assert abs((p.blend < 1).float().mean() - 0.8 * 0.75) < 0.01
    assert abs((p.pasted() > 0).float().mean() - 0.8 * 0.25) < 0.01
    assert not ((p.blend < 1) & (p.pasted() > 0)).any()
    only = sample_crop_mix(KEY, range(100), (64, 64), Sampling(mixup=1.0))
    assert (only.pasted() == 0).all()


def test_fill_and_strength() -> None:
    mean, std = (0.1, 0.2), (0.5, 0.25)
    p = sample_crop_mix(KEY, range(4000), (8, 8), Sampling(fill="random"), mean=mean, std=std)
    colour = (p.fill / 255 - torch.tensor(mean)) / torch.tensor(std)
    assert abs(colour.std() - 0.01) < 3e-4
    assert abs(colour.mean()) < 3e-4
    p = sample_crop_mix(KEY, range(2), (8, 8), Sampling(fill="constant", fill_value=0.5), white=1.0)
    assert (p.fill == 0.5).all()
    shifts = [sample_crop_mix(KEY, range(500), (64, 64), FULL, strength=s).dy.abs() for s in (0.0, 0.5, 1.0)]
    assert shifts[0].max() == 0
    assert shifts[1].sum() < shifts[2].sum()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sigma": -0.1}, "sigma must be >= 0"),
        ({"sigma": float("nan")}, "sigma must be >= 0"),
        ({"cutmix": -1.0}, "cutmix must be >= 0"),
        ({"limit": 1.5}, "limit must be in"),
        ({"hflip": 2.0}, "hflip must be in"),
        ({"fill": "blue"}, "fill must be one of"),
        ({"mixup_mode": "pair"}, "mixup_mode must be"),
        ({"mix_group": 0}, "mix_group must be >= 1"),
    ],
)
def test_bad_settings(change: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Sampling(**change)  # type: ignore[arg-type]


def test_bad_strength() -> None:
    with pytest.raises(ValueError, match="strength must be in"):
        sample_crop_mix(KEY, [1], (8, 8), strength=1.1)


def test_uniform_shifts_cover_every_pixel_up_to_their_bound_alike():
    ids = np.arange(20_000)
    params = sample_crop_mix(KEY, ids, (32, 64), Sampling(sigma=0.125, shift="uniform"))
    for drawn, most in ((params.dy, 4), (params.dx, 8)):
        values, counts = np.unique(drawn.numpy(), return_counts=True)
        assert values.tolist() == list(range(-most, most + 1))
        assert abs(counts - 20_000 / (2 * most + 1)).max() < 5 * np.sqrt(20_000 / (2 * most + 1))
    with pytest.raises(ValueError, match="shift must be normal or uniform"):
        Sampling(shift="flat")


@pytest.mark.parametrize(
    ("ids", "found"),
    [([1.5, 2.0], r"float64 \[2\]"), ([[1, 2]], r"int64 \[1, 2\]"), (7, r"int64 \[\]"), ([True], r"bool \[1\]")],
)
def test_ids_that_are_no_row_of_integers_are_refused(ids: object, found: str) -> None:
    for form in (ids, torch.tensor(ids)):
        with pytest.raises(ValueError, match="ids must be integers in one row") as error:
            sample_crop_mix(KEY, form, (8, 8))
        assert isinstance(form, torch.Tensor) or re.search(found, str(error.value))
