"""The learned part `sample_policy`: its hypergradient, its table, which row acts on which image, what is taken away."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fastaug.augment import gated_affine
from fastaug.augment.gated_affine import COUNT, NUMBERS
from fastaug.augment.pipeline import BatchAugment
from fastaug.batch import Batch
from fastaug.hypergrad import hypergradient
from fastaug.hypergrad.engines.implicit import implicit_direction
from fastaug.hypergrad.problem import Problem, Samples
from fastaug.losses import soft_cross_entropy
from fastaug.meta.learned_part import Setting
from fastaug.meta.parts.sample_policy import SamplePolicy
from fastaug.recipe.schema import Augment, Data, Meta, Recipe
from fastaug.seeding import Key, Stream
from fastaug.targets import hard_target

SIDE, N, CLASSES, LR = 12, 16, 3, 0.3
KEY = Key(0, 0, Stream.LEARNED)
BOTH = pytest.mark.parametrize("kind", ["shared", "each"])


def build(kind, trained=None, **keys):
    meta = Meta(learn=["sample_policy"], sample_policy=kind, **keys)
    recipe = Recipe(data=Data(img_size=SIDE), augment=Augment(hflip=0.0), meta=meta)
    optimizer = SimpleNamespace(param_groups=[{}])
    return SamplePolicy(Setting(recipe, N, CLASSES, optimizer, torch.device("cpu"), trained))


def moved(part, scale=1.0):
    """The part with numbers that are nowhere special, every image's its own where each has its own."""
    values = part.numbers if part.table is None else part.table.weight
    with torch.no_grad():
        values += scale * torch.randn(values.shape, generator=torch.Generator().manual_seed(2), dtype=values.dtype)
    return part


def pictures(seed):
    small = torch.rand(N, 3, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.1 + 0.8 * nn.functional.interpolate(small, (SIDE, SIDE), mode="bilinear")


def batch():
    ids = torch.arange(N)
    return Batch((pictures(0) * 255).round().byte().permute(0, 2, 3, 1), ids % CLASSES, ids, ids)


def losses(logits, target):
    return soft_cross_entropy(logits, target, "none")


# ---- the hypergradient ----


class OneStep:
    """One step of gradient descent in float64 on augmented images, and the validation loss behind it."""

    def __init__(self, part):
        self.part, self.images = part.double(), pictures(0)
        torch.manual_seed(1)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 10), nn.Tanh(), nn.Linear(10, CLASSES))
        self.network = network.double()
        self.weights = {name: p.detach() for name, p in self.network.named_parameters()}
        self.target = hard_target(torch.arange(N) % CLASSES, torch.ones(N, dtype=torch.float64))
        self.row = part.numbers if part.table is None else part.table.rows(torch.arange(N))

    def augmented(self):
        rows = {} if self.part.table is None else {"sample_policy": self.row}
        view = SimpleNamespace(key=KEY, batch=SimpleNamespace(draws=torch.arange(N)), rows=rows)
        return self.part.images(self.images, view)

    def relaxed(self, row):
        """As `augmented`, the gates of now moving along their relaxed slope: what straight-through differentiates."""
        noise = gated_affine.noise(KEY, range(N), torch.float64)
        now, logits = (values.expand(N, -1)[:, :COUNT] + noise.gate for values in (self.row.detach(), row))
        gates = (now > 0) * (1 + (logits.sigmoid() - now.sigmoid()))
        reach = row.new_tensor([operation.reach[0] for operation in gated_affine.OPERATIONS])
        amounts = gates * gated_affine.magnitudes(row) * noise.amount * reach
        return gated_affine.apply(self.images, gated_affine.Drawn(amounts, now > 0))

    def after(self, images):
        """The weights after the step."""
        weights = {name: w.clone().requires_grad_() for name, w in self.weights.items()}
        loss = losses(functional_call(self.network, weights, (images,)), self.target).sum() / N
        slopes = torch.autograd.grad(loss, list(weights.values()))
        return {name: (w - LR * g).detach() for (name, w), g in zip(weights.items(), slopes, strict=True)}

    def validation(self, weights):
        return losses(functional_call(self.network, weights, (pictures(5),)), self.target).mean()

    def problem(self):
        return Problem(self.network, self.weights, Samples(self.augmented(), self.target), losses, N)

    def v(self):
        after = {name: w.requires_grad_() for name, w in self.after(self.augmented().detach()).items()}
        slopes = torch.autograd.grad(self.validation(after), list(after.values()))
        return dict(zip(after, slopes, strict=True))


