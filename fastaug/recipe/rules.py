"""Rules that join keys of a recipe: every problem at once, each naming the key to change."""

import json
from collections.abc import Callable
from typing import Any

from fastaug.recipe.meta_rules import META_NEEDS, META_RULES, Need, has_policy
from fastaug.recipe.schema import IMAGE_PARTS, SHARDABLE_OPTIMIZERS, Recipe

_KEYS_OF_OURS = {"checkpoint_path", "pretrained", "num_classes", "in_chans"}


def is_on_hub(name: str) -> bool:
    """Whether timm fetches what `model.name` names, the weights or not."""
    return name.lower().replace("_", "-").startswith("hf-hub:")


def _changes_copies(recipe: Recipe) -> bool:
    """Whether anything is drawn for the copies of an image, perhaps by a policy of meta.reuse or from outside."""
    augment = recipe.augment
    return has_policy(recipe) or bool(augment.shift or augment.hflip or augment.reprob or augment.cutout)


def _one_label_only(r: Recipe) -> bool:
    """Whether something is asked for that is about the one label of an image."""
    of_labels = r.data.labels is not None or r.data.class_map is not None or r.run.plant > 0 or r.run.log_losses
    balanced = r.data.sampling != "natural" or r.augment.class_weight != "none" or r.augment.logit_adjustment
    chosen = r.eval.best_metric != "top1"  # by the mean average precision
    return bool(of_labels or balanced or chosen or r.augment.trust or r.meta.learn or r.meta.acts_frozen or r.eval.tta)


def _leaves_rest(r: Recipe) -> bool:
    """Whether targets would have a part that is uniform over the classes, or an image without a target of its own."""
    a = r.augment
    softened = a.soften in ("both", "target") and (a.shift or a.cutmix or a.soften_p_max < 1)
    return bool(softened or a.smoothing or a.other_class or a.copies or a.mix_layer or r.train.plain_step)


def _shards(r: Recipe) -> bool:
    """Whether several processes divide the network among them."""
    return r.train.parallel == "fsdp2"


def _tells_ddp(r: Recipe) -> bool:
    """Whether DistributedDataParallel is told anything."""
    usual = Recipe().train
    return any(
        getattr(r.train, key) != getattr(usual, key)
        for key in ("comm_hook", "bucket_cap_mb", "gradient_as_bucket_view")
    )


PACKED = ("wds", "tfrecord", "hfds", "parquet")  # kinds of data.root whose records have keys

