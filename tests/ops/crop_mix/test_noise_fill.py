"""Fill "noise": which pixels, which numbers, what they depend on, and that nothing else changes."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from fastaug.ops.crop_mix import CropMixParams, Sampling, crop_mix, sample_crop_mix
from fastaug.ops.crop_mix.noise_fill import uncovered
from fastaug.seeding import Key

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
MIX = Sampling(sigma=0.4, cutmix=1.0, mixup=0.8, mixup_mode="elem", mix_group=4, fill="noise")


def drawn(ids: range, size: tuple[int, int], sampling: Sampling = MIX, seed: int = 0) -> CropMixParams:
    return sample_crop_mix(Key(seed, 1, 0), ids, size, sampling, mean=MEAN, std=STD)


def applied(x: Tensor, params: CropMixParams, **options: object) -> Tensor:
    labels = torch.zeros(len(x), dtype=torch.int64)
    return crop_mix(x, labels, params, classes=10, mean=MEAN, std=STD, **options)[0]  # type: ignore[arg-type]


def without(params: CropMixParams) -> CropMixParams:
    return dataclasses.replace(params, noise=None)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 20))
def test_noise_is_where_no_image_leaves_a_mark(seed: int, h: int, w: int) -> None:
    """White images on black fill: what stays black after the pass shows no image; nothing else changes."""
    params = drawn(range(6), (h, w), seed=seed)
    assert params.blend is not None
    params = dataclasses.replace(params, blend=params.blend.clamp(0.1, 1))  # a share of 0 leaves no mark
    x = torch.full((6, h, w, 3), 255, dtype=torch.uint8)
    black = dataclasses.replace(params, fill=torch.zeros(6, 3), noise=None)
    labels = torch.zeros(6, dtype=torch.int64)
    marks, _ = crop_mix(x, labels, black, classes=10, mean=(0.0,) * 3, std=(1.0,) * 3)
    unmarked = (marks == 0).all(1)
    assert torch.equal(uncovered(params, h, w), unmarked)
    plain, got = applied(x, without(params)), applied(x, params)
    assert torch.equal((got != plain).any(1), unmarked)
    assert torch.equal(got[~unmarked[:, None].expand_as(got)], plain[~unmarked[:, None].expand_as(got)])


def test_numbers_are_standard_normal_after_normalising() -> None:
    params = drawn(range(8), (64, 64))
    far = dataclasses.replace(params, dy=torch.full((8,), 64))
    got = applied(torch.zeros(8, 64, 64, 3, dtype=torch.uint8), far)
    for channel in got.unbind(1):
        assert stats.kstest(channel.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.corrcoef(got.flatten(1)).sub(torch.eye(8)).abs().max() < 0.05  # samples differ


def test_seeds_are_functions_of_key_and_id() -> None:
    whole = drawn(range(16), (9, 9))
    assert whole.noise is not None
    assert whole.noise.dtype == torch.int64
    assert len(set(whole.noise.tolist())) == 16
    part, other = drawn(range(4, 8), (9, 9)).noise, drawn(range(16), (9, 9), seed=1).noise
    assert part is not None
    assert other is not None
    assert torch.equal(part, whole.noise[4:8])
    assert not (other == whole.noise).any()
    assert (whole.fill / 255 - torch.tensor(MEAN)).abs().max() < 1e-6
    assert all(drawn(range(2), (9, 9), Sampling(fill=f)).noise is None for f in ("mean", "constant", "random"))


def test_a_sample_looks_the_same_in_any_batch() -> None:
    x = torch.randint(0, 256, (16, 20, 30, 3), dtype=torch.uint8)
    whole, before = applied(x, drawn(range(16), (20, 30))), torch.random.get_rng_state()
    assert torch.equal(applied(x[4:8], drawn(range(4, 8), (20, 30))), whole[4:8])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_memory_of_the_caller_and_types(dtype: torch.dtype) -> None:
    x, params = torch.randint(0, 256, (4, 20, 30, 3), dtype=torch.uint8), drawn(range(4), (20, 30))
    want = applied(x, params, dtype=dtype)
    assert want.dtype == dtype
    assert want.is_contiguous(memory_format=torch.channels_last)
    out = torch.empty(4, 3, 20, 30, dtype=dtype).contiguous(memory_format=torch.channels_last)
    got = applied(x, params, dtype=dtype, out=out)
    assert got.data_ptr() == out.data_ptr()
    assert torch.equal(out, want)
    black = uncovered(params, 20, 30)[:, None].expand(4, 3, -1, -1)
    torch.testing.assert_close(want[black], applied(x, params)[black].to(dtype))


def test_noise_passes_no_gradient() -> None:
    params = dataclasses.replace(drawn(range(4), (7, 8)), white=None)  # the fill is laid over, whatever it is
    assert uncovered(params, 7, 8).any()
    x = torch.rand(4, 3, 7, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(4, 3, 7, 8, dtype=torch.float64)
    seen = weight * ~uncovered(params, 7, 8)[:, None]
    (got,) = torch.autograd.grad(applied(x, params, dtype=torch.float64), x, weight)
    (want,) = torch.autograd.grad(applied(x, without(params), dtype=torch.float64), x, seen)
    assert torch.equal(got, want)
    assert torch.autograd.gradcheck(lambda x: applied(x, params, dtype=torch.float64), x)


def test_targets_do_not_know_of_it() -> None:
    params, labels = drawn(range(8), (12, 12)), torch.arange(8)
    x = torch.zeros(8, 12, 12, 3, dtype=torch.uint8)
    (_, a), (_, b) = (crop_mix(x, labels, p, classes=10) for p in (params, without(params)))
    assert torch.equal(a.mass, b.mass)
    assert torch.equal(a.weight, b.weight)


def test_seeds_stay_in_host_memory_and_must_fit() -> None:
    params = drawn(range(4), (5, 5))
    moved = params.to("meta")
    assert moved.dy.device.type == "meta"
    assert moved.noise is params.noise
    with pytest.raises(ValueError, match=r"params.noise must have shape \(4,\)"):
        applied(torch.zeros(4, 5, 5, 3, dtype=torch.uint8), dataclasses.replace(params, noise=torch.arange(3)))
    with pytest.raises(ValueError, match=r"params.noise must be torch.int64"):
        applied(torch.zeros(4, 5, 5, 3, dtype=torch.uint8), dataclasses.replace(params, noise=torch.rand(4)))
    assert len(applied(torch.zeros(0, 5, 5, 3, dtype=torch.uint8), drawn(range(0), (5, 5)))) == 0
