from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from fastaug.nets.model import build_model
from fastaug.recipe.schema import Distill, Model, Recipe
from fastaug.training.distillation import Teacher, build_teacher


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    images, logits = torch.randn(5, 3, 2, 2, generator=draw), torch.randn(5, 3, generator=draw)
    return images, logits.requires_grad_()


def test_it_is_the_weighted_sum_with_the_divergence_in_soft_targets(network: nn.Module) -> None:
    images, logits = batch()
    found = Teacher(network, Distill(weight=0.3, temperature=4.0)).joined(torch.tensor(7.0), images, logits, 5)
    taught, own = (network(images) / 4).softmax(-1), (logits / 4).softmax(-1)
    expected = 0.7 * 7 + 0.3 * 16 * (taught * (taught / own).log()).sum()
    torch.testing.assert_close(found, expected)
    found.backward()
    torch.testing.assert_close(logits.grad, 0.3 * 4 * (own - taught).detach(), rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_blank_images_are_not_taught(network: nn.Module) -> None:
    images, logits = batch()
    teacher = Teacher(network, Distill(weight=1.0))
    found = teacher.joined(torch.zeros(()), images, logits, 3)
    torch.testing.assert_close(found, teacher.joined(torch.zeros(()), images[:3], logits[:3], 3))
    found.backward()
    assert logits.grad is not None
    assert not logits.grad[3:].any()


def test_a_student_that_agrees_has_nothing_to_learn(network: nn.Module) -> None:
    images, _ = batch()
    found = Teacher(network, Distill(weight=1.0, temperature=2.0)).joined(torch.zeros(()), images, network(images), 5)
    assert abs(float(found.detach())) < 1e-5


def test_the_teacher_sees_its_own_normalisation(network: nn.Module) -> None:
    images, logits = batch()
    factor, offset = (torch.randn(1, 3, 1, 1) for _ in range(2))
    found = Teacher(network, Distill(weight=1.0), (factor, offset)).joined(torch.zeros(()), images, logits, 5)
    taught = network(images * factor + offset).log_softmax(-1)
    torch.testing.assert_close(found, F.kl_div(logits.log_softmax(-1), taught, log_target=True, reduction="sum"))


def test_a_teacher_trained_with_a_small_stem_keeps_it(tmp_path: Path) -> None:
    weights = build_model(Model(name="test_resnet", stem="small"), 3).state_dict()
    torch.save(weights, tmp_path / "teacher.pth")
    distill = Distill(teacher="test_resnet", checkpoint=str(tmp_path / "teacher.pth"))
    teacher = build_teacher(Recipe(distill=distill), 3, Accelerator(cpu=True), lambda _: None)
    assert teacher is not None
    assert all(torch.equal(value, weights[name]) for name, value in teacher._network.state_dict().items())
