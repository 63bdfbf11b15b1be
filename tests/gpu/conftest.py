"""Every check runs on the CPU, so that it cannot rot, and with `-m gpu` on a CUDA device."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.console import Console
from fastaug.distributed import choose_kernels
from fastaug.recipe.reading import read_recipe
from fastaug.training.build import Trainer, assemble
from fastaug.training.run_folder import RunFolder

MakeTrainer = Callable[..., Trainer]

RECIPE = """
data: {img_size: 32, threads: 1, test_fraction: 0.25, synthetic_classes: 10, synthetic_images: 64}
model: {name: test_resnet}
optim: {opt: sgd, lr: 0.05, momentum: 0.9}
train: {epochs: 4, batch_size: 8}
"""


@pytest.fixture
def cuda() -> torch.device:
    """The CUDA device."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is visible")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a CUDA device with -m gpu."""
    if request.param == "cpu":
        return torch.device("cpu")
    found: torch.device = request.getfixturevalue("cuda")
    return found


@pytest.fixture
def make_trainer(tmp_path: Path) -> Iterator[MakeTrainer]:
    """make_trainer(device, "key.path=value", ...): a trainer of a small recipe on that device, at step 0."""
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)

    def make(device: torch.device, *words: str) -> Trainer:
        forget()
        recipe = read_recipe(file, [f"run.dir={tmp_path / 'run'}", *words])
        if device.type == "cuda":
            choose_kernels(recipe)
        accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=recipe.train.precision)
        return assemble(recipe, accelerator, RunFolder(tmp_path / "run"), Console(False))

    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    yield make
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision(products)
    forget()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def forget() -> None:
    """Accelerate keeps one device per process; makes the next accelerator choose anew."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
