"""The learned part `augmenter`: its hypergradient, figures, alarms, and what is taken away of it."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from fastaug.augment.pipeline import BatchAugment
from fastaug.batch import Batch
from fastaug.hypergrad import hypergradient
from fastaug.hypergrad.problem import Problem, Samples
from fastaug.losses import soft_cross_entropy
from fastaug.meta.learned_part import Setting
from fastaug.meta.parts.augmenter import AugmenterPart
from fastaug.recipe.schema import Augment, Data, Meta, Recipe
from fastaug.seeding import Key, Stream
from fastaug.targets import hard_target

SIDE, N, CLASSES, LR = 12, 16, 3, 0.3
KEY = Key(0, 0, Stream.LEARNED)


def build(**keys):
    recipe = Recipe(data=Data(img_size=SIDE), augment=Augment(hflip=0.0), meta=Meta(learn=["augmenter"], **keys))
    return AugmenterPart(Setting(recipe, N, CLASSES, SimpleNamespace(param_groups=[{}]), torch.device("cpu")))


def moved(part, scale=0.1):
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in part.net.last.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
    return part


def pictures(seed):
    small = torch.rand(N, 3, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.1 + 0.8 * nn.functional.interpolate(small, (SIDE, SIDE), mode="bilinear")


def losses(logits, target):
    return soft_cross_entropy(logits, target, "none")


class OneStep:
    """One step of gradient descent in float64 on augmented images, and the validation loss behind it."""

    def __init__(self, part):
        self.part, self.images = part, pictures(0)
        torch.manual_seed(1)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 10), nn.Tanh(), nn.Linear(10, CLASSES))
        self.network = network.double()
        self.weights = {name: p.detach() for name, p in self.network.named_parameters()}
        self.target = hard_target(torch.arange(N) % CLASSES, torch.ones(N, dtype=torch.float64))

    def augmented(self):
        net = self.part.net
        return net.apply(self.images, net.amounts(net.noise(KEY, range(N)), self.images))

    def taken(self):
        """The weights after the step, on the graph of the augmenter."""
        weights = {name: w.clone().requires_grad_() for name, w in self.weights.items()}
        loss = losses(functional_call(self.network, weights, (self.augmented(),)), self.target).sum() / N
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        return {name: w - LR * g for (name, w), g in zip(weights.items(), slopes, strict=True)}

    def validation(self, weights):
        return losses(functional_call(self.network, weights, (pictures(5),)), self.target).mean()

    def hypergradient(self, engine):
        after = {name: w.detach().requires_grad_() for name, w in self.taken().items()}
        v = torch.autograd.grad(self.validation(after), list(after.values()))
        u = {name: -LR * g for name, g in zip(after, v, strict=True)}
        problem = Problem(self.network, self.weights, Samples(self.augmented(), self.target), losses, N)
        return hypergradient(problem, u, dict(self.part.named_parameters()), engine)


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("kind", ["affine_color", "rotation"])
def test_the_hypergradient_is_that_of_taking_the_step_again(kind, conditioned):
    step = OneStep(moved(build(augmenter=kind, conditioned=conditioned).double()))
    found = step.hypergradient("forward")
    parameters = dict(step.part.named_parameters())
    whole = torch.autograd.grad(step.validation(step.taken()), list(parameters.values()))
    largest = max(g.abs().max() for g in whole)
    for name, expected in zip(parameters, whole, strict=True):  # double backward
        assert expected.any()
        torch.testing.assert_close(found[name], expected, rtol=1e-8, atol=1e-10 * largest.item(), msg=name)
    way = {name: torch.randn_like(p) for name, p in parameters.items()}
    ends = []
    for size in (1e-6, -2e-6, 1e-6):
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter += size * way[name]
        ends.append(step.validation(step.taken()).item())
    expected = (ends[0] - ends[1]) / 2e-6
    assert sum((found[name] * way[name]).sum() for name in found).item() == pytest.approx(expected, rel=1e-3)


def test_a_part_of_a_batch_is_what_the_network_saw():
    part = moved(build(augmenter="affine_color"))
    ids = torch.arange(N)
    batch = Batch((pictures(0) * 255).round().byte().permute(0, 2, 3, 1), ids % CLASSES, ids, ids)
    augment = BatchAugment(Recipe(data=Data(img_size=SIDE), augment=Augment(hflip=0.0)), CLASSES, learned=part)
    seen, _ = augment.training(batch, 0)
    chosen = torch.tensor([7, 2, 11])
    again = augment.part(batch, 0, chosen)
    assert torch.equal(again.images, seen[chosen])
    assert again.images.requires_grad
    assert again.log_probability is None


def test_figures_are_in_plain_units():
    part = build(augmenter="affine")
    found = part.summary()
    assert (found["augmenter_mean/rotate"], found["augmenter_mean/scale_x"]) == (0, 1)
    assert found["augmenter_sd/translate_y"] == found["augmenter_spread"] == found["augmenter_saturation"] == 0
    with torch.no_grad():
        part.net.last.bias[part.net.names.index("rotate")] = torch.tensor(0.5).atanh()
        part.net.last.bias[part.net.names.index("scale_y")] = -torch.tensor(0.5).atanh()
    found = part.summary()
    assert found["augmenter_mean/rotate"] == pytest.approx(45)
    assert found["augmenter_mean/scale_y"] == pytest.approx(3**-0.5)
    assert found["augmenter_saturation"] == pytest.approx(0.5)
    (alarm,) = part.alarms(found)
    assert "the same transformation for every image" in alarm
    moved(part)
    found = part.summary()
    assert found["augmenter_sd/rotate"] > 1
    assert part.alarms(found) == []
    with torch.no_grad():
        part.net.last.bias[0] = 20
    assert "augmenter_saturation is 1.000: at the bound" in part.alarms(part.summary())[0]


def test_a_conditioned_one_tells_of_the_latest_images():
    part = moved(build(conditioned=True))
    assert part.summary() == {}
    assert part.alarms({}) == []
    ids = torch.arange(N)
    view = SimpleNamespace(key=KEY, batch=SimpleNamespace(draws=ids))
    with torch.no_grad():
        part.images(pictures(0).float(), view)
    expected = part.net.amounts(part.net.noise(KEY, ids), pictures(0).float())[:, part.net.names.index("rotate")]
    assert part.summary()["augmenter_mean/rotate"] == pytest.approx(expected.mean().item(), rel=1e-5)


# ---- to take away ----


@pytest.mark.parametrize("conditioned", [False, True])
def test_an_export_makes_the_same_augmenter(conditioned):
    part = moved(build(augmenter="affine_color", conditioned=conditioned))
    piece = json.loads(json.dumps(part.export(), allow_nan=False))
    other = build(augmenter="affine_color", conditioned=conditioned)
    other.load_export(piece)
    assert part.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(part.state_dict().values(), other.state_dict().values(), strict=True))


def wrong(**changes):
    piece = build().export()
    for key, value in changes.items():
        piece[key] = piece[key] | value if isinstance(value, dict) else value
    return piece


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        (wrong(settings={"more": 1}), "settings: must be augmenter and conditioned"),
        (wrong(settings={"augmenter": ["affine"]}), "settings.augmenter: ['affine'] is not one of affine"),
        (wrong(settings={"augmenter": "rotation"}), "values.net.last.weight: has shape [6, 32], and [1, 32] is needed"),
        (wrong(settings={"conditioned": 1}), "settings.conditioned: 1 must be true or false"),
        (wrong(values={"net.last.more": []}), "values.net.last.more: is no parameter of this part"),
        (wrong(values={"net.last.bias": [float("nan")] * 6}), "values.net.last.bias: is not finite"),
        (wrong(values={"net.last.bias": [0.0] * 5}), "values.net.last.bias: has shape [5], and [6] is needed"),
        (wrong(values={"net.last.bias": "rm -rf"}), "values.net.last.bias: "),
        (wrong(values={"net.last.bias": [[0.0], 1.0]}), "values.net.last.bias: "),
    ],
)
def test_a_piece_that_does_not_fit_is_refused(piece, words):
    part = build()
    before = {name: value.clone() for name, value in part.state_dict().items()}
    with pytest.raises(ValueError, match=r"^(settings|values)") as error:
        part.load_export(piece)
    assert words in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())


def test_an_export_brings_its_own_settings():
    part = moved(build(augmenter="rotation", conditioned=True))
    other = build()
    other.load_export(part.export())
    assert other.settings() == {"augmenter": "rotation", "conditioned": True}
    assert torch.equal(other.net.last.weight, part.net.last.weight)
