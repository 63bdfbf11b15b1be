"""What a policy may be: probabilities of single images, networks; and what the shared one says of itself."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fastaug.augment.differentiable_ops import rotation, translation_x, warp
from fastaug.augment.pipeline import BatchAugment
from fastaug.batch import Batch
from fastaug.errors import RecipeError
from fastaug.hypergrad import hypergradient
from fastaug.hypergrad.problem import Problem
from fastaug.losses import soft_cross_entropy
from fastaug.meta.evidence import Observation
from fastaug.meta.learned_part import Setting
from fastaug.meta.one_step import samples_of
from fastaug.meta.parameters import LearnedParts
from fastaug.meta.parts.policy import PolicyPart, SharedPolicyPart
from fastaug.recipe.schema import Augment, Data, Meta, Recipe
from fastaug.recipe.strict_yaml import parse_yaml
from fastaug.seeding import Key, Stream, uniform

from ..conftest import last

SIDE, N, CLASSES = 16, 10, 3
RECIPE = Recipe(data=Data(img_size=SIDE), augment=Augment(hflip=0.0, cutmix=1.0, mixup_mode="elem"))


def batch(ids=range(N)):
    ids = torch.tensor(list(ids), dtype=torch.int64)
    images = torch.randint(0, 256, (N, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(images[: len(ids)], ids % CLASSES, ids, ids)


class PerImage(PolicyPart):
    """Turned by 40 degrees with a probability of its own for every image, learned by score function."""

    def __init__(self):
        super().__init__()
        self.logits = torch.linspace(-2, 2, 50)

    def rows(self, ids):
        return {"turn": self.logits[ids].requires_grad_()}

    def draw(self, view):
        logits = view.rows["turn"]
        chance = logits.detach().sigmoid().numpy()
        return torch.from_numpy(uniform(view.key, view.batch.draws, 1)[:, 0] < chance), logits

    def augmented(self, images, draws):
        return warp(images, rotation(40.0 * draws[0].to(images)))

    def chance(self, draws):
        turned, logits = draws
        return torch.where(turned, nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits))


class Network(PolicyPart):
    """A shift to the right that a network makes of noise, at first none."""

    def __init__(self):
        super().__init__(lr=0.1)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        nn.init.zeros_(self.net[2].weight)
        nn.init.zeros_(self.net[2].bias)

    def draw(self, view):
        return torch.from_numpy(uniform(view.key, view.batch.draws, 2)).float()

    def augmented(self, images, draws):
        return warp(images, translation_x(self.net(draws)[:, 0].tanh()))


def problem(part):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    weights = {name: p.detach() for name, p in network.named_parameters()}

    def losses(logits, target):
        return soft_cross_entropy(logits, target, "none")

    return Problem(network, weights, samples_of(part), losses, len(part.images)), {
        name: torch.randn_like(w) for name, w in weights.items()
    }


def test_probabilities_of_single_images_reach_the_table_of_the_images_shown():
    learned = PerImage()
    recipe = Recipe(data=Data(img_size=SIDE), augment=Augment(hflip=0.0))
    augment, given = BatchAugment(recipe, CLASSES, learned=learned), batch(range(20, 30))
    plain, _ = BatchAugment(recipe, CLASSES).training(given, 0)
    images, _ = augment.training(given, 0)
    part = augment.part(given, 0, torch.arange(6))
    torch.testing.assert_close(part.images, images[:6], rtol=0, atol=0)
    assert 0 < ((images - plain).abs() > 1e-3).flatten(1).any(1).sum() < N
    found = hypergradient(*problem(part), part.rows)
    assert found["turn"].shape == part.ids.shape
    assert (found["turn"][torch.isin(part.ids, given.ids[:6])] != 0).all()


def test_a_mixed_sample_shows_the_draws_of_both_its_images():
    learned = PerImage()
    augment, given = BatchAugment(RECIPE, CLASSES, learned=learned), batch()
    part = augment.part(given, 3, torch.arange(N))
    turned = torch.from_numpy(
        uniform(Key(0, 3, Stream.LEARNED), given.draws, 1)[:, 0] < learned.logits[:N].sigmoid().numpy()
    )
    own = torch.where(turned, learned.logits[:N].sigmoid().log(), (-learned.logits[:N]).sigmoid().log())
    params = augment.sample(given, 3)
    mixed = (params.pasted() > 0) | (params.own_share() < 1)
    assert mixed.any()
    torch.testing.assert_close(part.log_probability.detach(), own + mixed * own[params.partner])


def test_a_mixed_sample_is_evidence_on_what_is_drawn_for_both_its_images():
    learned = shared(probabilities="evidence")
    augment = BatchAugment(RECIPE, CLASSES, learned=learned)
    view = augment.part(batch(), 3, torch.arange(6), with_images=False).view
    learned.observe(view, Observation(torch.zeros(6), torch.zeros(6)), lambda tensor: tensor)
    op, params = learned.draw(view).op, view.params
    mixed = (params.pasted() > 0) | (params.own_share() < 1)
    assert mixed[:6].any()
    expected = torch.zeros_like(learned.evidence.count)
    for i in range(6):
        for number in {*op[i].tolist(), *(op[params.partner[i]].tolist() if mixed[i] else ())}:
            expected[number] += 1
    assert torch.equal(learned.evidence.count, expected)


def test_a_network_of_noise_starts_at_the_identity_and_gets_a_gradient_by_name():
    learned = Network()
    augment, given = BatchAugment(RECIPE, CLASSES, learned=learned), batch()
    images, _ = augment.training(given, 0)
    torch.testing.assert_close(images, BatchAugment(RECIPE, CLASSES).training(given, 0)[0], rtol=1e-5, atol=1e-5)
    part = augment.part(given, 0, torch.arange(N))
    found = hypergradient(*problem(part), dict(learned.named_parameters()))
    assert found.keys() == {"net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"}
    assert (found["net.2.weight"] != 0).all()
    assert (found["net.0.weight"] == 0).all()  # behind a layer of zeros
    nn.init.ones_(learned.net[2].weight)
    assert (augment.training(given, 0)[0] != images).flatten(1).any(1).all()


def shared(**keys):
    recipe = Recipe(data=Data(img_size=SIDE), meta=Meta(**{"learn": ["policy"], "probabilities": "score"} | keys))
    return SharedPolicyPart(Setting(recipe, 10, CLASSES, SimpleNamespace(param_groups=[{}]), torch.device("cpu")))


SETS = ["wide", "inv_scale_wide_cutout", "geometry", "bad_tf"]


@pytest.mark.parametrize("operations", SETS)
@pytest.mark.parametrize("padding", ["mean", "border", "reflect"])
def test_a_part_of_a_batch_is_made_again_bit_for_bit_by_every_set(operations, padding):
    learned = shared(operations=operations, padding=padding, identity=None, probabilities="weight")
    with torch.no_grad():
        learned.policy.logits += torch.randn(learned.policy.logits.shape, generator=torch.Generator().manual_seed(0))
    augment, given = BatchAugment(RECIPE, CLASSES, learned=LearnedParts({"policy": learned})), batch()
    images, target = augment.training(given, 2)
    part = augment.part(given, 2, torch.tensor([1, 4, 7]))
    assert torch.equal(part.images, images[[1, 4, 7]])
    assert torch.equal(part.target.weight, target.weight[[1, 4, 7]])
    assert part.target.weight.requires_grad


@pytest.mark.parametrize("sequence", [False, True])
def test_loss_weights_have_mean_1_start_at_1_and_move_what_was_drawn_only(sequence):
    learned = shared(probabilities="weight", sequence=sequence)
    augment, given = BatchAugment(Recipe(data=Data(img_size=SIDE)), CLASSES, learned=learned), batch()
    target = augment.part(given, 0, torch.arange(N)).target
    torch.testing.assert_close(target.weight.detach(), torch.ones(N))
    assert learned.log_probability(None) is None
    policy = learned.policy
    draws = policy.sample(Key(0, 0, Stream.LEARNED), range(N))
    (found,) = torch.autograd.grad(target.weight[3], policy.logits)
    chosen = policy.log_probability(draws)[3]
    (drawn,) = torch.autograd.grad(chosen, policy.logits)
    assert ((found > 0) == (drawn > 0)).all()  # the sample's own up, all others down by what the mean weighs
    with torch.no_grad():
        policy.logits += 0.3 * torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(0))
        many = policy.sample(Key(0, 1, Stream.LEARNED), range(20_000))
        values = 1 + policy.logits - learned.first_logits
        mean = policy.drawn_mean(many, values).mean()
        usual = (policy.scores().softmax(1) * values).sum(1).mean()
    assert float(mean / usual) == pytest.approx(1, abs=0.02)


def test_a_mixed_sample_weighs_the_mean_of_both():
    learned = shared(probabilities="weight")
    with torch.no_grad():
        learned.policy.logits += 0.2 * torch.randn(
            learned.policy.logits.shape, generator=torch.Generator().manual_seed(0)
        )
    given, plain = batch(), Recipe(data=Data(img_size=SIDE))
    own = BatchAugment(plain, CLASSES, learned=learned).training(given, 3)[1].weight
    augment = BatchAugment(RECIPE, CLASSES, learned=learned)
    params = augment.sample(given, 3)
    mixed = (params.pasted() > 0) | (params.own_share() < 1)
    assert mixed.any()
    expected = torch.where(mixed, (own + own[params.partner]) / 2, own)
    torch.testing.assert_close(augment.training(given, 3)[1].weight, expected)


def test_switches_leave_alone_what_they_name():
    for keys, names in (
        ({}, {"policy.logits", "policy.strengths"}),
        ({"learn_probabilities": False}, {"policy.strengths"}),
        ({"magnitudes": False}, {"policy.logits"}),
    ):
        part = shared(**keys)
        assert {name for name, p in part.named_parameters() if p.requires_grad} == names
    assert shared(shared_magnitude=True).policy.strengths.shape == (1,)
    assert shared(shared_probabilities=True).policy.shared_probabilities
    assert shared(padding="white").policy.fill == (1.0, 1.0, 1.0)
    assert shared(padding="reflect").policy.fill == "reflect"
    assert shared(learn_probabilities=False).log_probability(None) is None
    full = shared(magnitudes=False, magnitude=1.0)
    assert (full.policy.magnitudes() == 1).all()
    assert full.alarms(full.summary()) == []


def test_fixed_magnitudes_raise_no_alarm_and_are_not_drawn_to_1():
    part = shared(operations="wide_geom")
    assert part.alarms(part.summary()) == []
    expected = (1 - part.policy.magnitudes()[~part.policy.fixed()]).square().mean()
    assert float(part.penalty("magnitude").detach()) == pytest.approx(float(expected.detach()))


def test_a_state_does_not_go_on_with_other_operations(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("- {function: rotate, max: 30}\n")
    state = shared(operations=str(path)).state_dict()
    shared(operations=str(path)).load_state_dict(state)
    path.write_text("- {function: rotate, max: 40}\n")
    with pytest.raises(
        RecipeError, match=r"meta.operations: .*mine.yaml does not hold the operations that were learned"
    ):
        shared(operations=str(path)).load_state_dict(state)
    assert set(shared().state_dict()) == {"policy.logits", "policy.strengths"}  # as 0.1.0 had it


@pytest.mark.parametrize(
    "keys",
    [
        (
            *("operations=inv_scale_wide_cutout", "sequence=true", "mix=0.5", "shared_magnitude=true"),
            *("probabilities=score", "engine=forward"),
        ),
        pytest.param(
            ("operations=bad_tf", "probabilities=weight", "identity=null", "engine=reverse", "padding=border"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("operations=geometry", "learn_probabilities=false", "tau=0.5", "slots=3"), marks=pytest.mark.slow
        ),
    ],
    ids=["sequence", "weight", "magnitude"],
)
def test_every_form_trains_and_learns(train, keys):
    folder = train(
        "run",
        "meta.learn=[policy]",
        "train.epochs=1",
        "data.loader=resident",
        "data.crop=whole",
        "meta.policy_lr=0.1",
        *(f"meta.{k}" for k in keys),
    )
    learned = last(folder)[1]["meta"]["learned"]
    fresh = shared(**parse_yaml("{" + ", ".join(k.replace("=", ": ") for k in keys) + "}")).state_dict()
    changed = {name for name in fresh if not torch.equal(learned[f"parts.policy.{name}"], fresh[name])}
    expected = {"policy.strengths"} if "learn_probabilities=false" in keys else {"policy.logits", "policy.strengths"}
    assert changed == expected


def test_alarms_for_a_policy_that_does_nothing_or_is_at_a_bound():
    part = shared()
    assert part.alarms(part.summary()) == []
    with torch.no_grad():
        part.policy.logits[:, 0] = 9
        part.policy.strengths[:2] = torch.tensor([9.0, -9.0])
    found = part.alarms(part.summary())
    assert "collapsed to identity" in found[0]
    with torch.no_grad():
        part.policy.logits[0] = torch.eye(part.policy.logits.shape[1])[3] * 20
    assert "one operation in 100.0%" in part.alarms(part.summary())[0]
    assert [text.split()[0] for text in found[1:]] == ["policy_magnitude/rotate", "policy_magnitude/translate_x"]
    assert "lower meta.policy_lr" in found[0]
    by_evidence = shared(probabilities="evidence")
    with torch.no_grad():
        by_evidence.policy.logits[:, 0] = 9
    (alarm,) = by_evidence.alarms(by_evidence.summary())
    assert "collapsed to identity; every other was found harmful: name milder ones" in alarm


def test_regularisers_pull_towards_spread_probabilities_and_full_magnitudes():
    part = shared()
    with torch.no_grad():
        part.policy.logits.zero_()
    assert part.penalty("entropy").item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        part.policy.logits[:, 1] = 30
    assert part.penalty("entropy").item() == pytest.approx(np.log(9))
    part.penalty("magnitude").backward()
    assert (part.policy.strengths.grad < 0).all()
    assert part.penalty("start") is None
