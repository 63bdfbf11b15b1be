"""The public op against its definition: values, gradients, registration, bad input."""

import dataclasses
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastaug.ops.crop_mix import CropMixParams, Sampling, Soften, cpu, crop_mix, identity_params, sample_crop_mix
from fastaug.ops.crop_mix.cpu import memory as cpu_memory
from fastaug.ops.crop_mix.custom_op import crop_mix_adjoint, crop_mix_op, formulation
from fastaug.ops.crop_mix.reference import adjoint_reference, compute_dtype, crop_mix_reference, normaliser
from fastaug.seeding import Key

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
MIX = Sampling(sigma=0.4, cutmix=1.0, mixup=0.8, mixup_mode="elem", fill="random")


def batch(n: int, h: int, w: int, dtype: torch.dtype, channels: int = 3) -> Tensor:
    if dtype == torch.uint8:
        return torch.randint(0, 256, (n, h, w, channels), dtype=dtype)
    return torch.rand(n, channels, h, w, dtype=torch.float64).to(dtype)


def drawn(n: int, h: int, w: int, dtype: torch.dtype, sampling: Sampling = MIX, seed: int = 0) -> CropMixParams:
    white = 255.0 if dtype == torch.uint8 else 1.0
    return sample_crop_mix(Key(seed, 1, 0), range(n), (h, w), sampling, mean=MEAN, std=STD, white=white)


def expected(x: Tensor, params: CropMixParams, dtype: torch.dtype, channels: int = 3) -> Tensor:
    scale, bias = normaliser(MEAN[:channels], STD[:channels], x.dtype == torch.uint8)
    return crop_mix_reference(x if x.dtype == torch.uint8 else x.permute(0, 2, 3, 1), params, scale, bias, dtype)


def applied(x: Tensor, params: CropMixParams, dtype: torch.dtype, **options: object) -> Tensor:
    labels = torch.zeros(len(x), dtype=torch.int64)
    channels = params.fill.shape[1]
    return crop_mix(x, labels, params, classes=10, mean=MEAN[:channels], std=STD[:channels], dtype=dtype, **options)[0]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 5), (5, 7, 11), (6, 33, 50), (3, 16, 16)])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_equals_the_definition_to_the_bit(shape: tuple[int, int, int], kind: torch.dtype, dtype: torch.dtype) -> None:
    x, params = batch(*shape, kind), drawn(*shape, kind)
    got = applied(x, params, dtype)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, expected(x, params, dtype))


@pytest.mark.parametrize("channels", [2, 5, 13])
def test_n_channels_equal_the_definition_and_compile_nothing(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "uses_numba", mock.Mock(side_effect=AssertionError("would compile for half a minute")))
    mean, std = [0.1 * (i % 7) for i in range(channels)], [0.2 + 0.01 * i for i in range(channels)]
    for kind, white in ((torch.uint8, 255.0), (torch.float32, 1.0)):
        x = batch(6, 17, 21, kind, channels).requires_grad_(kind == torch.float32)
        params = sample_crop_mix(Key(0, 1, 0), range(6), (17, 21), MIX, mean=mean, std=std, white=white)
        got, _ = crop_mix(x, torch.zeros(6, dtype=torch.int64), params, classes=10, mean=mean, std=std)
        scale, bias = normaliser(mean, std, kind == torch.uint8)
        nhwc = x if kind == torch.uint8 else x.permute(0, 2, 3, 1)
        assert torch.equal(got, crop_mix_reference(nhwc, params, scale, bias, torch.float32))
    ahead = torch.randn_like(got)
    got.backward(ahead)
    assert x.grad is not None
    assert torch.equal(x.grad.permute(0, 2, 3, 1), adjoint_reference(ahead.permute(0, 2, 3, 1), params, scale))


