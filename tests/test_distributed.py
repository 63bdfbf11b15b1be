"""What building the accelerator sets for the whole process."""

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.distributed import build_accelerator, choose_kernels
from fastaug.recipe.schema import Recipe, Train

Flags = tuple[bool, bool, str]


def flags() -> Flags:
    cudnn = torch.backends.cudnn
    return cudnn.benchmark, cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture(autouse=True)
def before() -> Iterator[Flags]:
    """The flags as they were, put back in the end; no accelerator is left behind."""
    found = flags()
    yield found
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = found[:2]
    torch.set_float32_matmul_precision(found[2])
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.mark.parametrize("benchmark", [True, False])
@pytest.mark.parametrize("tf32", [True, False])
def test_kernels_are_chosen_as_the_recipe_says(benchmark: bool, tf32: bool) -> None:
    choose_kernels(Recipe(train=Train(cudnn_benchmark=benchmark, tf32=tf32)))
    assert flags() == (benchmark, tf32, "high" if tf32 else "highest")


def test_both_are_on_by_default_and_touch_nothing_without_a_gpu(before: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe()
    assert (recipe.train.cudnn_benchmark, recipe.train.tf32) == (True, True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    build_accelerator(recipe)
    assert flags() == before
