"""Rules of the `meta` section of a recipe together with the other sections."""

from collections.abc import Callable, Collection
from dataclasses import fields

from fastaug.recipe.schema import (
    EXPONENTS,
    IMAGE_PARTS,
    INSTANT_PARTS,
    LARGEST_MOMENTUM,
    LARGEST_SMOOTHING,
    SHARED_PARTS,
    TABLE_PARTS,
    UNLEARNED_KEYS,
    Meta,
    Recipe,
    is_outside_part,
)

Need = tuple[Callable[[Recipe], bool], str, list[str]]  # does something when, said in words, keys


def _learns(recipe: Recipe, *parts: str) -> bool:
    return bool(set(parts) & set(recipe.meta.learn))


def _learns_shared(recipe: Recipe, but: Collection[str] = ()) -> bool:
    """Whether something is learned that all images share, leaving the parts `but` out of account."""
    names = set(recipe.meta.learn) - set(but)
    shared = "sample_policy" in names and recipe.meta.sample_policy == "shared"
    return shared or bool(names & set(SHARED_PARTS)) or any(map(is_outside_part, names))


def _learns_by_gradient(recipe: Recipe) -> bool:
    """Whether there is something for the meta-optimizer to move, as it does not move probabilities by evidence."""
    return _learns_shared(recipe, but=["policy"] if recipe.meta.by_evidence else [])


def _learns_tables(recipe: Recipe) -> bool:
    """Whether numbers of single images are learned."""
    own = _learns(recipe, "sample_policy") and recipe.meta.sample_policy == "each"
    return own or _learns(recipe, *TABLE_PARTS)


def _learns_policy(recipe: Recipe) -> bool:
    """Whether a policy learns, ours or perhaps one from outside the package."""
    return _learns(recipe, "policy") or any(map(is_outside_part, recipe.meta.learn))


def has_policy(recipe: Recipe) -> bool:
    """Whether a policy acts on images, fixed or learned, or perhaps one of meta.reuse or from outside the package."""
    fixed = recipe.augment.aa is not None or recipe.augment.color_jitter is not None
    reused = recipe.meta.reuse is not None and not recipe.meta.learn  # all that is there; its file says what
    return fixed or reused or _learns(recipe, *IMAGE_PARTS) or any(map(is_outside_part, recipe.meta.learn))


def _needs_images(recipe: Recipe) -> bool:
    """Whether the hypergradient has to pass through pixels."""
    gumbel = recipe.meta.learn_probabilities and recipe.meta.probabilities == "gumbel"
    always = _learns(recipe, "augmenter", "sample_policy")
    return always or (_learns(recipe, "policy") and (recipe.meta.magnitudes or gumbel))


def _policy_moves(recipe: Recipe) -> bool:
    """Whether our policy learns, rather than only acts."""
    return _learns(recipe, "policy") and not recipe.meta.acts_frozen


def _moves(recipe: Recipe) -> bool:
    """Whether anything is learned, rather than only used."""
    return bool(recipe.meta.learn) and not recipe.meta.acts_frozen


# (clash, what it is): what the gathering of evidence on a policy's operations does not go with
_AGAINST_EVIDENCE: list[tuple[Callable[[Recipe], bool], str]] = [
    (lambda r: r.meta.engine != "fused", "not by meta.engine = {r.meta.engine}: leave that out"),
    (lambda r: r.meta.fraction != 1, "of whole batches, not meta.fraction = {r.meta.fraction}: leave that out"),
    (lambda r: r.meta.magnitudes, "which moves no meta.magnitudes: leave that out"),
    (
        lambda r: _learns(r, "augmenter", "sample_policy", "optim"),
        "which moves no augmenter, sample_policy or optim: leave them out of meta.learn",
    ),
    (lambda r: r.meta.steps > 1, "of single updates, not meta.steps = {r.meta.steps}: leave that out"),
    (
        lambda r: 0 < r.meta.mix < 1,
        "which lowers probabilities, of which meta.mix = {r.meta.mix} keeps a share even: leave that out",
    ),
    (lambda r: r.meta.sequence, "of single operations, not of meta.sequence: leave that out"),
    (lambda r: r.meta.regulariser == "entropy", "which moves nothing by a gradient: leave out meta.regulariser"),
    (lambda r: r.train.accumulate > 1, "of one micro-batch: set train.accumulate to 1"),
    (lambda r: r.model.compile, "which runs eagerly: set model.compile to false"),
]


