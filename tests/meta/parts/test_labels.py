"""Learned soft labels: where they start, their hypergradient, and that a label of many classes can be mended."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

from fastaug.augment.learned_effects import View
from fastaug.hypergrad import hypergradient
from fastaug.hypergrad.problem import Problem, Samples
from fastaug.losses import soft_cross_entropy
from fastaug.meta.learned_part import Setting
from fastaug.meta.parameters import LearnedParts, build_parts
from fastaug.recipe.schema import Meta, Recipe
from fastaug.targets import SoftTarget, hard_target, mixed_target

IDS = torch.arange(6)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tiny tensors: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(classes=10, labels=IDS, learn=("labels",), **keys):
    recipe = Recipe(meta=Meta(learn=list(learn), **keys))
    setting = Setting(recipe, len(labels), classes, None, torch.device("cpu"), labels=labels)
    return build_parts(setting)


def table_of(*args, **keys):
    return build(*args, **keys).tables()["labels"]


@pytest.mark.parametrize(("classes", "few"), [(10, None), (10, 4), (1000, None)])
def test_labels_start_as_label_smoothing(classes, few):
    table = table_of(classes, labels=IDS + 3, labels_classes=few)
    rows = torch.softmax(table.rows(IDS), 1)
    smooth = 0.95 * torch.eye(classes)[IDS + 3] + 0.05 / classes
    torch.testing.assert_close(rows.detach(), smooth, rtol=1e-4, atol=1e-7)
    label, probability = table.likeliest(IDS)
    assert label.tolist() == (IDS + 3).tolist()
    torch.testing.assert_close(probability, smooth.max(1).values, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("learn", "most"), [("weights", 16), ("labels", 256)])
def test_bytes_of_an_image_among_1000_classes(learn, most):
    part = build(1000, learn=[learn], table_optimizer="rmsprop")
    rows = [value for value in part.buffers() if value.ndim and len(value) == len(IDS)]
    assert sum(value.numel() * value.element_size() for value in rows) / len(IDS) <= most


def mixed_view(rows, partner):
    params = type("Params", (), {"partner": partner})()
    return View(None, params, None, rows)


@pytest.mark.parametrize("few", [None, 3])
def test_the_hypergradient_is_that_of_differences_of_the_update(few):
    """Weights and labels of a mixed batch, in float64: d/dphi L_val(w - lr grad L(w; phi))."""
    torch.manual_seed(0)
    n, classes, rate = len(IDS), 5, 0.3
    learned = build(classes, IDS % classes, ("weights", "labels"), labels_classes=few, weights_form="softplus").double()
    for table in learned.tables().values():
        for buffer in table.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    network, images = torch.nn.Linear(4, classes).double(), torch.randn(n, 4, dtype=torch.float64)
    weights = {name: p.detach() for name, p in network.named_parameters()}
    held_out, truth = torch.randn(7, 4, dtype=torch.float64), hard_target(torch.arange(7) % classes)
    partner, share = torch.tensor([3, 0, 5, 1, 2, 4]), torch.rand(n, dtype=torch.float64)

    def target(rows):
        pair = torch.stack([IDS, partner], 1) % classes
        mixed = mixed_target(pair, torch.stack([share, 1 - share], 1) * 0.9, torch.ones(n, 2, dtype=torch.float64))
        return learned.target(mixed, mixed_view(rows, partner))

    def loss(logits, target):
        return soft_cross_entropy(logits, target, "none")

    def validation(rows):
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        trained = loss(functional_call(network, leaves, (images,)), target(rows)).sum() / n
        slopes = torch.autograd.grad(trained, list(leaves.values()))
        after = {name: w - rate * g for (name, w), g in zip(weights.items(), slopes, strict=True)}
        after = {name: w.detach().requires_grad_() for name, w in after.items()}
        return loss(functional_call(network, after, (held_out,)), truth).mean(), after

    rows = learned.rows(IDS)
    value, after = validation(rows)
    v = dict(zip(after, torch.autograd.grad(value, list(after.values())), strict=True))
    problem = Problem(network, weights, Samples(images, target(rows)), loss, n)
    found = hypergradient(problem, {name: -rate * g for name, g in v.items()}, rows, "forward")
    step = 1e-5
    for name, row in rows.items():
        slopes = torch.zeros_like(row)
        for place in np.ndindex(row.shape):
            moved = torch.zeros_like(row)
            moved[place] = step
            ends = [validation(rows | {name: row.detach() + sign * moved})[0].item() for sign in (1, -1)]
            slopes[place] = (ends[0] - ends[1]) / (2 * step)
        assert slopes.abs().max() > 1e-5
        torch.testing.assert_close(found[name], slopes, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["normalised", "rmsprop"])
@pytest.mark.parametrize(("classes", "few"), [(10, None), (300, None)])
def test_a_wrong_label_is_mended_to_any_class_and_a_right_one_stays(classes, few, optimizer):
    """Cotangents that want the true class more than the others in the mean, under noise of their own size."""
    generator, images = torch.Generator().manual_seed(0), 100
    true = torch.arange(images) * 7 % classes
    given = true.clone()
    given[:40] = (true[:40] + 1 + torch.arange(40) * 3) % classes
    wrong = given != true
    rate = 0.3 if optimizer == "normalised" else 0.05
    table = table_of(classes, given, table_optimizer=optimizer, labels_lr=rate, labels_classes=few)
    for _ in range(60):
        for ids in torch.arange(images).split(50):
            logits = table.rows(ids)
            wish = -3 * torch.eye(classes)[true[ids]] + torch.randn(len(ids), classes, generator=generator)
            (torch.softmax(logits, 1) * wish).sum().backward()
            table.move(ids, 1e-4 * logits.grad)
    right = table.likeliest(torch.arange(images))[0] == true
    assert right[wrong].float().mean() > 0.9
    assert right[~wrong].float().mean() > 0.98


def test_two_parts_act_together_and_say_what_they_made():
    learned = build(4, IDS % 4, ("weights", "labels"))
    assert isinstance(learned, LearnedParts)
    with torch.no_grad():
        learned.tables()["labels"].weight[0] = torch.tensor([0.0, 0.0, 9.0, 0.0])
        learned.tables()["weights"].weight[1] = 0.5
    rows = {name: row.detach() for name, row in learned.rows(IDS).items()}
    target = learned.target(hard_target(IDS % 4), mixed_view(rows, IDS.flip(0)))
    assert isinstance(target, SoftTarget)
    assert target.weight.tolist() == [1, 0.5, 1, 1, 1, 1]
    assert target.rows.shape == (6, 2, 4)
    torch.testing.assert_close(target.rows[:, 1], target.rows[:, 0].flip(0))
    figures = learned.per_sample()
    assert figures["learned_label"].tolist() == [2, 1, 2, 3, 0, 1]
    assert learned.summaries()["labels"]["label_changed"] == pytest.approx(1 / 6)
    learned.tables()["labels"].weight[:4] = torch.tensor([0.0, 0.0, 9.0, 0.0])
    (alarm,) = learned.each()["labels"].alarms(learned.summaries()["labels"])
    assert "50% of the training images" in alarm
