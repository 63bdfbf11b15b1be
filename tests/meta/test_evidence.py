"""Evidence on operations: z of harm and difficulty, and what becomes of them in a policy."""

import json
import math
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastaug.augment.learned_effects import View
from fastaug.augment.shared_policy import SharedPolicy
from fastaug.meta.build import faint_probabilities
from fastaug.meta.evidence import FLAT, Evidence, Observation, observed
from fastaug.meta.learned_part import Setting
from fastaug.meta.parts.policy import SharedPolicyPart
from fastaug.ops.crop_mix import identity_params
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.rules import validate
from fastaug.recipe.schema import Augment, Data, Meta, Recipe

from .conftest import assert_same, last, lines

OPEN = ["meta.engine=auto", "meta.fraction=null"]  # which the recipe of these tests names
KEYS = ["meta.learn=[policy]", *OPEN, "meta.every=1", "augment.cutmix=0"]


def alone(tensor):
    return tensor


def drawn(n, seed=0, operations=3, slots=2):
    draw = np.random.default_rng(seed)
    op = torch.from_numpy(draw.integers(0, operations + 1, (n, slots)))
    return op, Observation(*torch.from_numpy(draw.normal(size=(2, n))))


def test_z_is_the_mean_in_its_standard_errors():
    op, seen = drawn(400, slots=1)
    evidence = Evidence(3)
    evidence.add(op, seen, alone)
    for scores, values in zip(evidence.scores(), seen, strict=True):
        scaled = ((values - values.mean()) / values.std(correction=0)).clamp(-3, 3)
        for k in range(4):
            mine = scaled[op[:, 0] == k]
            expected = mine.mean() / (scaled.square().mean().sqrt() / len(mine) ** 0.5)
            assert scores[k] == pytest.approx(float(expected))


def test_a_harmful_and_a_hard_operation_stand_out_and_others_do_not():
    evidence = Evidence(3)
    for step in range(50):
        op, seen = drawn(64, seed=step)
        harms, hard = (op == 2).any(1), (op == 3).any(1)
        evidence.add(op, Observation(seen.harm + 0.5 * harms, seen.loss + 0.5 * hard), alone)
    harm, difficulty = evidence.scores()
    assert harm[2] > 8 > 4 > harm[3]
    assert difficulty[3] > 8 > 4 > difficulty[2]


def test_a_sample_counts_once_for_what_it_shows_twice():
    evidence = Evidence(2)
    evidence.add(torch.tensor([[1, 1], [0, 2]]), Observation(torch.ones(2), torch.zeros(2)), alone)
    assert evidence.count.tolist() == [1, 1, 1]