def _idle_keys(recipe: Recipe) -> list[str]:
    """Keys of the section that were set although nothing is learned; what is reused has its settings with it."""
    default, keys = Meta(), [f.name for f in fields(Meta) if f.name not in UNLEARNED_KEYS]
    return [key for key in keys if getattr(recipe.meta, key) != getattr(default, key)]


# (broken when, message), as in rules.py
META_RULES: list[tuple[Callable[[Recipe], bool], str]] = [
    (
        lambda r: not r.meta.learn and bool(_idle_keys(r)),
        "meta.learn: is empty, so that the other keys of meta have no effect; name what is to be learned, "
        "or write out meta.learn: [] for a control without it",
    ),
    (
        lambda r: len(set(r.meta.learn)) < len(r.meta.learn),
        "meta.learn: {r.meta.learn} names a part twice",
    ),
    (
        lambda r: len({name.rpartition(":")[2] for name in r.meta.learn}) < len(set(r.meta.learn)),
        "meta.learn: {r.meta.learn} has two parts of one name; rename the class of one from outside",
    ),
    (
        lambda r: _moves(r) and r.meta.start_epochs >= r.train.epochs,
        "meta.start_epochs: {r.meta.start_epochs} leaves nothing of train.epochs = {r.train.epochs}",
    ),
    (
        lambda r: _moves(r) and r.meta.start_epochs < r.model.head_first_epochs,
        "meta.start_epochs: {r.meta.start_epochs} lies in model.head_first_epochs = {r.model.head_first_epochs}, in "
        "which there is no step of the whole network to differentiate; set it to that or more",
    ),
    (
        lambda r: _moves(r) and r.optim.clip_mode != "norm",
        "optim.clip_mode: meta steps know the derivative of clipping by norm alone, not by {r.optim.clip_mode}; set it "
        "to norm",
    ),
    (
        lambda r: _moves(r) and (r.model.grad_checkpointing or r.model.sync_bn),
        "model.grad_checkpointing, model.sync_bn: meta steps cannot be differentiated through them; turn them off",
    ),
    (
        lambda r: (
            _moves(r)
            and "shakedrop" in r.model.kwargs
            and (_needs_images(r) or r.meta.steps > 1 or r.meta.engine in ("implicit", "difference"))
        ),
        "model.kwargs: shakedrop: its backward pass is not the derivative of its forward pass, so that weights, labels "
        "and probabilities alone can be learned with it, by one-step engines with derivatives; leave it out",
    ),
    (
        lambda r: _moves(r) and r.distill.teacher is not None,
        "distill.teacher: meta steps differentiate the loss of labels alone; leave it out, or set meta.frozen",
    ),
    (
        lambda r: _moves(r) and bool(r.train.resize),
        "train.resize: meta images have the one size data.img_size; leave it out, or set meta.frozen",
    ),
    (
        lambda r: r.meta.settle_epochs > 0 and r.meta.start_epochs + r.meta.settle_epochs >= r.train.epochs,
        "meta.settle_epochs: {r.meta.settle_epochs} with meta.start_epochs = {r.meta.start_epochs} leaves nothing of "
        "train.epochs = {r.train.epochs} to learn in; lower it",
    ),
    (
        lambda r: _learns(r, *INSTANT_PARTS) and r.meta.acts_frozen,
        "meta.learn: {r.meta.learn} has instant parts, which keep nothing that could be frozen or reused; leave them "
        "out",
    ),
    (
        lambda r: _moves(r) and _learns(r, *IMAGE_PARTS) and r.meta.start_epochs < r.augment.start_epochs,
        "meta.start_epochs: {r.meta.start_epochs} is before augment.start_epochs = {r.augment.start_epochs}, until "
        "when the policy does not act and cannot learn; raise it",
    ),
    (
        lambda r: _moves(r) and r.augment.consistency_detach and r.meta.engine == "difference",
        "augment.consistency_detach: what is a constant in the gradient is none in differences of the loss; set it to "
        "false or choose another meta.engine",
    ),
    (
        lambda r: _moves(r) and r.augment.consistency_detach and r.meta.engine == "implicit" and r.meta.solver == "cg",
        "meta.solver: cg needs a symmetric Hessian, which augment.consistency_detach takes away; choose neumann",
    ),
    (
        lambda r: _learns(r, *INSTANT_PARTS) and not set(r.meta.learn) <= set(INSTANT_PARTS),
        "meta.learn: instant parts are set from one pass of every update; learn the others in a run of their own",
    ),
    (
        lambda r: _learns(r, *INSTANT_PARTS) and (r.meta.every != 1 or r.meta.fraction != 1),
        "meta.every: instant parts need every update and every image; set meta.every and meta.fraction to 1, "
        "and meta.renew above 1 to save time",
    ),
    (
        lambda r: _moves(r) and r.augment.published_weighting,
        "augment.published_weighting: gives every sample the mean weight, which leaves nothing to learn; turn it off",
    ),
    (
        lambda r: _moves(r) and r.augment.mix_layer is not None,
        "augment.mix_layer: cannot be differentiated by the meta step; mix images instead, or empty meta.learn",
    ),
    (
        lambda r: (
            _learns(r, "softness", "smoothing", "labels", "instant_labels")
            and r.augment.loss == "bce"
            and r.augment.bce_target_thresh is not None
        ),
        "augment.bce_target_thresh: rounds targets, so that meta.learn cannot change them; remove one of them",
    ),
    (
        lambda r: _learns(r, "softness") and (r.augment.soften == "none" or r.augment.shift == 0),
        "meta.learn: softness has no effect without augment.shift above 0 and augment.soften other than none",
    ),
    (
        lambda r: _learns(r, "smoothing", "labels", "instant_labels") and r.augment.other_class,
        "augment.other_class: takes the probability that learned labels spread; turn it off",
    ),
    (
        lambda r: _moves(r) and r.meta.engine == "difference" and _needs_images(r) and not r.meta.by_evidence,
        "meta.engine: difference is wrong for images in networks with kinks (ReLU); choose another engine, or learn "
        "neither augmenter nor sample_policy and set meta.magnitudes=false with meta.probabilities=score",
    ),
    (
        lambda r: (
            _moves(r)
            and r.meta.engine == "fused"
            and (r.meta.fraction != 1 or _needs_images(r) or _learns(r, "optim"))
            and not r.meta.by_evidence
        ),
        "meta.engine: fused takes derivatives from the training pass: set meta.fraction to 1, learn no augmenter, "
        "sample_policy or optim, and of a policy its probabilities only (meta.magnitudes=false, probabilities score or "
        "evidence); or choose engine forward or implicit",
    ),
    (
        lambda r: _moves(r) and r.meta.engine == "fused" and r.model.compile and not r.meta.by_evidence,
        "meta.engine: fused runs the training pass eagerly; set model.compile to false or choose another engine",
    ),
    (
        lambda r: (
            _moves(r)
            and r.meta.engine == "fused"
            and r.train.accumulate > 1
            and not _learns(r, *INSTANT_PARTS)
            and not r.meta.by_evidence
        ),
        "meta.engine: fused would pay for every micro-batch and learn from the last; set train.accumulate to 1",
    ),
    (
        lambda r: r.meta.engine == "implicit" and _learns(r, *INSTANT_PARTS),
        "meta.engine: implicit needs an update that is known; instant parts are set before theirs",
    ),
    (
        lambda r: (
            _moves(r) and bool(r.meta.layers) and r.meta.engine not in ("fused", "implicit") and not r.meta.by_evidence
        ),
        "meta.layers: {r.meta.layers} needs meta.engine fused or implicit: others go through the whole network",
    ),
    (
        lambda r: _learns(r, "softness") and not EXPONENTS[0] < r.augment.soften_k < EXPONENTS[1],
        "augment.soften_k: {r.augment.soften_k} cannot be where learning starts; it has to be inside of 0.25 and 16",
    ),
    (
        lambda r: _learns(r, "smoothing") and not 0 < r.augment.smoothing < LARGEST_SMOOTHING,
        "augment.smoothing: {r.augment.smoothing} cannot be where learning starts; it has to be inside of 0 and 0.5",
    ),
    (
        lambda r: _learns(r, "optim") and r.optim.momentum >= LARGEST_MOMENTUM,
        "optim.momentum: {r.optim.momentum} cannot be where learning starts; it has to be below 0.999",
    ),
    (
        lambda r: r.meta.steps > 1 and _learns(r, *INSTANT_PARTS),
        "meta.steps: {r.meta.steps} has no meaning for instant parts, which are set anew in every update; set it to 1",
    ),
    (
        lambda r: _moves(r) and r.meta.steps > r.meta.every and not _learns(r, *INSTANT_PARTS),
        "meta.every: {r.meta.every} is below meta.steps = {r.meta.steps}, windows would overlap; raise it or lower "
        "meta.steps",
    ),
    (
        lambda r: r.meta.steps > 1 and _moves(r) and r.meta.fraction != 1 and not r.meta.by_evidence,
        "meta.fraction: {r.meta.fraction} leaves out images that meta.steps = {r.meta.steps} unrolls; set it to 1",
    ),
    (
        lambda r: r.meta.steps > 1 and _moves(r) and r.train.accumulate > 1,
        "train.accumulate: meta.steps = {r.meta.steps} unrolls updates of one micro-batch; set it to 1",
    ),
    (
        lambda r: r.meta.steps > 1 and _moves(r) and r.meta.engine != "auto" and not r.meta.by_evidence,
        "meta.engine: {r.meta.engine} goes through one update, meta.steps = {r.meta.steps} unrolls; set it to auto",
    ),
    (
        lambda r: r.meta.steps > 1 and _moves(r) and r.model.compile,
        "model.compile: compiled code draws other dropout masks than the replay of meta.steps = {r.meta.steps}; set it "
        "to false",
    ),
    (
        lambda r: r.meta.steps > 1 and _moves(r) and r.meta.weights == "ema",
        "meta.weights: ema depends on each of meta.steps = {r.meta.steps} updates, and only the last one's share were "
        "seen; set it to raw",
    ),
    (
        lambda r: r.meta.steps > 1 and _moves(r) and r.train.precision == "fp16",
        "train.precision: fp16 may skip an update, which meta.steps = {r.meta.steps} cannot unroll; use bf16 or no",
    ),
    (
        lambda r: bool(r.meta.learn) and not set(r.meta.parts) <= set(filter(is_outside_part, r.meta.learn)),
        "meta.parts: {r.meta.parts} has arguments of parts that are not in meta.learn as module:Class; leave them out "
        "or add the parts there",
    ),
    (
        lambda r: _policy_moves(r) and not (r.meta.learn_probabilities or r.meta.magnitudes),
        "meta.learn_probabilities: without it and meta.magnitudes the policy learns nothing; turn one of them on",
    ),
    (
        lambda r: _policy_moves(r) and r.meta.magnitudes and r.meta.magnitude == 1,
        "meta.magnitude: from 1, where a bounded number has no slope, magnitudes cannot learn; lower it, or set "
        "meta.magnitudes to false",
    ),
    (
        lambda r: _learns(r, "policy") and r.meta.tau != 1 and r.meta.mix != 1,
        "meta.tau: {r.meta.tau} and meta.mix = {r.meta.mix} are two forms of one thing; leave one of them out",
    ),
    (
        lambda r: _policy_moves(r) and r.meta.learn_probabilities and r.meta.tau * r.meta.mix == 0,
        "meta.learn_probabilities: meta.tau or meta.mix of 0 keeps the policy uniform; set it to false or raise that",
    ),
    *(
        (
            lambda r, clash=clash: r.meta.by_evidence and clash(r),
            "meta.probabilities: evidence is gathered in the training pass, " + reason + ", or set this to score",
        )
        for clash, reason in _AGAINST_EVIDENCE
    ),
    (
        lambda r: _learns(r, "policy") and r.meta.shared_probabilities and (r.meta.sequence or r.meta.slots == 1),
        "meta.shared_probabilities: with meta.slots = 1 or meta.sequence there is only one row of probabilities; leave "
        "it out",
    ),
    (
        lambda r: _learns(r, "policy") and r.meta.shared_probabilities and r.meta.acts_frozen,
        "meta.shared_probabilities: of probabilities that learn, and with meta.frozen or meta.reuse none does; leave "
        "it out",
    ),
    (
        lambda r: (
            _policy_moves(r)
            and r.meta.shared_probabilities
            and (r.meta.by_evidence or r.meta.probabilities == "weight")
        ),
        "meta.shared_probabilities: of gradients in the probabilities, which {r.meta.probabilities} does not follow; "
        "leave it out, or set meta.probabilities to score",
    ),
    (
        lambda r: _learns(r, "policy") and r.meta.sequence and r.meta.probabilities == "gumbel",
        "meta.probabilities: gumbel would mix all sequences of meta.sequence; set it to score",
    ),
    (
        lambda r: (
            r.meta.regulariser == "entropy"
            and bool(r.meta.learn)
            and not (_learns_policy(r) and r.meta.learn_probabilities)
        ),
        "meta.regulariser: entropy is of the policy's probabilities; add policy to meta.learn and set "
        "meta.learn_probabilities to true, or set it to none",
    ),
    (
        lambda r: (
            r.meta.regulariser == "magnitude" and bool(r.meta.learn) and not (_learns_policy(r) and r.meta.magnitudes)
        ),
        "meta.regulariser: magnitude is of the policy's magnitudes; add policy to meta.learn and set meta.magnitudes "
        "to true, or set it to none",
    ),
    (
        lambda r: r.meta.regulariser == "start" and bool(r.meta.learn) and not _learns_by_gradient(r),
        "meta.regulariser: start needs a shared part in meta.learn that moves by gradients (augmenter, softness, "
        "smoothing, optim, a shared sample_policy, one from outside, or policy with meta.probabilities other than "
        "evidence); set it to none",
    ),
    (
        lambda r: _moves(r) and r.meta.weights == "ema" and not r.model.ema,
        "meta.weights: ema needs model.ema = true",
    ),
    (
        lambda r: _learns(r, "sample_policy") and r.meta.sample_policy == "each" and r.eval.tta > 0,
        "eval.tta: {r.eval.tta} copies of test images, for which meta.sample_policy = each has learned nothing; set it "
        "to 0, or meta.sample_policy to shared",
    ),
    (
        lambda r: bool(r.meta.learn) and r.data.loader == "synthetic",
        "data.loader: synthetic has no meta split; use dali or resident",
    ),
]

