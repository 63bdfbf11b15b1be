import math

import pytest
import timm
import torch

from fastaug.errors import RecipeError
from fastaug.nets.optim import SetRate, build_optimizer, build_schedule
from fastaug.recipe.schema import Optim

EPOCHS, UPDATES = 10, 7  # an epoch has 7 updates
TOTAL = EPOCHS * UPDATES


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return timm.create_model("test_resnet", num_classes=4)


def schedule(**keys: object) -> tuple[SetRate, torch.optim.Optimizer]:
    optim = Optim(lr=0.4)
    vars(optim).update(keys)  # past the recipe's choices: a schedule of timm that recipes do not offer works too
    optimizer = build_optimizer(optim, torch.nn.Linear(2, 2))
    return build_schedule(optim, optimizer, epochs=EPOCHS, updates_per_epoch=UPDATES), optimizer


def test_cosine_is_the_closed_form() -> None:
    rate, _ = schedule(min_lr=0.04)
    for update in (0, 1, 13, 35, TOTAL - 1):
        expected = 0.04 + 0.36 * (1 + math.cos(math.pi * update / TOTAL)) / 2
        assert rate(update) == pytest.approx(expected, rel=1e-12), update
    assert rate(35) == pytest.approx(0.22)


@pytest.mark.parametrize("warmup", [2, 2.5, 5])
def test_cosine_starts_from_the_peak_when_the_warm_up_ends(warmup: float) -> None:
    rate, _ = schedule(warmup_epochs=warmup, warmup_lr=0.01, min_lr=0.04)
    first = math.ceil(warmup * UPDATES)
    rates = [rate(update) for update in range(TOTAL)]
    for update in range(first):
        assert rates[update] == pytest.approx(0.01 + (0.4 - 0.01) * update / (warmup * UPDATES), rel=1e-12)
    for update in range(first, TOTAL):
        share = (update - warmup * UPDATES) / (TOTAL - warmup * UPDATES)
        assert rates[update] == pytest.approx(0.04 + 0.36 * (1 + math.cos(math.pi * share)) / 2, rel=1e-12)
    assert max(rates) == pytest.approx(0.4, rel=2e-3)
    if warmup == int(warmup):
        assert rates[first] == 0.4
    assert rates == sorted(rates[:first]) + sorted(rates[first:], reverse=True)


@pytest.mark.parametrize("prefix", [True, False])
def test_other_schedules_count_from_the_start_of_the_training(prefix: bool) -> None:
    rate, _ = schedule(sched="step", decay_epochs=3, decay_rate=0.1, warmup_epochs=1, warmup_prefix=prefix)
    assert [rate(e * UPDATES) for e in (1, 2, 3, 6)] == pytest.approx([0.4, 0.4, 0.04, 0.004])


def test_without_prefix_warm_up_is_linear_and_ends_on_the_schedule() -> None:
    rate, _ = schedule(warmup_epochs=2, warmup_lr=0.01, warmup_prefix=False)
    for update in range(2 * UPDATES):
        assert rate(update) == pytest.approx(0.01 + (0.4 - 0.01) * update / 14, rel=1e-12)
    for update in (14, 15, 40):
        assert rate(update) == pytest.approx(0.4 * (1 + math.cos(math.pi * update / TOTAL)) / 2, rel=1e-12)


def test_step() -> None:
    rate, _ = schedule(sched="step", decay_epochs=3, decay_rate=0.1)
    assert [rate(e * UPDATES) for e in (0, 2, 3, 5, 6, 9)] == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.0004])
    assert rate(3 * UPDATES - 1) == pytest.approx(0.4)


def test_multistep() -> None:
    rate, _ = schedule(sched="multistep", decay_milestones=[4, 8], decay_rate=0.5)
    assert [rate(e * UPDATES) for e in (0, 3, 4, 7, 8, 9)] == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1, 0.1])
    assert rate(4 * UPDATES - 2) == pytest.approx(0.4)  # timm decays one update early


def test_poly_takes_decay_rate_as_its_power() -> None:
    rate, _ = schedule(sched="poly", min_lr=0.04, decay_rate=0.9)
    for update in (0, 1, 13, 35, TOTAL - 1):
        assert rate(update) == pytest.approx(0.04 + 0.36 * (1 - update / TOTAL) ** 0.9, rel=1e-12)


def test_constant() -> None:
    rate, optimizer = schedule(sched="constant")
    assert {rate(update) for update in range(TOTAL)} == {0.4}
    assert optimizer.param_groups[0]["lr"] == 0.4


def test_constant_with_warm_up() -> None:
    rate, _ = schedule(sched="constant", warmup_epochs=1, warmup_lr=0.05)
    assert [rate(u) for u in (0, 1, 6)] == pytest.approx([0.05, 0.05 + 0.35 / 7, 0.05 + 0.35 * 6 / 7])
    assert {rate(u) for u in range(UPDATES, TOTAL)} == {0.4}


@pytest.mark.parametrize("sched", ["cosine", "step", "multistep", "poly", "constant"])
@pytest.mark.parametrize("warmup", [0, 1.5])
def test_the_rate_is_a_function_of_the_update_alone(sched: str, warmup: float) -> None:
    keys = {"sched": sched, "warmup_epochs": warmup, "decay_epochs": 2.5, "decay_milestones": [2, 5]}
    rate, optimizer = schedule(**keys)
    forwards = [rate(update) for update in range(TOTAL)]
    for update in (TOTAL - 1, 3, 40, 0, 69):
        assert rate(update) == forwards[update]
        assert all(group["lr"] == forwards[update] for group in optimizer.param_groups)
    fresh, other = schedule(**keys)
    other.load_state_dict(optimizer.state_dict())  # a continued run
    assert fresh(33) == forwards[33]
    assert other.param_groups[0]["lr"] == forwards[33]