def test_reference_is_what_the_words_say() -> None:
    """Pixel by pixel from the definition: view, box, blend, normalising."""
    n, h, w = 4, 5, 6
    x, params = batch(n, h, w, torch.uint8), drawn(n, h, w, torch.uint8, seed=3)
    got = expected(x, params, torch.float64)

    def view(j: int, y: int, col: int, c: int) -> float:
        y, col = y + int(params.dy[j]), col + int(params.dx[j])
        if not (0 <= y < h and 0 <= col < w):
            return float(params.fill[j, c])
        return float(x[j, y, w - 1 - col if params.flip[j] else col, c])

    share = params.own_share()
    for i in range(n):
        top, bottom, left, right = params.box[i].tolist()
        j, a = int(params.partner[i]), float(share[i])
        for y in range(h):
            for col in range(w):
                for c in range(3):
                    pasted = top <= y < bottom and left <= col < right
                    own, other = view(i, y, col, c), view(j, y, col, c)
                    value = other if pasted else a * own + (1 - a) * other
                    want = (value / 255 - MEAN[c]) / STD[c]
                    assert abs(got[i, c, y, col].item() - want) < 1e-12


@settings(max_examples=60)
@given(st.data())
def test_any_parameters(data: st.DataObject) -> None:
    """Shifts out of view, empty boxes, whole boxes, partners that repeat, blends of 0."""
    n, h, w = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))

    def rows(low: int, high: int) -> Tensor:
        return torch.tensor(data.draw(st.lists(st.integers(low, high), min_size=n, max_size=n)))

    box = torch.stack([*torch.stack([rows(0, h), rows(0, h)]).sort(0)[0]], 1)
    box = torch.cat([box, torch.stack([*torch.stack([rows(0, w), rows(0, w)]).sort(0)[0]], 1)], 1)
    dy, dx, flip, partner = rows(-h - 9, h + 9), rows(-w - 9, w + 9), rows(0, 1).bool(), rows(0, n - 1)
    params = CropMixParams(dy, dx, flip, partner, box, torch.rand(n, 3) * 255, rows(0, 2) / 2)
    x = batch(n, h, w, torch.uint8)
    assert torch.equal(applied(x, params, torch.float32), expected(x, params, torch.float32))


