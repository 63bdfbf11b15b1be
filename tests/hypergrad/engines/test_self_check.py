"""The start-up self-test: choice, reasons and errors on networks that engines fail on."""

from dataclasses import replace
from functools import partial

import pytest
import tiny_nets as nets
import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fastaug.hypergrad import written_out
from fastaug.hypergrad.engines.self_check import self_test
from fastaug.hypergrad.problem import Samples
from fastaug.targets import SoftTarget

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")


class Cube(Function):
    """No forward mode, but differentiable twice in reverse mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class CubeOnce(Cube):
    """The same, once."""

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return Cube.backward(ctx, g)


class CubeWrong(Cube):
    """Differentiable twice, but as if the saved input were a constant."""

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * g


class CubeWrongForward(Cube):
    """Right in reverse, wrong in forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_forward(x)
        return Cube.forward(ctx, x)

    @staticmethod
    def jvp(_, t):
        return t


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


def cubic(function):
    inputs = 3 * nets.SIDE**2
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 8), Apply(function), nn.Linear(8, nets.CLASSES))


def problem(network, autocast=None):
    """In float32, as training would have it."""
    target = nets.target(12)
    target = SoftTarget(target.classes, target.mass.float(), target.weight.float())
    made = nets.problem(network.float().train(), Samples(nets.images(12).float(), target))
    return made if autocast is None else replace(made, autocast=autocast)


def run(network, images=True, **kwargs):
    lines = []
    return self_test(problem(network, **kwargs), images=images, say=lines.append), "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "images", "chosen"),
    [
        ("batch_norm", True, "forward"),
        ("dropout", True, "forward"),
        ("attention", True, "forward"),
        ("group_norm", True, "functional"),
        ("group_norm", False, "forward"),
    ],
)
def test_the_first_exact_engine_is_chosen_and_the_table_said(name, images, chosen):
    result, text = run(nets.build(name), images)
    assert result.chosen == chosen
    assert result.reference == "reverse in float64"
    assert "on 8 samples" in text
    assert f"chosen: {chosen}" in text
    rows = {trial.engine: trial for trial in result.trials}
    assert list(rows) == ["forward", "functional", "reverse", "difference"]
    assert set(rows[chosen].errors) == {"mass", "weight"} | ({"images"} if images else set())
    assert rows[chosen].seconds > 0
    assert rows["difference"].exact != images
    if chosen == "functional":
        assert "native_group_norm_backward" in rows["forward"].reason
        assert "native_group_norm_backward" in text


def test_gates_by_hardsigmoid_have_every_exact_engine():
    """torch differentiates its backward kernel in neither mode; MobileNetV3 is full of it."""
    gated = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardsigmoid(), nn.Flatten(), nn.LazyLinear(nets.CLASSES))
    gated(torch.zeros(2, 3, nets.SIDE, nets.SIDE))
    result, _ = run(gated)
    assert result.chosen == "forward"
    assert [trial.exact for trial in result.trials] == [True, True, True, False]
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(written_out.hardsigmoid(x), nn.functional.hardsigmoid(x))


def test_double_backward_is_the_last_exact_resort():
    result, text = run(cubic(Cube))
    assert result.chosen == "reverse"
    assert "jvp" in text  # why not the others


def test_a_wrong_engine_is_seen():
    result, text = run(cubic(CubeWrongForward), images=False)
    assert result.chosen == "reverse"
    assert "WRONG" in text


def test_differences_only_without_images():
    result, text = run(cubic(CubeOnce), images=False)
    assert result.chosen == "difference"
    assert result.reference == "difference in float64"
    assert text.count("WRONG") == 1  # reverse: torch takes the function for a constant
    with pytest.raises(ValueError, match="Function in this network has a wrong second derivative") as caught:
        run(cubic(CubeOnce))
    assert "learn weights, labels and probabilities only" in str(caught.value)


def test_a_wrong_second_derivative_is_found_where_it_matters():
    assert run(cubic(CubeWrong), images=False)[0].chosen == "reverse"
    with pytest.raises(ValueError, match="Function in this network has a wrong second derivative"):
        run(cubic(CubeWrong))


def test_the_comparison_is_in_float32_even_under_autocast():
    result, _ = run(nets.build("batch_norm"), autocast=partial(torch.autocast, "cpu", torch.bfloat16))
    assert max(result.trials[0].errors.values()) < 1e-4


def test_nothing_is_left_behind():
    made = problem(nets.build("dropout"))
    before = {name: t.clone() for name, t in made.network.state_dict().items()}
    generator = torch.get_rng_state()
    self_test(made, images=True, say=lambda _: None)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(t, before[name]) for name, t in made.network.state_dict().items())
    assert all(w.grad is None and w.dtype == torch.float32 for w in made.network.parameters())


def test_images_of_one_colour_do_not_make_a_network_look_wrong():
    """Maxima are tied there, and pulled apart by any step: the derivative jumps."""
    given = problem(nets.build("batch_norm"))
    images = torch.zeros_like(given.samples.images)
    images[:, :, 4:7, 4:7] = given.samples.images[:, :, 4:7, 4:7]
    flat = replace(given, samples=given.samples._replace(images=images))
    assert self_test(flat, images=True, say=lambda _: None).chosen == "forward"
