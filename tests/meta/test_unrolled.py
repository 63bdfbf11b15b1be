"""meta.steps: K updates of real runs differentiated together."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from fastaug.data.sampler import Order
from fastaug.errors import RecipeError
from fastaug.hypergrad.engines.unroll import Window
from fastaug.meta.build import check_windows
from fastaug.meta.log import MetaLog
from fastaug.meta.unrolled import UnrolledSteps
from fastaug.recipe.schema import Meta, Recipe

from .conftest import assert_same, last, lines

UNROLLED = ["meta.steps=2", "meta.every=2", "meta.fraction=1", "meta.engine=auto"]
EVERYTHING = ["meta.learn=[policy,softness,smoothing,weights,optim]", "meta.probabilities=score"]


@pytest.mark.parametrize(
    ("opt", "most"),
    [
        ("sgd", 1e-5),
        pytest.param("adamw", 1e-2, marks=pytest.mark.slow),
        pytest.param("lamb", 1e-2, marks=pytest.mark.slow),
    ],
    ids=["sgd", "adamw", "lamb"],
)
def test_the_replay_ends_at_the_weights_of_training_and_learns_everything(train, monkeypatch, opt, most):
    """Mixing, dropout, clipping, momentum, a learning rate that changes: the window is what training did.

    In float32, where Adam makes a whole step of the rounding of a gradient that is all but 0.
    """
    ends, clipped = [], []
    take, gradients = UnrolledSteps._take, Window.gradients
    monkeypatch.setattr(
        Window,
        "gradients",
        lambda self, *args, **more: (clipped.append(more["max_norm"]), gradients(self, *args, **more))[1],
    )

    def watched(self, window, step):
        self._parts = [self.augment.part(u.batch, u.step // 3, torch.arange(len(u.batch.ids))) for u in self._updates]

        def kept(weights):
            found = [
                [w.detach().clone() for w in of]
                for of in (weights.values(), trained.values(), window._weights.values())
            ]
            assert list(weights) == list(window._weights)
            ends.append([torch.cat([w.flatten() for w in of]) for of in found])
            return sum(weight.sum() for weight in weights.values())

        network = dict(self.network.named_parameters())
        trained = {name: network[name] for name in window._weights}
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        window.gradients_of(kept, self.network, self.training.losses, self.learned.shared(), max_norm=1.0)
        take(self, window, step)
        assert_same(dict(self.network.state_dict()), before)

    monkeypatch.setattr(UnrolledSteps, "_take", watched)
    folder = train("run", *EVERYTHING, *UNROLLED, f"optim.opt={opt}", "optim.momentum=0.9")
    steps = [2, 4, 6] if opt == "sgd" else [4, 6]  # the first updates by second moments have no derivative to speak of
    assert len(ends) == len(steps)
    assert clipped == [1.0] * len(steps)  # optim.clip_grad
    for replayed, real, start in ends:
        assert (real - start).norm() > 0
        assert (replayed - real).norm() <= most * (real - start).norm()
    assert [line["step"] for line in lines(folder, "meta")] == steps
    assert all(line["hypergradient"] > 0 for line in lines(folder, "meta"))
    learned = last(folder)[1]["meta"]["learned"]
    assert (learned["parts.weights.table.weight"] != 1).sum() >= 8
    for name in ("optim.rates.lr.raw", "optim.rates.weight_decay.raw", "softness.k.raw"):
        assert learned[f"parts.{name}"].abs() > 0


@pytest.mark.slow
def test_at_rate_zero_training_goes_on_as_without(train):
    still = [f"meta.{name}=0" for name in ("policy_lr", "softness_lr", "smoothing_lr", "weights_lr", "optim_lr")]
    ran = train("ran", *EVERYTHING, *UNROLLED, *still)
    never = train("never", *EVERYTHING, *still, "meta.start_epochs=1.99")
    assert len(lines(ran, "meta")) == 3
    assert not lines(never, "meta")
    differs = {"meta": None, "progress": None, "lines": None}  # of the logs: one has meta steps in it
    for a, b in zip(last(ran), last(never), strict=True):
        assert_same({**a, **differs}, {**b, **differs})


def test_a_run_cut_in_the_middle_of_a_window_ends_as_the_uninterrupted_one(train):
    settings = [
        *EVERYTHING,
        "meta.steps=3",
        "meta.every=3",
        *UNROLLED[2:],
        "meta.half_life=4",
        "run.checkpoint_every=1",
    ]
    whole = train("whole", *settings, "run.keep=9")
    shutil.copytree(whole, whole.parent / "cut")
    checkpoints = sorted((whole.parent / "cut" / "checkpoints").glob("step-*"))
    inside = torch.load(checkpoints[4] / "state.pt", weights_only=True)["meta"]["window"]
    assert len(inside["updates"]) == 2
    for checkpoint in checkpoints[5:]:
        shutil.rmtree(checkpoint)
    (checkpoints[0].parent / "last").write_text(checkpoints[4].name)
    cut = train("cut", *settings, "run.keep=9")
    for a, b in zip(last(whole), last(cut), strict=True):
        assert_same({**a, "progress": None}, {**b, "progress": None})
    assert lines(whole, "meta") == lines(cut, "meta")


def test_windows_begin_after_the_warm_up_and_have_gaps_between_them(train):
    folder = train(
        "run", "meta.learn=[weights]", *UNROLLED[:1], "meta.every=3", *UNROLLED[2:], "meta.start_epochs=0.34"
    )
    assert [line["step"] for line in lines(folder, "meta")] == [3, 6]


def test_what_cannot_be_unrolled_is_refused(train):
    folder = train("run", "meta.learn=[weights]", *UNROLLED, "optim.opt=lion", code=2)
    assert "Lion" in json.loads((folder / "status.json").read_text())["reason"]
    folder = train("other", "meta.learn=[weights]", *UNROLLED, "optim.opt=lion", "meta.approximate=true", code=2)
    assert "meta.steps" in json.loads((folder / "status.json").read_text())["reason"]
    folder = train("late", "meta.learn=[weights]", *UNROLLED, "meta.start_epochs=1.67", code=2)
    assert "more than the 1 updates between" in json.loads((folder / "status.json").read_text())["reason"]
    training = SimpleNamespace(
        recipe=Recipe(meta=Meta(learn=["weights"], steps=2)), accelerator=SimpleNamespace(num_processes=2)
    )
    with pytest.raises(RecipeError, match=r"meta\.steps: 2 updates are differentiated in one process, found 2"):
        check_windows(training)


def test_a_window_with_an_update_that_damage_left_too_small_is_left_out_and_said_to_be(train, monkeypatch):
    differentiated = Order.spread

    def damaged(self, step, share, least):
        return differentiated(self, step, share, least)[: 1 if step == 1 else None]

    monkeypatch.setattr(Order, "spread", damaged)
    met = []
    skip = MetaLog.skip
    monkeypatch.setattr(MetaLog, "skip", lambda self, step: (met.append(step), skip(self, step)))
    folder = train("run", "meta.learn=[weights]", *UNROLLED)
    assert met == [1]
    assert [(line["step"], line.get("skipped", False)) for line in lines(folder, "meta")] == [
        *((2, True), (4, False), (6, False))
    ]
