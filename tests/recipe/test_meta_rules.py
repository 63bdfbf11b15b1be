"""What of the `meta` section is refused, and in which words."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from fastaug.errors import RecipeError
from fastaug.recipe.meta_rules import META_NEEDS, META_RULES
from fastaug.recipe.reading import read_recipe, to_yaml
from fastaug.recipe.rules import validate
from fastaug.recipe.schema import FOLLOWING, Augment, Data, Eval, Meta, Recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
UNROLLED = ["meta.steps=4", "meta.fraction=1"]
OUTSIDE = "meta.learn=['my.parts:ClassWeights']"
BY_SCORE = ["meta.learn=[policy]", "meta.probabilities=score"]
GATHERED = "meta.probabilities: evidence is gathered in the training pass"
FUSED = ["meta.engine=fused", "meta.fraction=1"]
INSTANT = ["meta.learn=[instant_weights]", "meta.every=1", "meta.fraction=1"]

REFUSED = {
    "nothing learned": (["meta.every=5"], "meta.learn: is empty"),
    "twice": (["meta.learn=[weights,weights]"], "meta.learn: ['weights', 'weights'] names a part twice"),
    "late": (["meta.learn=[weights]", "meta.start_epochs=300"], "meta.start_epochs: 300.0 leaves nothing"),
    "clipped by value": (
        ["meta.learn=[weights]", "optim.clip_grad=1", "optim.clip_mode=value"],
        "optim.clip_mode: meta steps know the derivative of clipping by norm alone, not by value",
    ),
    "computed again": (
        ["meta.learn=[weights]", "model.grad_checkpointing=true"],
        "model.grad_checkpointing, model.sync_bn: meta steps cannot be differentiated through them",
    ),
    "shaken images": (
        ["meta.learn=[augmenter]", "model.kwargs={shakedrop: 0.5}"],
        "model.kwargs: shakedrop: its backward pass is not the derivative of its forward pass",
    ),
    "shaken differences": (
        ["meta.learn=[weights]", "meta.engine=difference", "model.kwargs={shakedrop: 0.5}"],
        "model.kwargs: shakedrop: its backward pass is not the derivative of its forward pass",
    ),
    "two sizes": (["meta.learn=[weights]", "train.resize=[[0, 64]]"], "train.resize: meta images have the one size"),
    "taught": (
        ["meta.learn=[weights]", "distill.teacher=resnet18", "distill.pretrained=true"],
        "distill.teacher: meta steps differentiate the loss of labels alone",
    ),
    "the head alone": (
        ["meta.learn=[weights]", "model.head_first_epochs=3", "meta.start_epochs=2"],
        "meta.start_epochs: 2.0 lies in model.head_first_epochs = 3.0",
    ),
    "settled before it begins": (
        ["meta.learn=[softness]", "augment.shift=0.2", "meta.start_epochs=50", "meta.settle_epochs=50"],
        "meta.settle_epochs: 50.0 with meta.start_epochs = 50.0 leaves nothing of train.epochs = 100",
    ),
    "instant and not": (
        ["meta.learn=[instant_weights,weights]", "meta.every=1", "meta.fraction=1"],
        "meta.learn: instant parts are set from one pass",
    ),
    "instant, frozen": (
        [*INSTANT, "meta.frozen=true"],
        "meta.learn: ['instant_weights'] has instant parts, which keep",
    ),
    "instant now and then": (["meta.learn=[instant_weights]"], "meta.every: instant parts need every update"),
    "instant, implicit": ([*INSTANT, "meta.engine=implicit"], "meta.engine: implicit needs an update that is known"),
    "trimmed": ([*INSTANT, "augment.trim=0.1"], "augment.trim: leaves out samples"),
    "weighting": (["meta.learn=[weights]", "augment.published_weighting=true"], "augment.published_weighting: gives"),
    "mixed inside": (
        ["meta.learn=[weights]", "augment.mix_layer=layer1", "augment.cutmix=1"],
        "augment.mix_layer: cannot be differentiated",
    ),
    "policy that is not there yet": (
        ["meta.learn=[policy]", "augment.start_epochs=5", "meta.start_epochs=4"],
        "meta.start_epochs: 4.0 is before augment.start_epochs = 5",
    ),
    "one-sided differences": (
        ["meta.learn=[weights]", "meta.engine=difference", "augment.copies=1", "augment.consistency_detach=true"],
        "augment.consistency_detach: what is a constant",
    ),
    "one-sided, cg": (
        [
            *("meta.learn=[weights]", "meta.engine=implicit", "meta.solver=cg", "augment.copies=1"),
            "augment.consistency_detach=true",
        ],
        "meta.solver: cg needs a symmetric Hessian",
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
    "difference of images": ([*BY_SCORE, "meta.engine=difference"], "meta.engine: difference is wrong"),
    "fused part": (["meta.learn=[weights]", "meta.engine=fused"], "meta.engine: fused takes derivatives"),
    "fused policy": ([*BY_SCORE, *FUSED], "meta.engine: fused takes derivatives"),
    "difference of transformed images": (
        ["meta.learn=[augmenter]", "meta.engine=difference"],
        "meta.engine: difference is wrong",
    ),
    "fused augmenter": (["meta.learn=[augmenter]", *FUSED], "meta.engine: fused takes derivatives"),
    "augmenter of nothing": (
        ["meta.learn=[weights]", "meta.conditioned=true"],
        "meta.conditioned: True does nothing unless augmenter is in meta.learn",
    ),
    "momentum of Adam": (
        ["meta.learn=[augmenter]", "meta.momentum=0.9"],
        "meta.momentum: 0.9 does nothing unless meta.optimizer is sgd or rmsprop",
    ),
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
    "unrolled, instant": ([*INSTANT, "meta.steps=4"], "meta.steps: 4 has no meaning for instant parts"),
    "unrolled, overlapping": (
        ["meta.learn=[weights]", *UNROLLED, "meta.every=3"],
        "meta.every: 3 is below meta.steps = 4, windows would overlap; raise it",
    ),
    "unrolled, a share": (
        ["meta.learn=[weights]", "meta.steps=4"],
        "meta.fraction: 0.25 leaves out images that meta.steps = 4 unrolls; set it to 1",
    ),
    "unrolled, accumulated": (
        ["meta.learn=[weights]", *UNROLLED, "train.accumulate=2"],
        "train.accumulate: meta.steps = 4 unrolls updates of one micro-batch; set it to 1",
    ),
    "unrolled, engine": (
        ["meta.learn=[weights]", *UNROLLED, "meta.engine=forward"],
        "meta.engine: forward goes through one update, meta.steps = 4 unrolls; set it to auto",
    ),
    "unrolled, compiled": (
        ["meta.learn=[weights]", *UNROLLED, "model.compile=true"],
        "model.compile: compiled code draws other dropout masks",
    ),
    "unrolled, averaged": (
        ["meta.learn=[weights]", *UNROLLED, "meta.weights=ema", "model.ema=true"],
        "meta.weights: ema depends on each of meta.steps = 4 updates",
    ),
    "two parts of one name": (
        ["meta.learn=['a:Part','b:Part']"],
        "meta.learn: ['a:Part', 'b:Part'] has two parts of one name",
    ),
    "a part called like ours": (["meta.learn=[policy,'a:policy']"], "meta.learn: ['policy', 'a:policy'] has two parts"),
    "unrolled, fp16": (
        ["meta.learn=[weights]", *UNROLLED, "train.precision=fp16"],
        "train.precision: fp16 may skip an update",
    ),
    "unrolled, nothing": (["meta.steps=4"], "meta.learn: is empty"),
    "too many steps": (["meta.learn=[weights]", "meta.steps=65", "meta.fraction=1"], "meta.steps: 65 must be at most"),
    "no such part": (
        ["meta.learn=[polcy]"],
        "meta.learn: 'polcy' is not one of policy, augmenter, ",
    ),
    "a part that is no name": (["meta.learn=['a b:C']"], "meta.learn: 'a b:C' is not one of"),
    "a part without its module": (["meta.learn=[':C']"], "meta.learn: ':C' is not one of"),
    "arguments of no part": (
        [OUTSIDE, "meta.parts={'my.parts:Other': {rate: 1}}"],
        "meta.parts: {'my.parts:Other': {'rate': 1}} has arguments of parts that are not in meta.learn",
    ),
    "arguments of a part of the package": (
        ["meta.learn=[policy]", "meta.parts={policy: {}}"],
        "meta.parts: {'policy': {}} has arguments of parts",
    ),
    "arguments that are none": ([OUTSIDE, "meta.parts={'my.parts:ClassWeights': 3}"], "meta.parts: expected mapping"),
    "optimizer of nothing": (
        ["meta.learn=[weights]", "meta.optimizer=sgd"],
        "meta.optimizer: sgd does nothing unless a shared part",
    ),
    "entropy of nothing": (["meta.learn=[optim]", "meta.regulariser=entropy"], "meta.regulariser: entropy is of"),
    "policy that stays": (
        ["meta.learn=[policy]", "meta.learn_probabilities=false", "meta.magnitudes=false"],
        "meta.learn_probabilities: without it and meta.magnitudes",
    ),
    "full magnitude": ([*BY_SCORE, "meta.magnitude=1.0"], "meta.magnitude: from 1, where a bounded number"),
    "two forms": (
        [*BY_SCORE, "meta.tau=0.5", "meta.mix=0.5"],
        "meta.tau: 0.5 and meta.mix = 0.5 are two forms of one thing",
    ),
    "uniform for ever": (
        ["meta.learn=[policy]", "meta.tau=0.0"],
        "meta.learn_probabilities: meta.tau or meta.mix of 0 keeps the policy uniform",
    ),
    **{
        f"evidence and {key}": (["meta.learn=[policy]", key], f"{GATHERED}, {reason}")
        for key, reason in {
            "meta.engine=difference": "not by meta.engine = difference: leave that out, or set this to score",
            "meta.fraction=0.5": "of whole batches, not meta.fraction = 0.5: leave that out, or",
            "meta.magnitudes=true": "which moves no meta.magnitudes: leave that out, or",
            "meta.learn=[policy,optim]": "which moves no augmenter, sample_policy or optim: leave them out",
            "meta.steps=2": "of single updates, not meta.steps = 2: leave that out",
            "meta.mix=0.5": "which lowers probabilities, of which meta.mix = 0.5 keeps a share even: leave that out",
            "meta.sequence=true": "of single operations, not of meta.sequence: leave that out",
            "meta.regulariser=entropy": "which moves nothing by a gradient: leave out meta.regulariser",
            "train.accumulate=2": "of one micro-batch: set train.accumulate to 1",
            "model.compile=true": "which runs eagerly: set model.compile to false",
        }.items()
    },
    "rate of evidence": (
        ["meta.learn=[policy]", "meta.policy_lr=0.1"],
        "meta.policy_lr: 0.1 does nothing unless meta.probabilities is score, gumbel or weight",
    ),
    "exploring for other evidence": (
        [*BY_SCORE, "meta.explore=false"],
        "meta.explore: False does nothing unless meta.probabilities is evidence",
    ),
    "one row of probabilities shared": (
        [*BY_SCORE, "meta.slots=1", "meta.shared_probabilities=true"],
        "meta.shared_probabilities: with meta.slots = 1 or meta.sequence there is only one row",
    ),
    "shared probabilities that follow no gradient": (
        ["meta.learn=[policy]", "meta.probabilities=weight", "meta.shared_probabilities=true"],
        "meta.shared_probabilities: of gradients in the probabilities, which weight does not follow",
    ),
    "shared probabilities by evidence": (
        ["meta.learn=[policy]", "meta.shared_probabilities=true"],
        "meta.shared_probabilities: of gradients in the probabilities, which evidence does not follow",
    ),
    "shared probabilities that stay": (
        ["meta.learn=[policy]", "meta.shared_probabilities=true", "meta.frozen=true"],
        "meta.shared_probabilities: of probabilities that learn, and with meta.frozen",
    ),
    "shared probabilities, not learned": (
        ["meta.learn=[policy]", "meta.shared_probabilities=true", "meta.learn_probabilities=false"],
        "meta.shared_probabilities: True does nothing unless meta.learn_probabilities is true",
    ),
    "relaxed sequences": (
        ["meta.learn=[policy]", "meta.sequence=true", "meta.probabilities=gumbel"],
        "meta.probabilities: gumbel would mix all sequences",
    ),
    "weights for nothing": (
        ["meta.learn=[policy]", "meta.learn_probabilities=false", "meta.probabilities=weight"],
        "meta.probabilities: weight does nothing unless meta.learn_probabilities is true",
    ),
    "entropy that stays": (
        ["meta.learn=[policy]", "meta.learn_probabilities=false", "meta.regulariser=entropy"],
        "meta.regulariser: entropy is of the policy's",
    ),
    "operations of nothing": (
        ["meta.learn=[optim]", "meta.operations=wide"],
        "meta.operations: wide does nothing unless policy is in meta.learn",
    ),
    "magnitude of nothing": (["meta.learn=[optim]", "meta.regulariser=magnitude"], "meta.regulariser: magnitude is"),
    "magnitude that stays": (
        ["meta.learn=[policy]", "meta.regulariser=magnitude", "meta.magnitudes=false"],
        "meta.regulariser: magnitude is",
    ),
    "optimizer of evidence": (
        ["meta.learn=[policy]", "meta.optimizer=sgd"],
        "meta.optimizer: sgd does nothing unless a shared part (augmenter, softness",
    ),
    "annealed evidence": (
        ["meta.learn=[policy]", "meta.anneal=true"],
        "meta.anneal: True does nothing unless a part with a rate of its own",
    ),
    "pull of evidence": (["meta.learn=[policy]", "meta.regulariser=start"], "meta.regulariser: start needs a shared"),
    "start of nothing": (["meta.learn=[weights]", "meta.regulariser=start"], "meta.regulariser: start needs a shared"),
    "weight of no regulariser": (
        ["meta.learn=[policy]", "meta.regulariser_weight=1"],
        "meta.regulariser_weight: 1.0 does nothing unless meta.regulariser is not none",
    ),
    "argument of another loss": (
        ["meta.learn=[policy]", "meta.validation_loss=gce", "augment.focal_gamma=1"],
        "augment.focal_gamma: 1.0 does nothing unless augment.loss or meta.validation_loss is focal",
    ),
    "loss that validates nothing": (["meta.validation_loss=focal"], "meta.learn: is empty"),
    "learned labels of other classes": (
        ["meta.learn=[instant_labels]", "meta.every=1", "meta.fraction=1", "augment.other_class=true"],
        "augment.other_class: takes the probability that",
    ),
    "soft labels of other classes": (
        ["meta.learn=[labels]", "augment.other_class=true"],
        "augment.other_class: takes the probability that",
    ),
    "table of nothing": (
        ["meta.learn=[optim]", "meta.table_optimizer=rmsprop"],
        "meta.table_optimizer: rmsprop does nothing unless a part with numbers for every image",
    ),
    "copies of images without a row": (
        ["meta.learn=[sample_policy]", "eval.tta=4"],
        "eval.tta: 4 copies of test images, for which meta.sample_policy = each has learned nothing",
    ),
    "fused sample policy": (["meta.learn=[sample_policy]", *FUSED], "meta.engine: fused takes derivatives"),
    "difference of a sample policy": (
        ["meta.learn=[sample_policy]", "meta.engine=difference"],
        "meta.engine: difference is wrong",
    ),
    "sample policy of nothing": (
        ["meta.learn=[weights]", "meta.sample_policy=shared"],
        "meta.sample_policy: shared does nothing unless sample_policy is in meta.learn",
    ),
    "start of rows": (
        ["meta.learn=[sample_policy]", "meta.regulariser=start"],
        "meta.regulariser: start needs a shared part",
    ),
    "table of none": (
        ["meta.learn=[sample_policy]", "meta.sample_policy=shared", "meta.table_optimizer=rmsprop"],
        "meta.table_optimizer: rmsprop does nothing unless a part with numbers for every image",
    ),
    "synthetic": (["meta.learn=[weights]", "data.root=''", "data.loader=synthetic"], "data.loader: synthetic has no"),
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
        [
            *("meta.learn=[weights,labels]", "meta.engine=implicit", "meta.every=1", "meta.fraction=1"),
            *("meta.table_optimizer=rmsprop", "meta.weights_form=softplus", "meta.labels_classes=4"),
        ],
        [*BY_SCORE, "meta.learn=[policy,optim]", *UNROLLED, "meta.every=4", "train.precision=bf16"],
        ["meta.learn=[weights]", "meta.validation_loss=focal", "augment.focal_gamma=1"],
        ["meta.learn=[policy]", "meta.validation_loss=bce", "augment.bce_target_thresh=0.2", "augment.bce_sum=true"],
        ["meta.learn=[policy]", "meta.validation_loss=gce", "augment.gce_q=0.5"],
        ["meta.learn=[optim]", "meta.optimizer=rmsprop", "meta.regulariser=start", "meta.regulariser_weight=1e-2"],
        [*BY_SCORE, "meta.regulariser=magnitude"],
        [*BY_SCORE, "meta.regulariser=entropy"],
        [*BY_SCORE, "meta.sequence=true", "train.accumulate=2", "meta.policy_lr=0.1"],
        ["meta.learn=[policy,softness]", "augment.shift=0.2", "augment.copies=1", "meta.layers=[fc]"],
        ["meta.learn=[policy]", *FUSED, "meta.magnitudes=false", "meta.probabilities=evidence", "meta.layers=[]"],
        ["meta.learn=[policy]", "meta.operations=bad_tf", "meta.probabilities=weight", "meta.identity=null"],
        [*BY_SCORE, "meta.operations=wide", "meta.sequence=true", "meta.mix=0.5", "meta.padding=reflect"],
        ["meta.learn=[policy]", "meta.learn_probabilities=false", "meta.tau=0.0", "meta.shared_magnitude=true"],
        [*BY_SCORE, "meta.magnitudes=false", "meta.magnitude=1.0", "meta.shared_probabilities=true"],
        ["meta.learn=[policy]", "meta.frozen=true", "meta.magnitude=1.0", "meta.tau=0.0"],  # RandAugment's way
        ["meta.learn=[policy]", "meta.settle_epochs=3"],
        # What says how to learn stays where something is frozen.
        ["meta.learn=[policy]", "meta.layers=[fc]", "meta.engine=fused", "meta.weights=ema", "meta.frozen=true"],
        ["meta.learn=[weights]", "meta.engine=fused", "meta.steps=4", "meta.every=2", "meta.frozen=true"],
        [
            *("meta.learn=[weights]", "augment.copies=1", "augment.consistency=1"),
            *("augment.consistency_detach=true", "meta.engine=difference", "meta.frozen=true"),
        ],
        [OUTSIDE, "meta.optimizer=sgd", "meta.regulariser=start"],
        [OUTSIDE, "meta.parts={'my.parts:ClassWeights': {rate: 0.1, classes: [1, 2]}}"],
        ["meta.learn=['parts:A', weights]", "meta.parts={'parts:A': {}}"],
        ["meta.learn=[sample_policy,weights]", "meta.table_optimizer=rmsprop", "meta.engine=implicit"],
        [
            *("meta.learn=[sample_policy]", "meta.sample_policy=shared", "meta.optimizer=rmsprop", "eval.tta=4"),
            *("meta.regulariser=start", "meta.sample_policy_lr=0.01"),
        ],
        [
            *("meta.learn=[augmenter]", "meta.augmenter=affine_color", "meta.conditioned=true", "meta.augmenter_lr=1"),
            *("meta.optimizer=sgd", "meta.momentum=0.9", "meta.weight_decay=0.01", "meta.anneal=true"),
            *("train.plain_step=true", "data.known_shift=zoom1.5", "data.known_shift_train=true"),
        ],
    ],
)
def test_accepted(tmp_path, overrides):
    read(tmp_path, overrides)


@pytest.mark.parametrize(
    ("overrides", "evidence"),
    [
        (["meta.learn=[policy]"], True),
        (["meta.learn=[policy]", "meta.engine=auto", "meta.layers=auto", "meta.fraction=null"], True),
        (BY_SCORE, False),
        (["meta.learn=[policy]", "meta.learn_probabilities=false"], False),
        (["meta.learn=[policy]", "meta.frozen=true"], False),
        (["meta.learn=[weights]"], False),
        ([], False),
    ],
)
def test_keys_left_open_follow_from_how_probabilities_learn(tmp_path, overrides, evidence):
    recipe = read(tmp_path, overrides)
    found = {key: getattr(recipe.meta, key) for key in FOLLOWING}
    assert found == {key: values[1 if evidence else 2] for key, values in FOLLOWING.items()}
    (tmp_path / "stored.yaml").write_text(to_yaml(recipe))
    assert read_recipe(tmp_path / "stored.yaml") == recipe


def test_keys_that_are_named_stay(tmp_path):
    meta = read(tmp_path, [*BY_SCORE, "meta.fraction=0.5", "meta.magnitudes=false", "meta.engine=forward"]).meta
    assert (meta.fraction, meta.magnitudes, meta.engine, meta.layers) == (0.5, False, "forward", [])
    assert read(tmp_path, ["meta.learn=[policy]", "meta.layers=[]"]).meta.layers == []
    assert read(tmp_path, ["meta.learn=[policy]", "meta.layers=[fc]"]).meta.layers == ["fc"]


def test_every_rule_is_broken_above(tmp_path):
    told = []
    for overrides, _ in REFUSED.values():
        with pytest.raises(RecipeError) as caught:
            read(tmp_path, overrides)
        told += caught.value.problems
    for _, text in META_RULES:
        pattern = ".*".join(re.escape(fixed) for fixed in re.split(r"\{.*?\}", text))
        assert any(re.fullmatch(pattern, message) for message in told), text


@pytest.mark.parametrize("keys", [keys for _, _, keys in META_NEEDS], ids=" ".join)
def test_keys_that_may_do_nothing_are_keys(keys):
    assert set(keys) <= {field.name for field in fields(Meta)}


@pytest.mark.parametrize("name", ["mnist5k_weights", "imagenet_sa_meta"])
def test_the_control_of_a_recipe_that_learns_is_the_recipe_without_the_section(name, tmp_path):
    control = read_recipe(RECIPES / f"{name}.yaml", ["meta.learn=[]", "meta.every=3"])
    assert control.meta == Meta()
    (tmp_path / "recipe.yaml").write_text(to_yaml(control))
    assert read_recipe(tmp_path / "recipe.yaml") == control
    with pytest.raises(RecipeError, match=r"meta\.every: 0 must be at least 1"):
        read_recipe(RECIPES / f"{name}.yaml", ["meta.learn=[]", "meta.every=0"])


def test_all_that_is_reused_may_be_a_policy() -> None:
    reuse = Recipe(data=Data(root="photos"), meta=Meta(reuse="runs/learned"))
    acting = replace(reuse, augment=Augment(start_epochs=1), eval=Eval(tta=4))
    assert validate(acting) == []
    assert validate(replace(acting, meta=Meta(learn=["policy"], frozen=True))) == []  # learns nothing that could begin
    assert len(validate(replace(acting, meta=Meta()))) == 2