def difference(step, way, size=1e-5):
    """The validation loss after the step, differentiated along `way` by finite differences."""
    row = step.row.detach()
    ends = [step.validation(step.after(step.relaxed(row + sign * size * way))).item() for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * size)


@BOTH
def test_the_hypergradient_is_that_of_finite_differences(kind):
    step = OneStep(moved(build(kind)))
    assert torch.equal(step.relaxed(step.row), step.augmented())
    u = {name: -LR * g for name, g in step.v().items()}
    ways = []
    for half in (slice(0, COUNT), slice(COUNT, None)):  # probabilities, magnitudes; an image's own where it has its own
        way = torch.zeros_like(step.row)
        way[..., half] = torch.randn(way[..., half].shape, generator=torch.Generator().manual_seed(3), dtype=way.dtype)
        ways += [way] if kind == "shared" else [way, way * (torch.arange(N)[:, None] == 2)]
    expected = [difference(step, way) for way in ways]
    assert all(expected)
    for engine in ("forward", "functional", "reverse"):
        found = hypergradient(step.problem(), u, {"row": step.row}, engine)["row"]
        assert [(found * way).sum().item() for way in ways] == pytest.approx(expected, rel=1e-5), engine


@BOTH
def test_the_implicit_direction_reaches_the_numbers(kind):
    step = OneStep(moved(build(kind)))
    u = implicit_direction(step.problem(), step.v(), alpha=0.1, terms=5)
    found = hypergradient(step.problem(), u, {"row": step.row}, "forward")["row"]
    weights = {name: w.clone().requires_grad_() for name, w in step.weights.items()}
    row = step.row.detach().requires_grad_()
    loss = losses(functional_call(step.network, weights, (step.relaxed(row),)), step.target).sum() / N
    slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    inner = sum((g * u[name]).sum() for name, g in zip(weights, slopes, strict=True) if name in u)
    (expected,) = torch.autograd.grad(inner, row)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * expected.abs().max().item())


# ---- which row acts on which image ----


@BOTH
@pytest.mark.parametrize("mix", [{"cutmix": 1.0}, {"mixup": 1.0}], ids=["cutmix", "mixup"])
def test_a_part_of_a_batch_is_what_the_network_saw_and_depends_on_its_partners_rows(kind, mix):
    part = moved(build(kind))
    augment = BatchAugment(Recipe(data=Data(img_size=SIDE), augment=Augment(**mix)), CLASSES, learned=part)
    seen, _ = augment.training(batch(), 0)
    chosen = torch.tensor([7, 2, 11])
    again = augment.part(batch(), 0, chosen)
    assert torch.equal(again.images, seen[chosen])
    if kind == "each":
        partners = augment.sample(batch(), 0).partner[chosen]
        assert set(again.ids.tolist()) == {*chosen.tolist(), *partners.tolist()}
        (slopes,) = torch.autograd.grad(again.images.square().sum(), again.rows["sample_policy"])
        reached = again.ids[(slopes != 0).any(1)].tolist()
        assert set(reached) & set(partners.tolist())


def test_each_image_is_transformed_by_its_own_row():
    part = build("each")
    part.table.weight[:, :COUNT] = -50.0  # nothing happens,
    part.table.weight[5, :COUNT] = 50.0  # but to one
    augment = BatchAugment(Recipe(data=Data(img_size=SIDE), augment=Augment(hflip=0.0)), CLASSES, learned=part)
    plain = BatchAugment(Recipe(data=Data(img_size=SIDE), augment=Augment(hflip=0.0)), CLASSES)
    changed = (augment.training(batch(), 0)[0] - plain.training(batch(), 0)[0]).abs().flatten(1).amax(1) > 1e-3
    assert changed[5]
    assert changed.sum() <= 3  # a probability at its bound is not quite 0