def test_whole_box_shows_the_partner_and_out_of_view_shows_fill() -> None:
    x = batch(2, 8, 20, torch.uint8)
    params = identity_params(2, torch.tensor([9.0, 8.0, 7.0]))
    swapped = dataclasses.replace(params, partner=torch.tensor([1, 0]), box=torch.tensor([[0, 8, 0, 20], [3, 3, 5, 9]]))
    plain = applied(x, params, torch.float32)
    assert torch.equal(applied(x, swapped, torch.float32), plain[[1, 1]])
    far = dataclasses.replace(params, dy=torch.tensor([2**40, -(2**40)]))
    scale, bias = normaliser(MEAN, STD, True)
    fill = torch.tensor([9.0, 8.0, 7.0]) * torch.tensor(scale) + torch.tensor(bias)
    assert torch.equal(applied(x, far, torch.float32), fill[None, :, None, None].expand(2, 3, 8, 20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_element_of_out_is_written(dtype: torch.dtype) -> None:
    x, params = batch(5, 37, 53, torch.uint8), drawn(5, 37, 53, torch.uint8)
    out = torch.full((5, 3, 37, 53), float("nan"), dtype=dtype).contiguous(memory_format=torch.channels_last)
    got = applied(x, params, dtype, out=out)
    assert got.data_ptr() == out.data_ptr()
    assert torch.equal(out, expected(x, params, dtype))


@pytest.mark.parametrize("stream_bytes", [0, 1 << 40])
@pytest.mark.parametrize("width", [37, 48, 2064])  # ragged rows; rows of whole blocks; more blocks than a word has bits
def test_streamed_and_cached_stores_agree_at_any_alignment(
    width: int, stream_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_memory, "STREAM_BYTES", stream_bytes)
    x, params = batch(3, 9, width, torch.uint8), drawn(3, 9, width, torch.uint8)
    memory = torch.full((x.numel() + 7,), float("nan"))
    for skip in (0, 1, 5):
        memory.fill_(float("nan"))
        out = memory[skip : skip + x.numel()].view(x.shape).permute(0, 3, 1, 2)
        applied(x, params, torch.float32, out=out)
        assert torch.equal(out, expected(x, params, torch.float32))
        assert memory[:skip].isnan().all()
        assert memory[skip + x.numel() :].isnan().all()


@pytest.mark.parametrize("stream_bytes", [0, 1 << 40])
@settings(max_examples=150)
@given(st.data())
def test_blocks_that_edges_cut(stream_bytes: int, data: st.DataObject) -> None:
    """Every way in which views and boxes begin and end within blocks of 16 pixels."""
    width = 16 * data.draw(st.integers(1, 5))
    ends = st.integers(0, width)
    shift, flip = st.integers(-width - 1, width + 1), st.booleans()
    left, right = sorted((data.draw(ends), data.draw(ends)))
    params = CropMixParams(
        torch.tensor([0, data.draw(st.integers(-2, 2))]),
        torch.tensor([data.draw(shift), data.draw(shift)]),
        torch.tensor([data.draw(flip), data.draw(flip)]),
        torch.tensor([1, 0]),
        torch.tensor([[0, 2, left, right], [0, 0, 0, 0]]),
        torch.rand(2, 3) * 255,
    )
    x = batch(2, 2, width, torch.uint8)
    out = torch.full((2, 2, width, 3), float("nan")).permute(0, 3, 1, 2)
    with mock.patch.object(cpu_memory, "STREAM_BYTES", stream_bytes):
        applied(x, params, torch.float32, out=out)
    assert torch.equal(out, expected(x, params, torch.float32))


def test_strides_channels_and_threads_change_nothing() -> None:
    whole = batch(7, 40, 44, torch.uint8)
    part = whole[:, 3:36, 5:40]
    params = drawn(7, 33, 35, torch.uint8)
    assert torch.equal(applied(part, params, torch.float32), expected(part, params, torch.float32))
    x = batch(7, 33, 35, torch.float32)
    params = drawn(7, 33, 35, torch.float32)
    for layout in (x, x.contiguous(memory_format=torch.channels_last), x.flip(0).flip(0)[:, :, :, :]):
        assert torch.equal(applied(layout, params, torch.float32), expected(x, params, torch.float32))
    one = dataclasses.replace(params, fill=params.fill[:, :1])
    assert torch.equal(applied(x[:, :1], one, torch.float32), expected(x[:, :1], one, torch.float32, 1))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(applied(x, params, torch.float32))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_nan_of_a_partner_stays_out_of_samples_that_do_not_mix() -> None:
    x = batch(2, 6, 18, torch.float32)
    x[1] = float("nan")
    params = dataclasses.replace(identity_params(2, torch.zeros(3)), partner=torch.tensor([1, 0]))
    got = applied(x, params, torch.bfloat16)
    assert got[0].isfinite().all()
    assert got[1].isnan().all()


# ---- gradients ----


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 11), (4, 33, 50)])
def test_gradient_is_that_of_the_definition(kind: torch.dtype, shape: tuple[int, int, int]) -> None:
    x, params = batch(*shape, kind).requires_grad_(), drawn(*shape, kind)
    want, got = expected(x, params, kind), applied(x, params, kind)
    g = torch.randn_like(want)
    a, b = (torch.autograd.grad(y, x, g)[0] for y in (want, got))
    torch.testing.assert_close(b, a, rtol=4 * torch.finfo(kind).eps, atol=0)


def test_gradient_with_partners_that_repeat() -> None:
    params = dataclasses.replace(drawn(6, 9, 21, torch.float32), partner=torch.tensor([2, 2, 2, 0, 0, 5]))
    x = batch(6, 9, 21, torch.float32).requires_grad_()
    want, got = expected(x, params, torch.float32), applied(x, params, torch.float32)
    g = torch.randn_like(want)
    a, b = (torch.autograd.grad(y, x, g)[0] for y in (want, got))
    torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)


def operands(kind: torch.dtype, n: int = 3, h: int = 2, w: int = 3) -> tuple[Tensor, ...]:
    params = drawn(n, h, w, kind)
    x = batch(n, h, w, kind)
    return x.permute(0, 2, 3, 1), *params.packed(h, w, compute_dtype(kind))


