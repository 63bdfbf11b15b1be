"""timm's arguments of augmentation and loss."""

import math

from fastaug.recipe.timm_script.conversion import Conversion
from fastaug.recipe.timm_script.images import IMAGENET
from fastaug.recipe.timm_script.training import update_size


def crops(c: Conversion) -> None:
    if c["no_aug"]:
        note = "the middle of each image" if c.keys.get("data.crop_pct", IMAGENET["crop_pct"]) == 1 else ""
        if note:
            c.sets("no_aug", note, data__crop="center", augment__hflip=0.0)
        else:
            why = "timm shrinks the short side to img_size, this to img_size / crop_pct; --crop-pct 1 is the same"
            c.lacks("no_aug", why, data__crop="center", augment__hflip=0.0)
        for name in ("scale", "ratio", "hflip", "color_jitter", "aa", "reprob", "remode", "recount"):
            c.idle(name, "--no-aug")
        for name in ("vflip", "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "train_crop_mode"):
            c.idle(name, "--no-aug")
        return
    c.idle("no_aug", "augmented")
    c.sets("scale", data__scale=[float(value) for value in c["scale"]])
    c.sets("ratio", data__ratio=[float(value) for value in c["ratio"]])
    c.sets("hflip", augment__hflip=float(c["hflip"]))
    if c["train_crop_mode"] == "rrc":
        c.idle("train_crop_mode", "random resized crops")
    _colours(c)
    _erasing(c)


def _colours(c: Conversion) -> None:
    policy = c["aa"] or None
    c.sets("aa", augment__aa=policy)
    if policy and "3a" not in policy:
        c.idle("color_jitter", "timm leaves it out where --aa is given")
    elif c["color_jitter"] is None:
        c.idle("color_jitter", "none")
    else:
        c.sets("color_jitter", augment__color_jitter=float(c["color_jitter"]))


def _erasing(c: Conversion) -> None:
    c.sets("reprob", augment__reprob=float(c["reprob"]))
    for name in ("remode", "recount"):
        if c["reprob"]:
            c.sets(name, **{f"augment__{name}": c[name]})
        else:
            c.idle(name, "without --reprob it says nothing")


def repeats(c: Conversion) -> None:
    repeats, update = c["aug_repeats"], update_size(c)
    if not repeats or repeats == 1:
        c.idle("aug_repeats", "each image once")
    elif c.source.processes == 1:
        c.lacks("aug_repeats", "timm's script refuses it with one process; each image once")
    elif repeats != int(repeats) or update % int(repeats):
        low = update // math.ceil(repeats) * math.ceil(repeats)
        why = f"each image once: {repeats:g} copies do not divide {update} images; train.batch_size: {low} would"
        c.lacks("aug_repeats", why)
    else:
        c.sets("aug_repeats", augment__repeats=int(repeats))


def mixing(c: Conversion) -> None:
    minmax = c["cutmix_minmax"]
    cutmix = 1.0 if minmax is not None else float(c["cutmix"])
    mixup = float(c["mixup"])
    c.sets("mixup", augment__mixup=mixup)
    if minmax is None:
        c.sets("cutmix", augment__cutmix=cutmix)
    else:
        c.idle("cutmix", "--cutmix-minmax overrules it")
        c.lacks("cutmix_minmax", augment__cutmix=cutmix)
    if not mixup and not cutmix:
        for name in ("mixup_prob", "mixup_switch_prob", "mixup_mode", "mixup_off_epoch", "mixup_elem"):
            c.idle(name, "nothing is mixed")
        return
    c.sets("mixup_prob", augment__mixup_prob=float(c["mixup_prob"]))
    if mixup and cutmix:
        c.sets("mixup_switch_prob", augment__mixup_switch_prob=float(c["mixup_switch_prob"]))
    else:
        c.idle("mixup_switch_prob", "one of the two is off")
    c.sets("mixup_off_epoch", augment__mixup_off_epoch=c["mixup_off_epoch"])
    mode = "elem" if c["mixup_elem"] else c["mixup_mode"]
    c.idle("mixup_elem", "mixup_mode: elem" if c["mixup_elem"] else "not given")
    if mode == "pair":
        c.lacks("mixup_mode", "one draw for a batch; elem draws for each image", augment__mixup_mode="batch")
    else:
        c.sets("mixup_mode", augment__mixup_mode=mode)


def loss(c: Conversion) -> None:
    asked = c["loss"] or ("bce" if c["bce_loss"] else "ce")
    if asked not in ("ce", "bce"):
        c.lacks("loss", f"{asked} is not here; cross-entropy")
    binary = asked == "bce"
    for name in ("bce_loss", "loss"):
        if name in c.rows:
            continue
        if binary and (c["loss"] if name == "loss" else c["bce_loss"]):
            before = c["smoothing"] == 0 and not (c["mixup"] or c["cutmix"] or c["cutmix_minmax"])
            note = "timm to 1.0.29 took cross-entropy where nothing is mixed or smoothed" if before else ""
            c.sets(name, note, augment__loss="bce")
        else:
            c.idle(name, f"the loss is {'bce' if binary else 'cross-entropy'}")
    if binary and c["bce_target_thresh"] is not None:
        c.sets("bce_target_thresh", augment__bce_target_thresh=c["bce_target_thresh"])
    else:
        c.idle("bce_target_thresh", "none" if binary else "of bce_loss")
    if binary:
        c.sets("bce_sum", augment__bce_sum=c["bce_sum"])
    else:
        c.idle("bce_sum", "of bce_loss")
