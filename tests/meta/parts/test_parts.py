"""What the smaller learned parts do to a batch, to the optimizer and to the log."""

import pytest
import torch

from fastaug.meta.learned_part import Setting
from fastaug.meta.parameters import LearnedParts, build_parts
from fastaug.ops.crop_mix import Soften
from fastaug.recipe.schema import Augment, Meta, Recipe


def build(*learn, optimizer=None, **keys):
    weights = [torch.zeros(3, requires_grad=True)]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01) if optimizer is None else optimizer
    recipe = Recipe(augment=Augment(soften_k=3.0, smoothing=0.2), meta=Meta(learn=list(learn), **keys))
    return build_parts(Setting(recipe, 7, 4, optimizer, torch.device("cpu")))


def test_parts_are_built_in_one_order_with_a_group_and_names_of_their_own():
    learned = build("weights", "optim", "policy", "smoothing", "softness", smoothing_lr=0.5, probabilities="score")
    assert list(learned.each()) == ["policy", "softness", "smoothing", "optim", "weights"]
    assert [(group["name"], group["lr"]) for group in learned.groups()] == [
        *(("policy", 0.01), ("softness", 0.01), ("smoothing", 0.5), ("optim", 0.01))
    ]
    names = list(learned.shared())
    assert names[:3] == ["policy.policy.logits", "policy.policy.strengths", "softness.k.raw"]
    assert [name for name in names if name not in learned.shared(on_batch=True)] == [
        *("optim.rates.lr.raw", "optim.rates.weight_decay.raw", "optim.rates.momentum.raw")
    ]
    assert list(learned.tables()) == ["weights"]
    assert learned.acts_on_images


def test_softness_and_smoothing_begin_at_the_recipe():
    learned = build("softness", "smoothing")
    soften = learned.soften(Soften(k=1.0, p_max=0.9))
    assert soften.k.item() == pytest.approx(3.0)
    assert soften.p_max == 0.9
    assert learned.smoothing(0.0).item() == pytest.approx(0.2)
    assert not learned.acts_on_images
    assert build("weights").soften(Soften(k=1.5)).k == 1.5


def test_inner_rates_follow_the_schedule_and_their_gradient_is_that_of_the_settings():
    weights = [torch.zeros(3, requires_grad=True)]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01)
    learned = build("optim", optimizer=optimizer)
    rates = learned.each()["optim"]
    with torch.no_grad():
        rates.rates["lr"].raw += 0.7
        rates.rates["weight_decay"].raw -= 0.3

    def schedule(update):
        optimizer.param_groups[0]["lr"] = 0.1 / (update + 1)
        return optimizer.param_groups[0]["lr"]

    set_rate = learned.scheduled(schedule, optimizer)
    values = {name: value.item() for name, value in rates.values().items()}
    assert values["momentum"] == pytest.approx(0.9)
    for update in (0, 1, 1):  # asked twice: factors do not pile up
        assert set_rate(update) == pytest.approx(0.1 / (update + 1) * values["lr"])
    group = optimizer.param_groups[0]
    assert group["weight_decay"] == pytest.approx(0.01 * values["weight_decay"])
    settings = [{name: value for name, value in group.items() if name != "params"}]
    (on_graph,) = learned.rates_on_graph(settings)
    for name in ("lr", "weight_decay", "momentum"):
        assert on_graph[name].item() == pytest.approx(group[name])
    for name in ("lr", "weight_decay", "momentum"):  # against what set_rates makes of a changed parameter
        raw = rates.rates[name].raw
        (slope,) = torch.autograd.grad(on_graph[name], raw, retain_graph=True)
        ends = []
        for step in (1e-3, -2e-3, 1e-3):
            with torch.no_grad():
                raw += step
            set_rate(1)
            ends.append(group[name])
        assert slope.item() == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("learn", "spoil", "words"),
    [
        ("softness", lambda part: part.k.raw.fill_(9), "soften_saturation is 1.000"),
        ("smoothing", lambda part: part.share.raw.fill_(-9), "smoothing_saturation is 1.000"),
        ("optim", lambda part: part.rates["lr"].raw.fill_(9), "optim_lr_saturation is 1.000"),
        ("weights", lambda part: part.table.weight.fill_(0.1), "mean sample weight is 0.100"),
        ("weights", lambda part: part.table.weight[::2].zero_(), "57% of the training images have weight 0"),
    ],
)
def test_alarms(learn, spoil, words):
    part = build(learn).each()[learn]
    assert part.alarms(part.summary()) == []
    with torch.no_grad():
        spoil(part)
    (alarm,) = part.alarms(part.summary())
    assert words in alarm
    assert "lower" in alarm


def test_the_summary_of_weights_is_of_the_images_that_are_trained_on():
    recipe = Recipe(meta=Meta(learn=["weights"]))
    part = build_parts(Setting(recipe, 7, 4, None, torch.device("cpu"), torch.tensor([1, 4]))).each()["weights"]
    part.table.weight[[1, 2]] = 0.0
    assert part.summary() == {"weight_mean": 0.5, "weight_zero": 0.5}


def test_checkpoints_of_0_1_0_are_read_under_their_old_names():
    learned = build("policy", "softness", "smoothing", "weights", "optim", probabilities="score")
    old = {
        **{"policy.logits": torch.ones(2, 9), "policy.strengths": torch.ones(8), "softness.raw": torch.tensor(0.5)},
        **{"smoothing.raw": torch.tensor(0.25), "weights.weight": torch.full((7,), 0.5)},
        **{f"optim.{name}.raw": torch.tensor(0.1) for name in ("lr", "weight_decay", "momentum")},
    }
    learned.load_state_dict(old)
    assert learned.each()["softness"].k.raw == 0.5
    assert (learned.tables()["weights"].weight == 0.5).all()
    fresh = build("policy", "softness", "smoothing", "weights", "optim", probabilities="score")
    fresh.load_state_dict(learned.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), learned.state_dict().values(), strict=True)
    )


def test_two_tables_of_one_name_are_refused():
    from fastaug.errors import RecipeError

    weights = build("weights").each()["weights"]
    with pytest.raises(RecipeError, match="two parts keep a table of one name"):
        LearnedParts({"a": weights, "b": weights})