def test_first_and_second_derivatives_by_differences() -> None:
    x, geometry, colour = operands(torch.float64)
    scale, bias = normaliser(MEAN, STD, False)

    def op(t: Tensor) -> Tensor:
        return crop_mix_op(t, geometry, colour, scale, bias, torch.float64)

    x = x.contiguous().requires_grad_()
    assert torch.autograd.gradcheck(op, x)
    assert torch.autograd.gradgradcheck(op, x)
    params = drawn(3, 2, 3, torch.float64)
    g = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    want = torch.autograd.grad(crop_mix_reference(x, params, scale, bias, torch.float64).permute(0, 2, 3, 1), x, g)
    torch.testing.assert_close(adjoint_reference(g, params, scale), want[0])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own tensors
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64])
def test_registration(kind: torch.dtype) -> None:
    x, geometry, colour = operands(kind)
    scale, bias = normaliser(MEAN, STD, kind == torch.uint8)
    x = batch(3, 2, 3, kind) if kind == torch.uint8 else x.contiguous().requires_grad_()
    dtype = torch.float32 if kind == torch.uint8 else kind
    torch.library.opcheck(crop_mix_op, (x, geometry, colour, scale, bias, dtype))
    g = torch.rand(3, 2, 3, 3, dtype=dtype, requires_grad=True)
    torch.library.opcheck(crop_mix_adjoint, (g, geometry, colour, scale, dtype))


def test_compiles_as_one_graph() -> None:
    x, params = batch(4, 8, 18, torch.float32), drawn(4, 8, 18, torch.float32)
    labels = torch.arange(4)

    def step(images: Tensor) -> Tensor:
        mixed, target = crop_mix(images, labels, params, classes=10, mean=MEAN, std=STD)
        return (mixed.mean((1, 2, 3)) * target.mass.sum(1) * target.weight).sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    a, b = (t.clone().requires_grad_() for t in (x, x))
    step(a).backward()
    compiled(b).backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_draws_inside_of_compiled_code_are_those_outside() -> None:
    x, labels = batch(4, 8, 18, torch.uint8), torch.arange(4)

    def step(images: Tensor, epoch: int) -> Tensor:
        params = sample_crop_mix(Key(0, epoch, 0), range(4), (8, 18), MIX, mean=MEAN, std=STD)
        mixed, target = crop_mix(images, labels, params, classes=10, mean=MEAN, std=STD)
        return mixed.sum((1, 2, 3)) * target.mass.sum(1) * target.weight

    compiled = torch.compile(step, backend="aot_eager")
    for epoch in (1, 2):
        torch.testing.assert_close(compiled(x, epoch), step(x, epoch))


# ---- bad input ----


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize(("kind", "white"), [(torch.float32, 255.0), (torch.uint8, 1.0)])
def test_a_fill_for_images_of_another_white_is_refused(kind: torch.dtype, white: float, compiles: bool) -> None:
    params = sample_crop_mix(Key(0, 1, 0), range(4), (6, 8), MIX, mean=MEAN, std=STD, white=white)
    call = torch.compile(applied, backend="eager") if compiles else applied
    with pytest.raises(ValueError, match=rf"white is {white:g}.*white={256 - white:g}"):
        call(batch(4, 6, 8, kind), params, torch.float32)
    written = dataclasses.replace(params, white=None)  # parameters by hand say nothing of it
    assert len(applied(batch(4, 6, 8, kind), written, torch.float32)) == 4