# Keys of `meta` that do nothing on their own; without meta.learn none of them does anything.
META_NEEDS: list[Need] = [
    (
        lambda r: _learns(r, "policy"),
        "policy is in meta.learn",
        [
            *(
                "probabilities",
                "temperature",
                "magnitudes",
                "slots",
                "policy_lr",
                "operations",
                "padding",
                "tau",
                "mix",
            ),
            *("learn_probabilities", "magnitude", "shared_magnitude", "shared_probabilities", "identity", "sequence"),
        ],
    ),
    (
        lambda r: r.meta.learn_probabilities,
        "meta.learn_probabilities is true",
        ["probabilities", "temperature", "shared_probabilities"],
    ),
    (lambda r: r.meta.probabilities == "gumbel", "meta.probabilities is gumbel", ["temperature"]),
    (lambda r: not r.meta.by_evidence, "meta.probabilities is score, gumbel or weight", ["policy_lr"]),
    (
        lambda r: r.meta.learn_probabilities and r.meta.probabilities == "evidence",
        "meta.probabilities is evidence",
        ["explore"],
    ),
    (lambda r: _learns(r, "softness"), "softness is in meta.learn", ["softness_lr"]),
    (lambda r: _learns(r, "smoothing"), "smoothing is in meta.learn", ["smoothing_lr"]),
    (lambda r: _learns(r, "optim"), "optim is in meta.learn", ["optim_lr"]),
    (lambda r: _learns(r, "weights"), "weights is in meta.learn", ["weights_lr", "weights_form"]),
    (
        _learns_tables,
        "a part with numbers for every image (weights, labels, sample_policy: each) is learned",
        ["table_optimizer"],
    ),
    (lambda r: _learns(r, "labels"), "labels is in meta.learn", ["labels_lr", "labels_classes"]),
    (
        lambda r: _learns(r, "instant_labels"),
        "instant_labels is in meta.learn",
        ["labels_temperature", "labels_trust"],
    ),
    (
        _learns_by_gradient,
        "a shared part (augmenter, softness, smoothing, optim, a shared sample_policy, one from outside, or policy but "
        "by meta.probabilities=evidence) is learned",
        ["optimizer", "momentum", "weight_decay"],
    ),
    (
        _learns_shared,
        "a shared part (policy, augmenter, softness, smoothing, optim, a shared sample_policy, or one from outside) is "
        "learned",
        ["settle_epochs"],
    ),
    (
        lambda r: _learns_by_gradient(r) or _learns_tables(r),
        "a part with a rate of its own (any but instant ones, and policies by evidence) is in meta.learn",
        ["anneal"],
    ),
    (
        lambda r: _learns(r, "augmenter"),
        "augmenter is in meta.learn",
        ["augmenter", "conditioned", "augmenter_lr"],
    ),
    (lambda r: _learns(r, "sample_policy"), "sample_policy is in meta.learn", ["sample_policy", "sample_policy_lr"]),
    (lambda r: r.meta.optimizer != "adam", "meta.optimizer is sgd or rmsprop", ["momentum"]),
    (lambda r: r.meta.regulariser != "none", "meta.regulariser is not none", ["regulariser_weight"]),
    (lambda r: r.meta.engine == "implicit", "meta.engine is implicit", ["solver", "alpha", "terms", "damping"]),
]
