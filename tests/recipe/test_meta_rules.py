"""What of the `meta` section is refused, and in which words."""

import pytest

from fastaug.errors import RecipeError
from fastaug.recipe.reading import read_recipe

FUSED = ["meta.engine=fused", "meta.fraction=1"]
INSTANT = ["meta.learn=[instant_weights]", "meta.every=1", "meta.fraction=1"]

REFUSED = {
    "nothing learned": (["meta.every=5"], "meta.learn: is empty"),
    "twice": (["meta.learn=[weights,weights]"], "meta.learn: ['weights', 'weights'] names a part twice"),
    "late": (["meta.learn=[weights]", "meta.start_epochs=300"], "meta.start_epochs: 300.0 leaves nothing"),
    "instant and not": (
        ["meta.learn=[instant_weights,weights]", "meta.every=1", "meta.fraction=1"],
        "meta.learn: instant parts are set from one pass",
    ),
    "instant now and then": (["meta.learn=[instant_weights]"], "meta.every: instant parts need every update"),
    "instant, implicit": ([*INSTANT, "meta.engine=implicit"], "meta.engine: implicit needs an update that is known"),
    "trimmed": ([*INSTANT, "augment.trim=0.1"], "augment.trim: leaves out samples"),
    "weighting": (["meta.learn=[weights]", "augment.published_weighting=true"], "augment.published_weighting: gives"),
    "mixed inside": (
        ["meta.learn=[weights]", "augment.mix_layer=layer1", "augment.cutmix=1"],
        "augment.mix_layer: cannot be differentiated",
    ),
    "rounded": (
        ["meta.learn=[smoothing]", "augment.smoothing=0.1", "augment.loss=bce", "augment.bce_target_thresh=0.2"],
        "augment.bce_target_thresh: rounds targets",
    ),
    "nothing to soften": (["meta.learn=[softness]"], "meta.learn: softness has no effect"),
    "soft start": (
        ["meta.learn=[softness]", "augment.shift=0.2", "augment.soften=target", "augment.soften_k=0.2"],
        "augment.soften_k: 0.2 cannot be where learning starts",
    ),
    "smooth start": (
        ["meta.learn=[smoothing]", "augment.smoothing=0.5"],
        "augment.smoothing: 0.5 cannot be where learning starts",
    ),
    "no smoothing": (["meta.learn=[smoothing]"], "augment.smoothing: 0.0 cannot be where learning starts"),
    "momentum": (["meta.learn=[optim]", "optim.momentum=0.9995"], "optim.momentum: 0.9995 cannot be where"),
    "difference of images": (["meta.learn=[policy]", "meta.engine=difference"], "meta.engine: difference is wrong"),
    "fused part": (["meta.learn=[weights]", "meta.engine=fused"], "meta.engine: fused takes derivatives"),
    "fused policy": (["meta.learn=[policy]", *FUSED], "meta.engine: fused takes derivatives"),
    "fused, compiled": (["meta.learn=[weights]", *FUSED, "model.compile=true"], "meta.engine: fused runs the training"),
    "fused, accumulated": (
        ["meta.learn=[weights]", *FUSED, "train.accumulate=2"],
        "meta.engine: fused would pay for every micro-batch",
    ),
    "layers": (["meta.learn=[weights]", "meta.layers=[fc]"], "meta.layers: ['fc'] needs meta.engine fused or implicit"),
    "average": (["meta.learn=[weights]", "meta.weights=ema"], "meta.weights: ema needs model.ema"),
    "solver of nothing": (["meta.learn=[weights]", "meta.terms=9"], "meta.terms: 9 does nothing unless meta.engine is"),
    "rate of nothing": (
        ["meta.learn=[weights]", "meta.policy_lr=0.1"],
        "meta.policy_lr: 0.1 does nothing unless policy",
    ),
    "temperature": (
        ["meta.learn=[policy]", "meta.temperature=2"],
        "meta.temperature: 2.0 does nothing unless meta.probabilities is gumbel",
    ),
    "trust": ([*INSTANT, "meta.labels_trust=2"], "meta.labels_trust: 2.0 does nothing unless instant_labels"),
}


def read(tmp_path, overrides):
    (tmp_path / "recipe.yaml").write_text("data: {root: x}\nmodel: {name: test_resnet}")
    return read_recipe(tmp_path / "recipe.yaml", overrides)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_for_one_reason(tmp_path, name):
    overrides, message = REFUSED[name]
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, overrides)
    (problem,) = caught.value.problems
    assert problem.startswith(message)


@pytest.mark.parametrize(
    "overrides",
    [
        ["meta.learn=[policy]", "meta.probabilities=gumbel", "meta.temperature=2"],
        ["meta.learn=[weights]", "meta.engine=implicit", "meta.layers=[fc]", "meta.terms=9"],
        [*INSTANT, *FUSED, "train.accumulate=2", "meta.layers=[fc]"],
        ["meta.learn=[smoothing]", "augment.smoothing=0.49"],
    ],
)
def test_accepted(tmp_path, overrides):
    read(tmp_path, overrides)