def test_bad_input_names_argument_value_and_remedy() -> None:
    x, params = batch(4, 6, 8, torch.uint8), drawn(4, 6, 8, torch.uint8)
    labels = torch.arange(4)
    box = params.box.clone()
    box[2] = torch.tensor([0, 7, 0, 1])

    def refused(match: str, images: Tensor = x, labels: Tensor = labels, **change: object) -> None:
        options: dict[str, object] = {"classes": 10, "mean": MEAN, "std": STD}
        options |= {k: change.pop(k) for k in list(change) if k not in CropMixParams.__dataclass_fields__}
        with pytest.raises(ValueError, match=match):
            crop_mix(images, labels, dataclasses.replace(params, **change), **options)  # type: ignore[arg-type]

    refused(r"partner\[0\] = 4 is outside \[0, 4\)", partner=torch.tensor([4, 0, 1, 2]))
    refused(r"box\[2\] = \[0, 7, 0, 1\].*6 x 8", box=box)
    box[2] = torch.tensor([0, 6, 5, 3])
    refused(r"box\[2\] = \[0, 6, 5, 3\].*turned over", box=box)
    refused(r"params.dy must have shape \(4,\)", dy=params.dy[:3])
    refused("params.dx must be torch.int64", dx=params.dx.float())
    refused(r"params.blend must be in \[0, 1\]", blend=torch.full((4,), 1.5))
    refused("blend and fill are constants", fill=params.fill.clone().requires_grad_())
    refused("at least 2 classes, found 1", classes=1)
    refused("label 10", labels=torch.tensor([0, 10, 1, 2]))
    refused(r"labels must be integers \[4\]", labels=labels.float())
    refused("images must be uint8", images=x[0])
    refused("mean has 3 values", images=x.permute(0, 3, 1, 2))
    refused("std must have 3", std=(1.0,))
    refused("std must be > 0", std=(1.0, 0.0, 1.0))
    refused("dtype must be a floating type", dtype=torch.int8)
    refused("out must be", out=torch.empty(4, 3, 6, 8))
    refused("'other' class", soften=Soften(other=True))
    f, out = batch(4, 6, 8, torch.float32).requires_grad_(), torch.empty(4, 6, 8, 3).permute(0, 3, 1, 2)
    with pytest.raises(ValueError, match="images require a gradient"):
        applied(f, drawn(4, 6, 8, torch.float32), torch.float32, out=out)


def test_empty_batch() -> None:
    x, params = batch(0, 6, 8, torch.uint8), drawn(0, 6, 8, torch.uint8)
    assert applied(x, params, torch.float32).shape == (0, 3, 6, 8)


WITHOUT_NUMBA = """
import dataclasses, sys, warnings
sys.modules["numba"] = None
import torch
from fastaug.ops.crop_mix import Sampling, cpu, crop_mix, sample_crop_mix
from fastaug.ops.crop_mix.custom_op import formulation
from fastaug.ops.crop_mix.reference import crop_mix_reference, normaliser
from fastaug.seeding import Key

mean, std, n, h, w = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 24, 9, 14
sampling = Sampling(sigma=0.5, cutmix=1.0, mixup=0.8, mixup_mode="elem", fill="random")
params = sample_crop_mix(Key(0, 1, 0), range(n), (h, w), sampling, mean=mean, std=std)
params = dataclasses.replace(params, partner=params.partner // 2, white=None)
bytes_ = torch.randint(0, 256, (n, h, w, 3), dtype=torch.uint8)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for x, dtype in ((bytes_, torch.float32), (bytes_, torch.bfloat16), (bytes_ / 255, torch.float32)):
        given = x if x.dtype == torch.uint8 else x.permute(0, 3, 1, 2).contiguous()
        got, target = crop_mix(given, torch.arange(n), params, classes=n, mean=mean, std=std, dtype=dtype)
        scale, bias = normaliser(mean, std, x.dtype == torch.uint8)
        assert torch.equal(got, crop_mix_reference(x, params, scale, bias, dtype))
        assert (target.mass.sum(1) < 1).any()
assert [str(w.message)[:26] for w in told] == ["numba is not installed: cr"], told
assert formulation(torch.device("cpu")) == "cpu"
assert not cpu.uses_numba(torch.float32)
"""


@pytest.mark.slow
def test_slices_do_without_numba_and_say_so_once() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert cpu.uses_numba(torch.float32)
    assert not cpu.uses_numba(torch.float64)


def test_each_kind_of_device_has_its_code() -> None:
    chosen = {name: formulation(torch.device(name)) for name in ("cuda", "cpu", "meta")}
    assert chosen == {"cuda": "triton", "cpu": "cpu", "meta": "reference"}