def decayed(optim: Optim, network: torch.nn.Module) -> dict[str, float]:
    optimizer = build_optimizer(optim, network)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    return {name: decay[id(p)] for name, p in network.named_parameters()}


def test_biases_and_norms_are_not_decayed(network: torch.nn.Module) -> None:
    decay = decayed(Optim(weight_decay=0.02), network)
    for name, parameter in network.named_parameters():
        assert decay[name] == (0.02 if parameter.ndim > 1 else 0), name
    assert set(decay.values()) == {0, 0.02}


def test_they_are_when_asked_for(network: torch.nn.Module) -> None:
    assert set(decayed(Optim(weight_decay=0.02, norm_weight_decay=True), network).values()) == {0.02}


def test_options_reach_the_optimizer(network: torch.nn.Module) -> None:
    sgd = build_optimizer(Optim(opt="sgd", lr=0.3, momentum=0.7), network)
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.3, 0.7, True)
    adamw = build_optimizer(
        Optim(opt="adamw", opt_eps=1e-6, opt_betas=[0.8, 0.95], opt_kwargs={"amsgrad": True}), network
    )
    assert isinstance(adamw, torch.optim.AdamW)
    group = adamw.param_groups[0]
    assert (group["eps"], tuple(group["betas"]), group["amsgrad"]) == (1e-6, (0.8, 0.95), True)


@pytest.mark.parametrize(
    "keys", [{"opt": "sgdd"}, {"opt_kwargs": {"amsgradd": True}}, {"opt": "lamb", "opt_kwargs": {"x": 1}}]
)
def test_what_cannot_be_built_is_a_recipe_error(network: torch.nn.Module, keys: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"optim\.opt: \w+ cannot be built"):
        build_optimizer(Optim(**keys), network)  # type: ignore[arg-type]


def rates(network: torch.nn.Module, **keys: object) -> dict[str, float]:
    """The learning rate of each parameter in update 0, over that of factor 1."""
    optim = Optim(lr=0.4, **keys)  # type: ignore[arg-type]
    optimizer = build_optimizer(optim, network)
    top = build_schedule(optim, optimizer, epochs=EPOCHS, updates_per_epoch=UPDATES)(0)
    assert top == pytest.approx(0.4)
    names = {p: name for name, p in network.named_parameters()}
    return {names[p]: group["lr"] / top for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("sched", ["cosine", "constant"])
def test_factors_by_pattern(network: torch.nn.Module, sched: str) -> None:
    found = rates(network, lr_scale={"backbone": 0.1}, sched=sched)
    assert set(found) == {name for name, _ in network.named_parameters()}
    assert {name for name, rate in found.items() if rate == pytest.approx(1)} == {"fc.weight", "fc.bias"}
    assert {name for name, rate in found.items() if rate == pytest.approx(0.1)} == set(found) - {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("sched", ["cosine", "constant"])
def test_layer_decay_is_timm_s_and_multiplies_with_factors(network: torch.nn.Module, sched: str) -> None:
    found = rates(network, layer_decay=0.5, sched=sched)
    layers = timm.models.group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    top = max(layers.values())
    assert found == pytest.approx({name: 0.5 ** (top - layers[name]) for name in found})
    assert found["fc.weight"] == 1
    both = rates(network, layer_decay=0.5, lr_scale={"layer4.*": 3.0}, sched=sched)
    scaled = {name: (3 if name.startswith("layer4.") else 1) * rate for name, rate in found.items()}
    assert both == pytest.approx(scaled)


def test_factors_leave_decay_as_it_was(network: torch.nn.Module) -> None:
    decays = []
    for keys in ({}, {"lr_scale": {"backbone": 0.1, "head": 2.0}}, {"layer_decay": 0.5, "lr_scale": {"head": 2.0}}):
        optimizer = build_optimizer(Optim(weight_decay=0.3, **keys), network)
        decays.append({p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]})
    assert decays[0] == decays[1] == decays[2]
    assert set(decays[0].values()) == {0.0, 0.3}


def test_patterns_that_disagree_are_named(network: torch.nn.Module) -> None:
    with pytest.raises(RecipeError, match=r"optim\.lr_scale: fc\.weight matches '\*' \(0\.1\) and 'head' \(1\)"):
        rates(network, lr_scale={"*": 0.1, "head": 1.0})
    assert rates(network, lr_scale={"*": 0.5, "head": 0.5})["fc.bias"] == pytest.approx(0.5)
    with pytest.raises(RecipeError, match=r"optim\.lr_scale: 'stem\.\*' matches none"):
        rates(network, lr_scale={"stem.*": 0.1})


def test_once_an_epoch_the_rate_is_that_of_its_first_update() -> None:
    rate, _ = schedule(min_lr=0.04, sched_on_updates=False)
    rates = [rate(update) for update in range(TOTAL)]
    for update in range(TOTAL):
        expected = 0.04 + 0.36 * (1 + math.cos(math.pi * (update // UPDATES) / EPOCHS)) / 2
        assert rates[update] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("on_updates", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_cosine_ends_before_the_cool_down(prefix: bool, on_updates: bool) -> None:
    keys = {"warmup_epochs": 2, "warmup_prefix": prefix, "sched_on_updates": on_updates}
    rate, _ = schedule(min_lr=0.04, cooldown_epochs=3, **keys)
    rates = [rate(update) for update in range(TOTAL)]
    assert rates[7 * UPDATES :] == [0.04] * (3 * UPDATES)
    assert min(rates[2 * UPDATES : 7 * UPDATES]) > 0.04
    assert rates[2 * UPDATES] == (0.4 if prefix else pytest.approx(0.04 + 0.18 * (1 + math.cos(math.pi * 2 / 7))))
