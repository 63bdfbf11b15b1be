"""The last epochs of a run act by the average of what was learned in as many before, and learn nothing."""

import shutil

import pytest
import torch

from fastaug.meta.settling import Settling

from .conftest import assert_same, last, lines

LEARN = [
    "meta.learn=[policy,softness]",
    "meta.probabilities=score",
    "meta.every=2",
    "meta.fraction=1",
    "augment.cutmix=0",
]
SETTLE = ["train.epochs=4", "meta.settle_epochs=1", "meta.policy_lr=0.5"]


@pytest.fixture
def values(monkeypatch):
    """{update: shared values} of every update, before they settle."""
    seen, after = {}, Settling.after

    def watched(self, step, shared):
        seen[step] = {name: value.detach().clone() for name, value in shared.items()}
        after(self, step, shared)

    monkeypatch.setattr(Settling, "after", watched)
    return seen


def test_the_last_epoch_acts_by_the_mean_over_the_one_before_it(train, values):
    """Three updates an epoch: learned in 0 to 8, averaged over 6 to 8, settled from 9 on."""
    folder = train("run", *LEARN, *SETTLE)
    assert [line["step"] for line in lines(folder, "meta")] == [1, 3, 5, 7, 9]
    for name, settled in values[11].items():
        assert (values[6][name] != values[8][name]).any()
        torch.testing.assert_close(settled, torch.stack([values[step][name] for step in (6, 7, 8)]).mean(0))
        assert_same(values[9][name], settled)
        assert_same(last(folder)[1]["meta"]["learned"][f"parts.{name}"], settled)


@pytest.mark.slow
def test_a_run_cut_while_it_averages_settles_on_the_same_values(train):
    settings = [*LEARN, *SETTLE, "run.checkpoint_every=1", "run.keep=20"]
    whole = train("whole", *settings)
    shutil.copytree(whole, whole.parent / "cut")
    checkpoints = sorted((whole.parent / "cut" / "checkpoints").glob("step-*"))
    assert checkpoints[7].name == "step-00000008"  # after update 7, in the middle of the average
    for path in checkpoints[8:]:
        shutil.rmtree(path)
    (checkpoints[7].parent / "last").write_text(checkpoints[7].name)
    cut = train("cut", *settings)
    for a, b in zip(last(whole), last(cut), strict=True):
        assert_same({**a, "progress": None}, {**b, "progress": None})


@pytest.mark.slow
def test_windows_of_several_updates_end_before_values_settle(train):
    folder = train("run", "meta.learn=[policy]", "meta.steps=2", "meta.engine=auto", *LEARN[1:], *SETTLE)
    assert [line["step"] for line in lines(folder, "meta")] == [2, 4, 6, 8]  # one of updates 8 and 9 would be cut
