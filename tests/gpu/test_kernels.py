"""The fused op on a device against its definition on the CPU: values, adjoint, second derivative, fills."""

import pytest
import torch
from torch import Tensor

from fastaug.ops.crop_mix import CropMixParams, Sampling, crop_mix, sample_crop_mix
from fastaug.ops.crop_mix.noise_fill import uncovered
from fastaug.ops.crop_mix.reference import adjoint_reference, compute_dtype, crop_mix_reference, normaliser
from fastaug.seeding import Key

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
MIX = Sampling(sigma=0.4, cutmix=1.0, mixup=0.8, mixup_mode="elem", fill="random")
ON_CPU = [("cpu", (5, 7, 11))]  # tests/ops has the others
ON_GPU = [
    pytest.param("cuda", shape, marks=pytest.mark.gpu)
    for shape in [(1, 1, 1), (1, 9, 5), (5, 7, 11), (6, 33, 50), (4, 224, 224)]
]


def name(dtype: torch.dtype) -> str:
    """Of a type, in the names of tests."""
    return str(dtype).removeprefix("torch.")


def drawn(n: int, h: int, w: int, kind: torch.dtype, sampling: Sampling = MIX) -> tuple[Tensor, CropMixParams]:
    """A batch and parameters for it, on the CPU."""
    params = sample_crop_mix(
        Key(0, 1, 0), range(n), (h, w), sampling, mean=MEAN, std=STD, white=255.0 if kind == torch.uint8 else 1.0
    )
    if kind == torch.uint8:
        return torch.randint(0, 256, (n, h, w, 3), dtype=kind), params
    return torch.rand(n, 3, h, w, dtype=torch.float64).to(kind), params


def applied(x: Tensor, params: CropMixParams, dtype: torch.dtype, **options: Tensor) -> Tensor:
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return crop_mix(x, labels, params, classes=10, mean=MEAN, std=STD, dtype=dtype, **options)[0]


@pytest.mark.parametrize(("device", "shape"), ON_CPU + ON_GPU, indirect=["device"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=name)
def test_forward(device: torch.device, shape: tuple[int, int, int], kind: torch.dtype, dtype: torch.dtype) -> None:
    x, params = drawn(*shape, kind)
    scale, bias = normaliser(MEAN, STD, kind == torch.uint8)
    nhwc = x if kind == torch.uint8 else x.permute(0, 2, 3, 1)
    want = crop_mix_reference(nhwc, params, scale, bias, dtype)
    out = torch.full((*shape, 3), float("nan"), dtype=dtype, device=device).permute(0, 3, 1, 2)
    for got in (applied(x.to(device), params, dtype), applied(x.to(device), params, dtype, out=out)):
        assert got.device.type == device.type
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize(("device", "shape"), ON_CPU + ON_GPU, indirect=["device"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=name)
def test_adjoint(device: torch.device, shape: tuple[int, int, int], kind: torch.dtype, dtype: torch.dtype) -> None:
    x, params = drawn(*shape, kind)
    gradient = torch.randn((shape[0], 3, *shape[1:]), dtype=torch.float64).to(dtype)
    leaf = x.to(device).requires_grad_()
    applied(leaf, params, dtype).backward(gradient.to(device))
    scale, _ = normaliser(MEAN, STD, False)
    exact = gradient.to(compute_dtype(kind, dtype)).permute(0, 2, 3, 1)
    want = adjoint_reference(exact, params, scale).permute(0, 3, 1, 2).to(kind)
    assert leaf.grad is not None
    eps = torch.finfo(kind).eps
    torch.testing.assert_close(leaf.grad.cpu(), want, rtol=4 * eps, atol=4 * eps)


def test_second_derivative(device: torch.device) -> None:
    x, params = drawn(4, 7, 9, torch.float64)
    leaf = x.to(device).requires_grad_()
    direction = torch.randn_like(leaf)
    (first,) = torch.autograd.grad(applied(leaf, params, torch.float64).pow(3).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad((first * direction).sum(), leaf)
    step = 1e-5 * direction

    def slope(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(applied(at, params, torch.float64).pow(3).sum(), at)[0]

    difference = (slope(leaf + step) - slope(leaf - step)) / 2e-5
    torch.testing.assert_close(second, difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fill", ["mean", "constant", "random"])
def test_fills(device: torch.device, fill: str) -> None:
    x, params = drawn(5, 12, 17, torch.uint8, Sampling(sigma=0.6, fill=fill))  # type: ignore[arg-type]
    assert torch.equal(applied(x.to(device), params, torch.float32).cpu(), applied(x, params, torch.float32))


def test_noise_is_standard_normal_and_a_sample_s_own(device: torch.device) -> None:
    x, params = drawn(6, 64, 64, torch.uint8, Sampling(sigma=0.6, fill="noise"))
    x = x.to(device)
    out, again = applied(x, params, torch.float32), applied(x, params, torch.float32)
    assert torch.equal(out, again)
    noise = out.permute(0, 2, 3, 1)[uncovered(params.to(device), 64, 64)]
    assert len(noise) > 1000
    assert abs(noise.mean().item()) < 0.05
    assert abs(noise.std().item() - 1) < 0.05


@pytest.mark.gpu
def test_compiled(cuda: torch.device) -> None:
    x, params = drawn(4, 33, 50, torch.uint8)
    want, got = applied(x, params, torch.float32), torch.compile(applied)(x.to(cuda), params, torch.float32)
    torch.testing.assert_close(got.cpu(), want, rtol=1e-6, atol=1e-6)