# ---- the table ----


@pytest.mark.parametrize("kind", ["normalised", "rmsprop"])
def test_only_open_gates_of_the_rows_of_a_step_move_and_none_beyond_the_bound(kind):
    part = build("each", sample_policy_lr=0.1, table_optimizer=kind)
    before = part.table.weight.clone()
    gradient = torch.zeros(3, NUMBERS)
    gradient[0, 2], gradient[1, COUNT] = 1e-4, -1e-4  # others are closed
    part.table.move(torch.tensor([4, 1, 9]), gradient)
    change = part.table.weight - before
    assert change.nonzero().tolist() == [[1, COUNT], [4, 2]]
    assert change[4, 2].item() == pytest.approx(-change[1, COUNT].item())
    assert change[4, 2] < 0
    for _ in range(400):
        part.table.move(torch.tensor([4]), torch.ones(1, NUMBERS))
    assert part.table.weight.min() == -gated_affine.BOUND


def test_a_row_costs_56_bytes():
    part = build("each")
    assert part.table.weight.element_size() * part.table.weight[0].numel() == 56
    assert set(part.state_dict()) == {"table.weight"}


# ---- what is told, what is taken away ----


def test_figures_of_shared_and_each():
    found = build("shared").summary()
    assert found["sample_policy_probability/rotate"] == pytest.approx(0.2)
    assert found["sample_policy_magnitude/scale_x"] == pytest.approx(0.5)
    assert not [name for name in found if "_sd/" in name]
    part = build("each", trained=torch.tensor([1, 4, 7]))
    part.table.weight[4, 2] = 3.0
    part.table.weight[5] = 6.0  # not trained on
    found = part.summary()
    p = torch.tensor(3.0).sigmoid().item()
    assert found["sample_policy_probability/rotate"] == pytest.approx((0.2 + 0.2 + p) / 3)
    assert found["sample_policy_probability_sd/rotate"] == pytest.approx((p - 0.2) / 3**0.5)
    assert found["sample_policy_magnitude_sd/rotate"] == pytest.approx(0)
    assert part.alarms(found) == []
    augmented = part.per_sample()["augmented"]
    assert augmented[[0, 4]].tolist() == pytest.approx([0.1, (6 * 0.2 + p) / 7 / 2])
    part.table.weight.fill_(6.0)
    assert "sample_policy_saturation is 1.000: at the bound" in part.alarms(part.summary())[0]


def test_what_is_drawn_is_told_in_its_units():
    part = moved(build("each"))
    rows = {"sample_policy": part.table.rows(torch.arange(N))}
    view = SimpleNamespace(key=KEY, batch=SimpleNamespace(draws=torch.arange(N)), rows=rows)
    found = part.drawn(pictures(0), view)
    drawn = gated_affine.drawn(rows["sample_policy"], gated_affine.noise(KEY, range(N)))
    assert list(found)[2:4] == ["rotate, degrees", "translate_x, share of the side"]
    for number, values in enumerate(found.values()):
        assert torch.equal(values[:, 0].isnan(), ~drawn.opened[:, number])
        assert torch.equal(values[:, 0].nan_to_num(0), drawn.amounts[:, number].double())


def test_an_export_makes_the_same_policy_and_numbers_of_single_images_stay_in_checkpoints():
    part = moved(build("shared"))
    piece = json.loads(json.dumps(part.export(), allow_nan=False))
    other = build("shared")
    other.load_export(piece)
    assert torch.equal(other.numbers, part.numbers)
    piece["settings"]["operations"][2][1] = 45.0
    with pytest.raises(ValueError, match=r"settings\.operations: is "):
        other.load_export(piece)
    assert moved(build("each")).export() is None
