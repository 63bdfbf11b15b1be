"""Statistics of single images in runs: harm from each kind of meta step, and training is what it is without them."""

import numpy as np
import pytest

from fastaug.evaluation.sample_file import read_samples
from fastaug.training import checkpoint

NOTHING = "meta.learn=[]"


def last(folder):
    path, _ = checkpoint.latest(folder / "checkpoints")
    return checkpoint.load(path)


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(["meta.learn=[weights]"], marks=pytest.mark.slow),
        ["meta.learn=[weights]", "meta.engine=fused", "meta.fraction=1"],
        pytest.param(
            ["meta.learn=[instant_weights]", "meta.every=1", "meta.engine=fused", "meta.fraction=1"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["one step", "fused", "instant"],
)
def test_a_meta_step_tells_the_harm_of_images(train, keys):
    found = read_samples(train("run", *keys)).of("train")
    harmed = found["harm"][found["visits"] > 0]
    assert np.isfinite(found["harm"]).all()
    assert (harmed > 0).any()
    assert (harmed < 0).any()


def test_without_a_meta_step_there_is_no_harm_and_training_is_the_same_without_statistics(train):
    kept, none = train("kept", NOTHING), train("none", NOTHING, "run.sample_record=false")
    (weights, state), (others, other) = last(kept), last(none)
    assert all((weights["model"][name] == others["model"][name]).all() for name in weights["model"])
    assert state["sample_record"] is not None
    assert other["sample_record"] is None
    assert not (none / "samples.npz").exists()
    samples = read_samples(kept)
    assert "harm" not in samples.columns
    assert len(samples.of("train")) == 22
    assert len(samples.of("test")) == 8
    assert (samples.of("test")["visits"] == 1).all()
    assert samples.of("train")["visits"].max() <= 2  # epochs; mixed samples count for the image that is most of them


def test_planted_labels_are_trained_on_and_remembered(train):
    folder = train("run", NOTHING, "run.plant=0.25", "augment.cutmix=0")
    found = read_samples(folder)
    planted = found["given"] != found["trained"]
    assert planted.sum() == 6
    assert (found["split"][planted] == 0).all()
    again = read_samples(train("again", NOTHING, "run.plant=0.25", "augment.cutmix=0", f"run.plant_like={folder}"))
    assert (again["given"] != again["trained"]).any()
    assert np.array_equal(again["given"], found["given"])


@pytest.mark.slow
def test_a_checkpoint_without_statistics_goes_on(train):
    folder = train("run", NOTHING)
    path, _ = checkpoint.latest(folder / "checkpoints")
    weights, state = checkpoint.load(path)
    del state["sample_record"]
    checkpoint.save(folder / "checkpoints", state["progress"]["step"], weights, state)
    (folder / "result.json").unlink()
    assert (read_samples(train("run", NOTHING))["visits"] == np.where(read_samples(folder)["split"] == 0, 0, 1)).all()