# Rules that join keys: (broken when, message). Messages begin with the key to change.
_RULES: list[tuple[Callable[[Recipe], bool], str]] = [
    (
        lambda r: not r.data.root and r.data.table is None and r.data.loader != "synthetic",
        "data.root: not set; name a folder of images or embedded:mnist5k",
    ),
    (
        lambda r: bool(r.data.input_key or r.data.target_key) and r.data.root.partition(":")[0] not in PACKED,
        "data.input_key: it and data.target_key name parts of the records of a packed set (wds, tfrecord, hfds, "
        "parquet), and data.root is {r.data.root}; leave them out",
    ),
    (
        lambda r: r.data.loader == "synthetic" and (r.data.table is not None or r.data.class_map is not None),
        "data.table: data.loader=synthetic reads no images; leave data.table and data.class_map out",
    ),
    (
        lambda r: r.data.table is not None and r.data.class_level != "top",
        "data.class_level: {r.data.class_level} is about folders, and data.table names the classes; leave it out",
    ),
    (
        lambda r: r.data.multi_label != "off" and r.data.table is None,
        "data.multi_label: the classes of images are read from a table; set data.table",
    ),
    (
        lambda r: r.data.multi_label != "off" and r.augment.loss != "bce",
        "data.multi_label: needs a sigmoid for each class; set augment.loss to bce, found {r.augment.loss}",
    ),
    (
        lambda r: r.data.multi_label != "off" and _one_label_only(r),
        "data.multi_label: data.labels, class_map and sampling, run.plant, run.log_losses, augment.trust, class_weight "
        "and logit_adjustment, meta.*, eval.tta and best_metric are about one label an image; leave them out",
    ),
    (
        lambda r: r.data.multi_label != "off" and _leaves_rest(r),
        "data.multi_label: a target has no share that is uniform over the classes; leave out augment.smoothing, "
        "other_class, copies, mix_layer, train.plain_step; with shift or cutmix set augment.soften to weight or none",
    ),
    (
        lambda r: r.distill.teacher is not None and (r.data.channels != 3 or r.data.multi_label != "off"),
        "distill.teacher: tells one class of an image with three channels; leave it out, or set data.channels to 3 and "
        "data.multi_label to off",
    ),
    (
        lambda r: r.data.multi_label != "separated" and r.data.label_separator != "|",
        "data.label_separator: {r.data.label_separator} does nothing unless data.multi_label=separated; leave it out",
    ),
    (
        lambda r: {len(r.data.mean), len(r.data.std)} != {r.data.channels},
        "data.mean: {r.data.mean} and data.std = {r.data.std} must have a number for each of data.channels = "
        "{r.data.channels}; grey ImageNet has data.mean=[0.459] data.std=[0.226], other channels those of your images, "
        "as docs/data.md measures them",
    ),
    (
        lambda r: r.data.channels not in (1, 3) and bool(r.augment.aa or r.augment.color_jitter),
        "augment.aa: it and augment.color_jitter are for images of colours, and data.channels = {r.data.channels}; "
        "leave them out, and take augment.shift, mixup, cutmix, reprob or cutout",
    ),
    (
        lambda r: r.data.channels not in (1, 3) and r.data.background is not None,
        "data.background: {r.data.background} is a colour, and with data.channels = {r.data.channels} transparency is "
        "a channel; leave it out",
    ),
    (
        lambda r: r.data.channels not in (1, 3) and r.data.exif == "apply",
        "data.exif: files of data.channels = {r.data.channels} are read as they are stored; set it to ignore",
    ),
    (
        lambda r: r.data.channels not in (1, 3) and r.data.root.partition(":")[0] in PACKED,
        "data.channels: {r.data.channels} channels are read from single files, and data.root is {r.data.root}; name a "
        "folder, or set it to 3",
    ),
    (
        lambda r: r.data.channels != 3 and r.eval.tta > 0,
        "eval.tta: its policies are for colours, and data.channels = {r.data.channels}; set it to 0",
    ),
    (
        lambda r: r.data.channels != 3 and (bool({*IMAGE_PARTS} & {*r.meta.learn}) or r.meta.reuse is not None),
        "data.channels: learned operations on images have colours; set it to 3, or leave out of meta.learn and "
        "meta.reuse what changes images",
    ),
    (
        lambda r: bool(r.data.root) and r.data.loader == "synthetic",
        "data.root: has no use with data.loader=synthetic; remove one of them",
    ),
    (
        lambda r: r.data.known_shift_train and r.data.known_shift == "none",
        "data.known_shift_train: there is no shift; set data.known_shift",
    ),
    (
        lambda r: r.train.plain_step and (r.train.accumulate > 1 or r.meta.steps > 1),
        "train.plain_step: takes one micro-batch, and meta.steps do not unroll it; set train.accumulate and meta.steps "
        "to 1, or train.plain_step to false",
    ),
    (
        lambda r: r.train.plain_step and r.augment.copies > 0,
        "train.plain_step: augment.copies = {r.augment.copies} has the image itself in every update; turn one off",
    ),
    (
        lambda r: (
            r.train.plain_step
            and bool({"weights", "labels", "instant_weights", "instant_labels"} & set(r.meta.learn) or r.augment.trim)
        ),
        "train.plain_step: trains on every image with its given label and full weight, which undoes learned weights, "
        "learned labels and augment.trim; turn one of them off",
    ),
    (
        lambda r: _shards(r) and bool(r.meta.learn) and not r.meta.acts_frozen,
        "train.parallel: fsdp2 divides the weights that a meta step differentiates as a whole; set it to ddp, or let "
        "learned parts only act (meta.frozen, meta.reuse)",
    ),
    (
        lambda r: _shards(r) and r.optim.opt.lower() not in SHARDABLE_OPTIMIZERS,
        "train.parallel: fsdp2 was not shown to train alike with optim.opt = {r.optim.opt}; choose one of "
        f"{', '.join(SHARDABLE_OPTIMIZERS)}, or set it to ddp",
    ),
    (
        lambda r: _shards(r) and r.optim.opt.lower() in ("sgd", "momentum") and bool(r.optim.opt_kwargs.get("fused")),
        "optim.opt_kwargs: the fused step of {r.optim.opt} takes no shares of train.parallel=fsdp2; leave fused out",
    ),
    (
        lambda r: _shards(r) and (r.train.precision == "fp16" or r.model.compile or r.eval.tta > 0),
        "train.parallel: fsdp2 goes neither with train.precision=fp16 nor model.compile nor eval.tta; take bf16, leave "
        "model.compile out, and average over copies when it has ended (fastaug evaluate --tta)",
    ),
    (
        lambda r: _shards(r) and r.run.checkpoint_async,
        "run.checkpoint_async: with train.parallel=fsdp2 every process writes its share and waits for it; leave one of "
        "them out",
    ),
    (
        lambda r: _shards(r) and r.optim.clip_mode == "agc",
        "optim.clip_mode: agc takes norms of units, which train.parallel=fsdp2 may cut in two; set it to norm or value",
    ),
    (
        lambda r: _shards(r) and _tells_ddp(r),
        "train.comm_hook: it, train.bucket_cap_mb and gradient_as_bucket_view are of train.parallel=ddp; leave them "
        "out",
    ),
    (
        lambda r: r.train.comm_hook != "none" and bool(r.meta.learn) and not r.meta.acts_frozen,
        "train.comm_hook: the meta step differentiates an update by the whole gradient, not by one in 16 bits or of "
        "low rank; set it to none",
    ),
    (
        lambda r: r.train.batch_size % r.train.accumulate != 0,
        "train.accumulate: {r.train.accumulate} does not divide train.batch_size = {r.train.batch_size}",
    ),
    (
        lambda r: r.train.patience > 0 and (r.eval.every == 0 or r.data.loader == "synthetic"),
        "train.patience: counts evaluations of select, and there are none before the end (eval.every=0, synthetic "
        "images); set eval.every to 1, or train.patience to 0",
    ),
    (
        lambda r: r.optim.warmup_epochs >= r.train.epochs,
        "optim.warmup_epochs: {r.optim.warmup_epochs} leaves nothing of train.epochs = {r.train.epochs}",
    ),
    (
        lambda r: r.optim.cooldown_epochs > 0 and r.optim.sched != "cosine",
        "optim.cooldown_epochs: {r.optim.cooldown_epochs} epochs at optim.min_lr follow on sched=cosine alone; set it "
        "to 0",
    ),
    (
        lambda r: r.optim.cooldown_epochs > 0 and r.optim.warmup_epochs + r.optim.cooldown_epochs >= r.train.epochs,
        "optim.cooldown_epochs: {r.optim.cooldown_epochs} with warmup_epochs = {r.optim.warmup_epochs} leaves nothing "
        "of train.epochs = {r.train.epochs}",
    ),
    (
        lambda r: r.optim.min_lr > r.optim.lr,
        "optim.min_lr: {r.optim.min_lr} is above optim.lr = {r.optim.lr}",
    ),
    (
        lambda r: r.optim.warmup_lr > r.optim.lr and r.optim.warmup_epochs > 0,
        "optim.warmup_lr: {r.optim.warmup_lr} is above optim.lr = {r.optim.lr}",
    ),
    (
        lambda r: r.optim.clip_mode != "norm" and r.optim.clip_grad is None,
        "optim.clip_mode: {r.optim.clip_mode} does nothing unless optim.clip_grad is set; set that, or leave it out",
    ),
    (
        lambda r: r.optim.sched == "plateau" and not r.eval.every,
        "optim.sched: plateau follows evaluations, of which eval.every = 0 makes none; set it to 1",
    ),
    (
        lambda r: r.optim.sched != "plateau" and r.optim.patience_epochs != Recipe().optim.patience_epochs,
        "optim.patience_epochs: {r.optim.patience_epochs} does nothing unless optim.sched is plateau; leave it out",
    ),
    (
        lambda r: [epoch for epoch, _ in r.train.resize] != sorted({epoch for epoch, _ in r.train.resize}),
        "train.resize: epochs of {r.train.resize} must rise",
    ),
    (
        lambda r: any(not (0 <= epoch < r.train.epochs and 1 <= side <= 4096) for epoch, side in r.train.resize),
        "train.resize: {r.train.resize} must hold epochs below train.epochs = {r.train.epochs} and sides of 1 to 4096",
    ),
    (
        lambda r: bool(r.train.resize) and (r.data.loader == "resident" or r.augment.mix_layer is not None),
        "train.resize: data.loader=resident and augment.mix_layer know one size; use dali, and no mix_layer",
    ),
    (
        lambda r: r.distill.teacher is not None and r.distill.pretrained == (r.distill.checkpoint is not None),
        "distill.teacher: {r.distill.teacher} needs trained weights, from one place; set distill.checkpoint or "
        "distill.pretrained",
    ),
    (
        lambda r: (
            r.distill.teacher is not None
            and (r.augment.other_class or r.augment.copies > 0 or r.augment.mix_layer is not None or r.train.plain_step)
        ),
        "distill.teacher: knows no augment.other_class, augment.copies, augment.mix_layer or train.plain_step; turn "
        "those off",
    ),
    (
        lambda r: r.optim.opt_betas is not None and len(r.optim.opt_betas) < 2,
        "optim.opt_betas: {r.optim.opt_betas} needs two numbers or more",
    ),
    (
        lambda r: r.optim.decay_milestones != sorted(set(r.optim.decay_milestones)),
        "optim.decay_milestones: {r.optim.decay_milestones} must rise",
    ),
    (
        lambda r: r.model.head_first_epochs > 0 and r.model.head_first_epochs >= r.train.epochs,
        "model.head_first_epochs: {r.model.head_first_epochs} leaves nothing of train.epochs = {r.train.epochs}; to "
        "train the head alone set model.freeze=[backbone]",
    ),
    (
        lambda r: r.model.stem == "small" and (r.model.head_first_epochs > 0 or "backbone" in r.model.freeze),
        "model.stem: small begins with new weights, which would be frozen; name what is frozen by patterns without the "
        "stem, and set model.head_first_epochs to 0",
    ),
    (
        lambda r: r.data.scale[0] > r.data.scale[1],
        "data.scale: {r.data.scale} must be [smallest, largest]",
    ),
    (
        lambda r: r.data.ratio[0] > r.data.ratio[1],
        "data.ratio: {r.data.ratio} must be [smallest, largest]",
    ),
    (
        lambda r: r.data.test_fraction + r.data.select_fraction + r.data.meta_fraction >= 1,
        "data.test_fraction: with select_fraction and meta_fraction it leaves nothing to train on",
    ),
    (
        lambda r: r.data.loader == "resident" and r.data.crop == "rrc",
        "data.loader: resident keeps one decoded size; set data.crop to whole or center, or use dali",
    ),
    (
        lambda r: (
            r.data.splits is not None and r.data.test_fraction + r.data.select_fraction + r.data.meta_fraction > 0
        ),
        "data.splits: names the splits already; remove data.test_fraction, select_fraction and meta_fraction",
    ),
    (
        lambda r: r.model.pretrained and r.model.initial_checkpoint is not None,
        "model.pretrained: cannot be combined with model.initial_checkpoint; keep one of them",
    ),
    (
        lambda r: is_on_hub(r.model.name) and not r.model.pretrained,
        "model.name: {r.model.name} is fetched from the hub, which model.pretrained = false forbids; name the network "
        "as timm does (resnet50), or set model.pretrained to true",
    ),
    (
        lambda r: bool(_KEYS_OF_OURS & r.model.kwargs.keys()),
        "model.kwargs: {r.model.kwargs} has arguments that are set otherwise; leave out checkpoint_path (it is "
        "model.initial_checkpoint), pretrained (model.pretrained), in_chans (data.channels), num_classes (follows from "
        "the data)",
    ),
    (
        lambda r: r.eval.weights == "ema" and not r.model.ema,
        "eval.weights: ema needs model.ema = true",
    ),
    (
        lambda r: r.augment.other_class and (r.augment.mixup > 0 or r.augment.cutmix > 0),
        "augment.other_class: has no place for two labels; turn augment.mixup and augment.cutmix off",
    ),
    (
        lambda r: r.augment.other_class and r.augment.smoothing > 0,
        "augment.other_class: takes the probability that augment.smoothing spreads; set one of them to its default",
    ),
    (
        lambda r: r.augment.mix_layer is not None and (r.augment.shift > 0 or r.model.compile),
        "augment.mix_layer: does not go with augment.shift or model.compile; turn those off",
    ),
    (
        lambda r: (
            r.augment.mixup_off_epoch > 0
            and (r.augment.mix_layer is not None or not (r.augment.mixup or r.augment.cutmix))
        ),
        "augment.mixup_off_epoch: ends augment.mixup and cutmix of images, which are off or in "
        "augment.mix_layer; set it to 0",
    ),
    (
        lambda r: r.augment.anneal_epochs >= r.train.epochs,
        "augment.anneal_epochs: {r.augment.anneal_epochs} leaves nothing of train.epochs = {r.train.epochs}",
    ),
    (
        lambda r: r.augment.mix_layer is not None and (r.augment.cutmix == 0 or r.augment.mixup > 0),
        "augment.mix_layer: mixes by CutMix alone; set augment.cutmix above 0 and augment.mixup to 0",
    ),
    (
        lambda r: (
            r.augment.mix_group is not None and (r.train.batch_size // r.train.accumulate) % r.augment.mix_group != 0
        ),
        "augment.mix_group: {r.augment.mix_group} does not divide a micro-batch of train.batch_size / train.accumulate",
    ),
    (
        lambda r: r.train.batch_size % r.augment.repeats != 0,
        "augment.repeats: {r.augment.repeats} does not divide train.batch_size = {r.train.batch_size}",
    ),
    (
        lambda r: r.augment.published_weighting and r.augment.loss not in ("ce", "kl"),
        "augment.published_weighting: reproduces a loss of kind kl or ce, not {r.augment.loss}",
    ),
    (
        lambda r: r.augment.trim > 0 and (bool(r.meta.learn) or r.augment.published_weighting),
        "augment.trim: leaves out samples that meta.learn or augment.published_weighting would weigh; set it to 0",
    ),
    (
        lambda r: r.eval.tta > 0 and r.data.channels == 3 and not has_policy(r),
        "eval.tta: {r.eval.tta} copies would all be the image itself; set augment.aa or color_jitter, learn a policy, "
        "or set it to 0",
    ),
    (
        lambda r: r.augment.start_epochs >= r.train.epochs,
        "augment.start_epochs: {r.augment.start_epochs} leaves nothing of train.epochs = {r.train.epochs}",
    ),
    (
        lambda r: r.augment.copies > 0 and (r.augment.mixup > 0 or r.augment.cutmix > 0),
        "augment.copies: a mixed sample is no copy of one image; set augment.mixup and augment.cutmix to 0",
    ),
    (
        lambda r: r.augment.copies > 0 and not _changes_copies(r),
        "augment.copies: {r.augment.copies} copies would all be the image itself; set augment.aa, color_jitter, shift, "
        "hflip, reprob or cutout, learn a policy, or set it to 0",
    ),
    (
        lambda r: r.augment.copies > 0 and r.augment.repeats > 1,
        "augment.copies: comes instead of augment.repeats = {r.augment.repeats}; set that to 1",
    ),
    (
        lambda r: r.augment.copies > 0 and (r.augment.trim > 0 or r.augment.published_weighting),
        "augment.copies: its loss cannot be trimmed or weighted by the batch's mean; set augment.trim to 0 and "
        "augment.published_weighting to false",
    ),
    (
        lambda r: r.augment.copies > 0 and r.augment.clean_loss + r.augment.copies_loss == 0,
        "augment.clean_loss: with augment.copies_loss it is 0, so that no label is learned; raise one of them",
    ),
    (
        lambda r: r.run.log_losses and r.data.loader == "synthetic",
        "run.log_losses: synthetic images have no losses worth keeping; turn it off",
    ),
    (
        lambda r: r.run.plant > 0 and (r.data.loader == "synthetic" or not r.run.sample_record),
        "run.plant: flipped labels tell something through the statistics of run.sample_record alone, which synthetic "
        "images do not have; set it to 0",
    ),
    (
        lambda r: r.augment.trust > 0 and (r.data.loader == "synthetic" or not r.run.sample_record),
        "augment.trust: weights follow from the statistics of run.sample_record, which synthetic images do not have; "
        "turn it on, or set augment.trust to 0",
    ),
    (
        lambda r: r.data.loader == "synthetic" and r.data.sampling != "natural",
        "data.sampling: synthetic images have no classes to draw by; set it to natural",
    ),
    (
        lambda r: r.data.sampling != "natural" and r.augment.trust > 0,
        "data.sampling: {r.data.sampling} draws images several times an epoch, and augment.trust reads what the epochs "
        "before said of them; take augment.class_weight or logit_adjustment instead, or set augment.trust to 0",
    ),
    (
        lambda r: r.data.sampling != "natural" and (r.augment.repeats > 1 or r.augment.copies > 0),
        "data.sampling: {r.data.sampling} repeats images in an epoch itself; set augment.repeats to 1 and "
        "augment.copies to 0",
    ),
    (
        lambda r: r.augment.logit_adjustment > 0 and (r.data.sampling == "balanced" or r.data.loader == "synthetic"),
        "augment.logit_adjustment: does nothing where classes are drawn evenly (data.sampling=balanced, synthetic "
        "images); turn one of them off",
    ),
    (
        lambda r: r.augment.class_weight in ("inverse", "effective") and r.data.sampling == "balanced",
        "augment.class_weight: {r.augment.class_weight} is 1 for all classes where data.sampling=balanced; turn one "
        "of them off",
    ),
    (
        lambda r: r.augment.class_weight != "none" and r.data.loader == "synthetic",
        "augment.class_weight: synthetic images have no labels worth weighing; set it to none",
    ),
    (
        lambda r: (
            r.augment.class_weight != "none"
            and (r.augment.trim > 0 or r.augment.published_weighting or r.train.plain_step)
        ),
        "augment.class_weight: augment.trim, augment.published_weighting and train.plain_step undo weights of single "
        "images; turn them off, or set it to none",
    ),
    (
        lambda r: r.meta.train_weight != 1 and not r.meta.acts_frozen,
        "meta.train_weight: meta images are trained on where nothing learns from them; set meta.frozen=true, or leave "
        "it out",
    ),
    (
        lambda r: r.run.plant_like is not None and not r.run.plant,
        "run.plant_like: nothing is flipped; set run.plant, say to 0.01, or leave it out",
    ),
    (
        lambda r: r.run.dir is not None and not r.run.dir.strip(),
        "run.dir: is empty; leave it out for runs/<name of the recipe>",
    ),
]


def _losses(recipe: Recipe) -> set[str]:
    return {recipe.augment.loss, *([recipe.meta.validation_loss] if recipe.meta.learn else [])}


# Keys of `augment` that do nothing on their own.
_NEEDS: list[Need] = [
    (lambda r: "bce" in _losses(r), "augment.loss or meta.validation_loss is bce", ["bce_target_thresh", "bce_sum"]),
    (lambda r: "focal" in _losses(r), "augment.loss or meta.validation_loss is focal", ["focal_gamma"]),
    (lambda r: "gce" in _losses(r), "augment.loss or meta.validation_loss is gce", ["gce_q"]),
    (lambda r: r.augment.fill == "constant", "augment.fill is constant", ["fill_value"]),
    (lambda r: r.augment.reprob > 0, "augment.reprob is above 0", ["remode", "recount"]),
    (
        lambda r: r.augment.shift > 0,
        "augment.shift is above 0",
        [
            *("shift_dist", "shift_limit", "fill", "anneal_epochs"),
            *("soften_k", "soften_threshold", "soften_visibility", "soften_rule"),
        ],
    ),
    (lambda r: r.augment.anneal_epochs > 0, "augment.anneal_epochs is above 0", ["anneal_factor"]),
    (
        lambda r: r.augment.mixup > 0 or r.augment.cutmix > 0,
        "augment.mixup or augment.cutmix is above 0",
        ["mixup_prob", "mixup_mode", "mix_group", "lam_fold"],
    ),
    (
        lambda r: r.augment.mixup > 0 and r.augment.cutmix > 0,
        "both augment.mixup and augment.cutmix are above 0",
        ["mixup_switch_prob"],
    ),
    (lambda r: r.augment.cutmix > 0, "augment.cutmix is above 0", ["soften_rule"]),
    (
        lambda r: r.augment.soften != "none",
        "augment.soften is not none",
        ["soften_k", "soften_p_max", "soften_threshold", "soften_visibility", "soften_rule"],
    ),
    (lambda r: r.augment.mix_layer is None, "augment.mix_layer is null", ["soften_p_max"]),
    (
        lambda r: r.augment.copies > 0,
        "augment.copies is above 0",
        ["clean_loss", "copies_loss", "consistency", "consistency_detach"],
    ),
    (has_policy, "augment.aa or augment.color_jitter is set, or a policy learns", ["start_epochs"]),
    (
        lambda r: r.augment.class_weight == "effective",
        "augment.class_weight is effective",
        ["class_weight_beta"],
    ),
    (lambda r: r.augment.consistency > 0, "augment.consistency is above 0", ["consistency_detach"]),
    (lambda r: r.augment.soften in ("both", "target"), "augment.soften is both or target", ["other_class"]),
]


_MODEL_NEEDS: list[Need] = [
    (
        lambda r: r.model.initial_checkpoint is not None,
        "model.initial_checkpoint is set",
        ["checkpoint_keys", "checkpoint_fit"],
    ),
]
_OPTIM_NEEDS: list[Need] = [
    (lambda r: r.optim.sched == "step", "optim.sched is step", ["decay_epochs"]),
    (lambda r: r.optim.sched == "multistep", "optim.sched is multistep", ["decay_milestones"]),
    (
        lambda r: r.optim.sched in ("step", "multistep", "plateau"),
        "optim.sched is step, multistep or plateau",
        ["decay_rate"],
    ),
]
_RUN_NEEDS: list[Need] = [(lambda r: bool(r.run.trackers), "run.trackers names one", ["project"])]
_EVAL_NEEDS: list[Need] = [(lambda r: r.data.multi_label != "off", "data.multi_label is on", ["threshold"])]
_DISTILL_NEEDS: list[Need] = [
    (
        lambda r: r.distill.teacher is not None,
        "distill.teacher is set",
        ["pretrained", "checkpoint", "checkpoint_keys", "kwargs", "weight", "temperature", "mean", "std"],
    ),
]


def key_of(problem: str) -> str:
    """The key that a problem's text begins with."""
    return problem.partition(":")[0]


def validate(recipe: Recipe, unusable: set[str] | None = None) -> list[str]:
    """Every broken rule, each as "key: value, what is allowed"; an empty list when the recipe is sound.

    Rules that read one of the keys in `unusable` say nothing: its value is a stand-in.
    """
    problems, broken_keys = [], unusable or set()
    for broken, message in [*_RULES, *META_RULES]:
        try:
            if broken(_Sections(recipe, broken_keys)):  # type: ignore[arg-type]
                problems.append(message.format(r=recipe))
        except _BrokenKey:
            continue  # what the rule says would be said of a stand-in
    idle = _idle_problems(recipe, "augment", _NEEDS, broken_keys)
    for section, needs in (
        *(("run", _RUN_NEEDS), ("model", _MODEL_NEEDS), ("optim", _OPTIM_NEEDS)),
        *(("eval", _EVAL_NEEDS), ("distill", _DISTILL_NEEDS)),
    ):
        idle += _idle_problems(recipe, section, needs, broken_keys)
    return problems + idle + (_idle_problems(recipe, "meta", META_NEEDS, broken_keys) if recipe.meta.learn else [])


def _idle_problems(recipe: Recipe, section: str, needs: list[Need], broken_keys: set[str]) -> list[str]:
    """Each key of `section` that differs from its default and does nothing, with all that it lacks."""
    lacks: dict[str, list[str]] = {}
    for met, need, keys in needs:
        try:
            if not met(_Sections(recipe, broken_keys)):  # type: ignore[arg-type]
                for key in keys:
                    lacks.setdefault(key, []).append(need)
        except _BrokenKey:
            continue
    given, usual = getattr(recipe, section), getattr(Recipe(), section)
    values = {key: getattr(given, key) for key in lacks if f"{section}.{key}" not in broken_keys}
    return [
        f"{section}.{key}: {value} does nothing unless {' and '.join(lacks[key])}; leave it out, or set it to its "
        f"default, {json.dumps(getattr(usual, key))}"
        for key, value in values.items()
        if value != getattr(usual, key)
    ]


class _BrokenKey(Exception):
    """A rule read a key that has a problem of its own."""


class _Sections:
    """A recipe for rules: reading a key that is broken ends the rule."""

    def __init__(self, recipe: Recipe, broken: set[str]) -> None:
        self._recipe, self._broken = recipe, broken

    def __getattr__(self, section: str) -> "_Keys":
        return _Keys(getattr(self._recipe, section), section, self._broken)


class _Keys:
    """One section for rules."""

    def __init__(self, values: Any, section: str, broken: set[str]) -> None:
        self._values, self._section, self._broken_keys = values, section, broken

    def __getattr__(self, key: str) -> Any:
        if f"{self._section}.{key}" in self._broken_keys:
            raise _BrokenKey
        return getattr(self._values, key)