def test_scale_and_common_part_of_an_update_do_not_count():
    op, seen = drawn(64)
    one, other = Evidence(3), Evidence(3)
    one.add(op, seen, alone)
    other.add(op, Observation(1e6 * seen.harm + 5, seen.loss / 1e6 - 5), alone)
    for mine, theirs in zip(one.scores(), other.scores(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_two_processes_gather_what_one_does():
    op, seen = drawn(64)
    whole, halves = Evidence(3), [Evidence(3), Evidence(3)]
    whole.add(op, seen, alone)
    given, meet = [None, None], threading.Barrier(2, timeout=30)

    def gather(rank):
        def over_processes(local):
            given[rank] = local
            meet.wait()
            total = given[0] + given[1]
            meet.wait()
            return total

        halves[rank].add(op[rank::2], Observation(*(values[rank::2] for values in seen)), over_processes)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(gather, range(2)))
    for half in halves:
        for mine, one in zip(half.scores(), whole.scores(), strict=True):
            torch.testing.assert_close(mine, one)


def test_nothing_seen_and_equal_samples_say_nothing():
    evidence = Evidence(2)
    assert evidence.scores()[0].tolist() == [0, 0, 0]
    evidence.add(torch.tensor([[1], [2]]), Observation(torch.ones(2), torch.ones(2)), alone)
    assert evidence.scores()[0].tolist() == [0, 0, 0]


def test_a_probability_falls_by_the_odds_of_harm_once_they_are_above_one():
    evidence, op = Evidence(23), torch.arange(24).repeat(100)[:, None]
    raised = {1: 0.1, 2: 0.25, 3: 0.4, 4: -0.4}  # operations' harm; z is ten times that or a little less
    harm = torch.randn(2400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    harm = harm - harm.view(100, 24).mean(0).repeat(100)  # no chance in the means
    harm += torch.tensor([raised.get(k, 0.0) for k in range(24)], dtype=torch.float64).repeat(100)
    evidence.add(op, Observation(harm, harm), alone)
    z, falls = evidence.scores()[0], evidence.falls()
    assert 3.5 < z[3] < 4 < -z[4] + 0.5
    assert falls.nonzero().flatten().tolist() == [2]  # operation 3
    assert falls[2] == pytest.approx(float(z[3] ** 2 / 2) - math.log(23))


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_probabilities_fall_by_it_against_nothing_s(tau):
    recipe = Recipe(data=Data(img_size=8), meta=Meta(learn=["policy"], tau=tau, slots=1))
    part = SharedPolicyPart(Setting(recipe, 10, 2, SimpleNamespace(param_groups=[{}]), torch.device("cpu")))
    before = part.policy.probabilities()
    part.evidence.falls = lambda: torch.tensor([0.0, math.log(4), *[0.0] * 6], dtype=torch.float64)
    view = View(None, identity_params(4, torch.zeros(3)), None, {})
    part.draw = lambda _: SimpleNamespace(op=torch.zeros(4, 1, dtype=torch.int64))
    part.observe(view, Observation(torch.zeros(4), torch.zeros(4)), alone)
    odds = (part.policy.probabilities() / before)[0]
    assert (odds / odds[0]).tolist() == pytest.approx([1, 1, 0.25, *[1] * 6])


def test_samples_with_steep_losses_do_not_rule():
    seen = observed(torch.tensor([1.0, 10.0]), torch.tensor([0.1, 3.0]), torch.tensor([0.1, 1.0]) - FLAT)
    assert seen.harm.tolist() == pytest.approx([10.0, 10.0])


def test_a_run_gathers_evidence_and_tells_it(train, capsys):
    gathered = train("gathered", *KEYS, "run.log_every=3")
    said = capsys.readouterr().out.replace("\n", " ")
    assert "meta step: the policy learns by evidence of harm, in 72% of the weights, from layer4" in said
    assert "what is found does not change the images of this run, as each update is looked at (meta.explore)" in said
    assert "too few to find all that harms (docs/policies.md): raise train.epochs" in said  # meta.every cannot be lower
    stored = read_recipe(gathered / "recipe.yaml").meta
    assert (stored.engine, stored.fraction, stored.magnitudes, stored.layers) == ("fused", 1.0, False, "auto")
    state = last(gathered)[1]["meta"]["learned"]
    assert float(state["parts.policy.evidence.count"].sum()) > 0
    told = lines(gathered, "learned")[-1]
    assert {"policy_harm/rotate", "policy_difficulty/rotate", "policy_harm/nothing"} <= told.keys()
    assert told["policy_probability/rotate"] == pytest.approx(0.1, abs=0.03)  # one of eight that share .8, no evidence
    piece = json.loads((gathered / "policy.json").read_text())["parts"]["policy"]
    assert piece["start"]["policy.logits"][0][1:] == pytest.approx([math.log(0.1)] * 8)
    summary = piece["summary"]
    assert summary["policy_harm/rotate"] == pytest.approx(told["policy_harm/rotate"])


@pytest.mark.parametrize("explore", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_is_looked_at_is_drawn_from_the_policy_as_it_began(train, monkeypatch, explore):
    """Whatever has been found harmful is drawn no more, but where the next evidence is gathered."""
    gathered, acted = [], []
    add, apply = Evidence.add, SharedPolicy.apply
    monkeypatch.setattr(Evidence, "falls", lambda self: torch.full((len(self.count) - 1,), 100.0, dtype=torch.float64))
    monkeypatch.setattr(Evidence, "add", lambda self, op, *args: [gathered.append(op), add(self, op, *args)][-1])
    monkeypatch.setattr(
        SharedPolicy, "apply", lambda self, images, draws: [acted.append(draws.op), apply(self, images, draws)][-1]
    )
    folder = train("explored", *KEYS[:-2], "meta.every=2", "augment.cutmix=0", f"meta.explore={explore}".lower())
    looked_at = [line["step"] - 1 for line in lines(folder, "meta")]
    assert len(looked_at) > 2
    shown = [bool(op.any()) for op in acted]
    assert [bool(op.any()) for op in gathered] == [shown[step] for step in looked_at]
    first = looked_at[0]
    assert all(shown[: first + 1])
    later = [step for step in range(first + 1, len(shown)) if shown[step]]
    assert later == (looked_at[1:] if explore else [])
    summary = json.loads((folder / "policy.json").read_text())["parts"]["policy"]["summary"]
    assert summary["policy_identity"] == pytest.approx(1)


@pytest.mark.slow
def test_a_continued_run_gathers_the_same(train, monkeypatch):
    monkeypatch.setattr(Evidence, "falls", lambda self: self.count[1:].log1p() / 2)  # it acts where nothing is gathered
    every = [*KEYS, "meta.every=2", "run.checkpoint_every=3"]
    whole = train("whole", *every)
    shutil.copytree(whole, whole.parent / "cut")
    checkpoints = sorted((whole.parent / "cut" / "checkpoints").glob("step-*"))
    shutil.rmtree(checkpoints[-1])
    (checkpoints[0].parent / "last").write_text(checkpoints[0].name)
    cut = train("cut", *every)
    for a, b in zip(last(whole), last(cut), strict=True):
        assert_same({**a, "progress": None}, {**b, "progress": None})


@pytest.mark.parametrize(
    ("meta", "warned"),
    [
        (Meta(learn=["policy"], probabilities="score"), True),
        (Meta(learn=["policy", "softness"], probabilities="score", every=20, fraction=0.5), True),
        (Meta(learn=["policy"], probabilities="score", every=1, fraction=1.0), False),
        (Meta(learn=["policy"], learn_probabilities=False), False),
        (Meta(learn=["policy"]), False),
        (Meta(learn=["weights"]), False),
    ],
)
def test_too_few_samples_for_the_score_function_are_told_with_what_learns_instead(meta, warned):
    said = faint_probabilities(meta)
    assert (said is not None) == warned
    if said:  # the remedy, followed, is a recipe without a problem and without a warning
        assert "leave out meta.probabilities" in said
        followed = Meta(learn=meta.learn)
        recipe = Recipe(data=Data(root="photos"), augment=Augment(shift=0.2), meta=followed)
        assert validate(recipe) == []
        assert faint_probabilities(followed) is None


def test_few_meta_steps_are_told_with_the_remedy(train, capsys):
    train("few", *KEYS[:-2], "meta.every=6", "augment.cutmix=0", "train.epochs=1")
    said = capsys.readouterr().out.replace("\n", " ")
    assert (
        "meta steps, too few to find all that harms (docs/policies.md): set meta.every to 1 and raise train.epochs"
        in said
    )
    assert "does not change the images" not in said


def test_a_run_says_so(train, capsys):
    train(
        "run",
        "meta.learn=[policy]",
        "meta.probabilities=score",
        "meta.every=10",
        "meta.fraction=0.25",
        "train.epochs=1",
    )
    assert "meta step: meta.probabilities: score with meta.every = 10" in capsys.readouterr().out


@pytest.mark.slow
def test_images_beside_copies_are_left_out(train):
    gathered = train("copies", *KEYS, "augment.copies=1", "train.epochs=1")
    evidence = last(gathered)[1]["meta"]["learned"]
    assert 0 < float(evidence["parts.policy.evidence.samples"]) <= 24  # of 48 rows, 24 of which are as evaluated
