import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML

from fastaug.commands import train
from fastaug.errors import RecipeError
from fastaug.recipe import rules as recipe_rules
from fastaug.recipe.reading import (
    UNTRAINED,
    as_override,
    differences,
    parse_yaml,
    read_recipe,
    read_untrained,
    to_yaml,
)
from fastaug.recipe.rules import validate
from fastaug.recipe.schema import RESUMABLE, SCHEMA, Augment, Data, Model, Optim, Recipe, Run, Tracker

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
STUDIES = [path for path in sorted((ROOT / "docs" / "studies").glob("*.yaml")) if "arms:" in path.read_text()]
GOOD = "data: {root: images}\n"


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, list(overrides))


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text, *overrides)
    return caught.value.problems


# id: (YAML text, overrides, what the one problem must say)
BAD: dict[str, tuple[str, list[str], str]] = {
    "unknown section, near": (
        GOOD + "optm: {lr: 1}",
        [],
        "optm: unknown key; did you mean 'optim'? (known: run, data,",
    ),
    "unknown section, far": (GOOD + "xyzzy: 1", [], "xyzzy: unknown key (known: run, data,"),
    "unknown key, near": (
        GOOD + "optim: {weight_decai: 1}",
        [],
        "optim.weight_decai: unknown key; did you mean 'weight_decay'?",
    ),
    "unknown key, far": (GOOD + "run: {xyzzy: 1}", [], "run.xyzzy: unknown key (known: dir, seed,"),
    "unknown key, number": (GOOD + "run: {7: 1}", [], "run.7: unknown key"),
    "unknown key, override": (GOOD, ["model.nane=x"], "model.nane: unknown key; did you mean 'name'?"),
    "key of another section": (GOOD + "train: {lr: 1}", [], "train.lr: unknown key"),
    "section is a number": (GOOD + "optim: 3", [], "optim: expected a mapping of keys, got 3 (int)"),
    "section is null": (GOOD + "optim:", [], "optim: expected a mapping of keys, got None (NoneType)"),
    "text for int": (GOOD + "train: {epochs: ten}", [], "train.epochs: expected int, got 'ten' (str)"),
    "float for int": (GOOD + "train: {epochs: 3.0}", [], "train.epochs: expected int, got 3.0 (float)"),
    "bool for int": (GOOD + "train: {epochs: true}", [], "train.epochs: expected int, got True (bool)"),
    "bool for float": (GOOD + "optim: {lr: true}", [], "optim.lr: expected float, got True (bool)"),
    "int for bool": (GOOD + "model: {ema: 1}", [], "model.ema: expected bool, got 1 (int)"),
    "yes for bool": (GOOD + "model: {ema: yes}", [], "model.ema: expected bool, got 'yes' (str)"),
    "int for text": (GOOD + "model: {name: 50}", [], "model.name: expected str, got 50 (int)"),
    "null for int": (GOOD + "run: {seed: null}", [], "run.seed: expected int, got None (NoneType)"),
    "text in list": ("data: {root: x, std: [1, 1, a]}", [], "data.std: expected list of float, got [1, 1, 'a'] (list)"),
    "list for mapping": (GOOD + "model: {kwargs: [1]}", [], "model.kwargs: expected mapping, got [1] (list)"),
    "float or null": (GOOD + "optim: {clip_grad: a}", [], "optim.clip_grad: expected float or null, got 'a' (str)"),
    "quoted 1e-3": (
        GOOD + "optim: {lr: '1e-3'}",
        [],
        "optim.lr: expected float, got '1e-3' (str); write it without quotes",
    ),
    "quoted true": (
        GOOD + "model: {ema: 'true'}",
        [],
        "model.ema: expected bool, got 'true' (str); write it without quotes",
    ),
    "below": (GOOD + "optim: {lr: 0}", [], "optim.lr: 0.0 must be above 0"),
    "negative": (GOOD + "run: {seed: -1}", [], "run.seed: -1 must be at least 0"),
    "too high": (GOOD + "augment: {hflip: 1.5}", [], "augment.hflip: 1.5 must be at most 1"),
    "one too many": (GOOD + "model: {drop: 1}", [], "model.drop: 1.0 must be below 1"),
    "in a list": ("data: {root: x, std: [0.1, 0, 0.1]}", [], "data.std: 0.0 must be at least 1e-06"),
    "nan": (GOOD + "optim: {lr: .nan}", [], "optim.lr: nan is not a finite number"),
    "inf": (GOOD + "optim: {lr: .inf}", [], "optim.lr: inf is not a finite number"),
    "overflow": (GOOD + "optim: {lr: 1e999}", [], "optim.lr: inf is not a finite number"),
    "nan in a list": ("data: {root: x, mean: [0, .nan, 0]}", [], "data.mean: nan is not a finite number"),
    "nan without other limits": (GOOD, ["data.mean=[0, 0, .inf]"], "data.mean: inf is not a finite number"),
    "too few": ("data: {root: x, scale: [0.5]}", [], "data.scale: [0.5] must have 2 numbers"),
    "no channels": (GOOD, ["data.channels=0"], "data.channels: 0 must be at least 1"),
    "many channels": (GOOD, ["data.channels=65"], "data.channels: 65 must be at most 64"),
    "no colour": (GOOD, ["data.background=grey"], "data.background: "),
    "too large a seed": (GOOD, [f"run.seed={2**63}"], f"run.seed: {2**63} must be at most {2**63 - 1}"),
    "choice": ("data: {root: x, loader: dalli}", [], "data.loader: 'dalli' is not one of dali, resident, synthetic"),
    "choice in a list": (
        GOOD,
        ["run.trackers=[wandb, neptune]"],
        "run.trackers: 'neptune' is not one of aim, clearml, comet_ml, csv",
    ),
    "duplicate key": (GOOD + "run: {seed: 1, seed: 2}", [], "not valid YAML: key 'seed' stands twice, again in line 2"),
    "duplicate section": (GOOD + "run: {seed: 1}\nrun: {keep: 2}", [], "key 'run' stands twice, again in line 3"),
    "alias": (GOOD + "run: &a {seed: 1}\ntrain: *a", [], "aliases (*name) are not allowed"),
    "merge key": (GOOD + "run: {<<: {seed: 1}}", [], "not valid YAML: merge keys (<<) are not allowed"),
    "python tag": (
        GOOD + "run: {dir: !!python/object/apply:os.getcwd []}",
        [],
        "not valid YAML: tags (!name) are not allowed",
    ),
    "own tag": (
        GOOD + "run: {dir: !env HOME}",
        [],
        "not valid YAML: tags (!name) are not allowed",
    ),
    "no YAML": ("data: {root: x", [], "not valid YAML"),
    "two documents": (GOOD + "---\nrun: {}", [], "not valid YAML: expected a single document"),
    "tab": ("data:\n\troot: x", [], "not valid YAML"),
    "override without value": (GOOD, ["run.seed"], "'run.seed': an override is written section.key=value"),
    "override without key": (GOOD, ["=3"], "'=3': an override is written section.key=value"),
    "override with a gap": (GOOD, ["run..seed=3"], "'run..seed=3': an override is written section.key=value"),
    "override of no YAML": (GOOD, ["run.dir=[1"], "run.dir: '[1' is not a YAML value"),
    "override below a key": (GOOD, ["run.seed.x=3"], "run.seed: expected int, got {'x': 3} (dict)"),
    "override of a section": (GOOD, ["run=3"], "run: expected a mapping of keys, got 3 (int)"),
    "override below a text": ("data: {root: x}\nrun: {dir: a}", ["run.dir.x=3"], "run.dir.x: run.dir is not a section"),
    "octal is no number": (GOOD + "run: {seed: 0o17}", [], "run.seed: expected int, got '0o17' (str)"),
    "underscore is no number": (GOOD + "run: {seed: 1_000}", [], "run.seed: expected int, got '1_000' (str)"),
    "policy": (GOOD + "augment: {aa: rnad-m9}", [], "augment.aa: "),
    "number for list": (GOOD, ["data.mean=0.5"], "data.mean: expected list of float, got 0.5 (float)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recipe_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    text, overrides, message = BAD[name]
    (found,) = problems(tmp_path, text, *overrides)
    assert message in found
    assert "\n" not in found


MANY = ["data.table=t.csv", "data.multi_label=separated", "augment.loss=bce"]
GREY = ["data.channels=1", "data.mean=[0.5]", "data.std=[0.5]"]
FIVE = ["data.channels=5", "data.mean=[0, 0, 0, 0, 0]", "data.std=[1, 1, 1, 1, 1]"]

# Each rule that joins keys: overrides that break it and nothing else, and the key that must be named.
BROKEN_RULES: dict[str, tuple[list[str], str]] = {
    "no root": (["data.root=''"], "data.root: not set"),
    "root of synthetic": (["data.loader=synthetic"], "data.root: has no use with data.loader=synthetic"),
    "accumulate": (
        ["train.batch_size=10", "train.accumulate=3"],
        "train.accumulate: 3 does not divide train.batch_size = 10",
    ),
    "warm-up": (
        ["train.epochs=5", "optim.warmup_epochs=5"],
        "optim.warmup_epochs: 5.0 leaves nothing of train.epochs = 5",
    ),
    "min_lr": (["optim.lr=0.1", "optim.min_lr=0.2"], "optim.min_lr: 0.2 is above optim.lr = 0.1"),
    "warmup_lr": (["optim.warmup_epochs=1", "optim.warmup_lr=0.2"], "optim.warmup_lr: 0.2 is above optim.lr = 0.1"),
    "cool-down of steps": (
        ["optim.sched=step", "optim.cooldown_epochs=2"],
        "optim.cooldown_epochs: 2 epochs at optim.min_lr follow on sched=cosine alone",
    ),
    "nothing but cool-down": (
        ["train.epochs=5", "optim.warmup_epochs=2", "optim.cooldown_epochs=3"],
        "optim.cooldown_epochs: 3 with warmup_epochs = 2.0 leaves nothing of train.epochs = 5",
    ),
    "end of no mixing": (["augment.mixup_off_epoch=3"], "augment.mixup_off_epoch: ends augment.mixup and cutmix"),
    "end of mixing in a layer": (
        ["augment.mixup_off_epoch=3", "augment.cutmix=1", "augment.mix_layer=layer1"],
        "augment.mixup_off_epoch: ends augment.mixup and cutmix",
    ),
    "head alone": (
        ["train.epochs=5", "model.head_first_epochs=5"],
        "model.head_first_epochs: 5.0 leaves nothing of train.epochs = 5; to train the head alone",
    ),
    "new stem, frozen": (["model.stem=small", "model.freeze=[backbone]"], "model.stem: small begins with new weights"),
    "clipping nothing": (["optim.clip_mode=agc"], "optim.clip_mode: agc does nothing unless optim.clip_grad is set"),
    "plateau of nothing": (
        ["optim.sched=plateau", "eval.every=0"],
        "optim.sched: plateau follows evaluations, of which eval.every = 0 makes none",
    ),
    "patience of nothing": (["optim.patience_epochs=3"], "optim.patience_epochs: 3 does nothing unless optim.sched is"),
    "sizes out of order": (["train.resize=[[3, 64], [1, 32]]"], "train.resize: epochs of [[3, 64], [1, 32]] must rise"),
    "sizes too late": (["train.epochs=3", "train.resize=[[3, 64]]"], "train.resize: [[3, 64]] must hold epochs below"),
    "sizes of what is kept": (
        ["train.resize=[[1, 64]]", "data.loader=resident", "data.crop=whole"],
        "train.resize: data.loader=resident and augment.mix_layer know one size",
    ),
    "teacher without weights": (["distill.teacher=resnet18"], "distill.teacher: resnet18 needs trained weights"),
    "steps of a cosine": (["optim.decay_epochs=5"], "optim.decay_epochs: 5.0 does nothing unless optim.sched is step"),
    "milestones of a cosine": (["optim.decay_milestones=[3, 5]"], "optim.decay_milestones: [3, 5] does nothing unless"),
    "decay of a cosine": (
        ["optim.decay_rate=0.5"],
        "optim.decay_rate: 0.5 does nothing unless optim.sched is",
    ),
    "project of no tracker": (["run.project=a"], "run.project: a does nothing unless run.trackers names one"),
    "no teacher": (["distill.weight=0.9"], "distill.weight: 0.9 does nothing unless distill.teacher is set"),
    "teacher of copies": (
        ["distill.teacher=resnet18", "distill.pretrained=true", "augment.copies=1"],
        "distill.teacher: knows no augment.other_class, augment.copies, augment.mix_layer or train.plain_step",
    ),
    "betas": (["optim.opt_betas=[0.9]"], "optim.opt_betas: [0.9] needs two numbers or more"),
    "milestones": (
        ["optim.sched=multistep", "optim.decay_milestones=[30, 20]"],
        "optim.decay_milestones: [30, 20] must rise",
    ),
    "milestones twice": (
        ["optim.sched=multistep", "optim.decay_milestones=[30, 30]"],
        "optim.decay_milestones: [30, 30] must rise",
    ),
    "scale": (["data.scale=[0.9, 0.1]"], "data.scale: [0.9, 0.1] must be [smallest, largest]"),
    "ratio": (["data.ratio=[2, 1]"], "data.ratio: [2.0, 1.0] must be [smallest, largest]"),
    "fractions": (["data.test_fraction=0.5", "data.meta_fraction=0.5"], "data.test_fraction: with select_fraction"),
    "resident": (["data.loader=resident"], "data.loader: resident keeps one decoded size"),
    "trust of nothing": (
        ["augment.trust=2", "run.sample_record=false"],
        "augment.trust: weights follow from the statistics of run.sample_record",
    ),
    "weight of what is held out": (
        ["meta.learn=[weights]", "data.meta_fraction=0.1", "meta.train_weight=5"],
        "meta.train_weight: meta images are trained on where nothing learns from them",
    ),
    "splits": (["data.splits=s", "data.select_fraction=0.1"], "data.splits: names the splits already"),
    "two weights": (["model.pretrained=true", "model.initial_checkpoint=x"], "model.pretrained: cannot be combined"),
    "hub without weights": (["model.name='hf-hub:timm/x'"], "model.name: hf-hub:timm/x is fetched from the hub"),
    "arguments of ours": (
        ["model.kwargs={checkpoint_path: x}"],
        "model.kwargs: {'checkpoint_path': 'x'} has arguments",
    ),
    "no average": (["eval.weights=ema"], "eval.weights: ema needs model.ema = true"),
    "other class, two labels": (["augment.other_class=true", "augment.cutmix=1"], "augment.other_class: has no place"),
    "other class, smoothing": (["augment.other_class=true", "augment.smoothing=0.1"], "augment.other_class: takes"),
    "mixing in a layer": (["augment.mix_layer=layer1"], "augment.mix_layer: mixes by CutMix alone"),
    "mixing in a layer and shifting": (
        ["augment.mix_layer=layer1", "augment.cutmix=1", "augment.shift=0.2"],
        "augment.mix_layer: does not go with augment.shift",
    ),
    "annealing all the time": (
        ["augment.shift=0.2", "augment.anneal_epochs=100"],
        "augment.anneal_epochs: 100 leaves nothing of",
    ),
    "no shift": (["data.known_shift_train=true"], "data.known_shift_train: there is no shift; set data.known_shift"),
    "two steps and weights": (
        ["train.plain_step=true", "meta.learn=[weights]"],
        "train.plain_step: trains on every image with its given label",
    ),
    "two steps and labels": (
        ["train.plain_step=true", "meta.learn=[labels]"],
        "train.plain_step: trains on every image with its given label",
    ),
    "two steps and copies": (["train.plain_step=true", "augment.copies=1"], "train.plain_step: augment.copies = 1"),
    "two steps": (["train.plain_step=true", "train.accumulate=2"], "train.plain_step: takes one micro-batch"),
    "a divided network and its meta step": (
        ["train.parallel=fsdp2", "meta.learn=[weights]", "data.meta_fraction=0.1"],
        "train.parallel: fsdp2 divides the weights that a meta step differentiates",
    ),
    "a divided network, another optimizer": (
        ["train.parallel=fsdp2", "optim.opt=muon"],
        "train.parallel: fsdp2 was not shown to train alike with optim.opt = muon; choose one of sgd,",
    ),
    "a fused step of shares": (
        ["train.parallel=fsdp2", "optim.opt=sgd", "optim.opt_kwargs={fused: true}"],
        "optim.opt_kwargs: the fused step of sgd takes no shares of train.parallel=fsdp2",
    ),
    "a divided network compiled": (
        ["train.parallel=fsdp2", "model.compile=true"],
        "train.parallel: fsdp2 goes neither with train.precision=fp16 nor model.compile",
    ),
    "units of a divided network": (
        ["train.parallel=fsdp2", "optim.clip_mode=agc", "optim.clip_grad=0.01"],
        "optim.clip_mode: agc takes norms of units, which train.parallel=fsdp2 may cut in two",
    ),
    "a divided network's checkpoints": (
        ["train.parallel=fsdp2", "run.checkpoint_async=true"],
        "run.checkpoint_async: with train.parallel=fsdp2 every process writes its share and waits for it",
    ),
    "a divided network's hook": (
        ["train.parallel=fsdp2", "train.comm_hook=bf16"],
        "train.comm_hook: it, train.bucket_cap_mb and gradient_as_bucket_view are of train.parallel=ddp",
    ),
    "a meta step of other gradients": (
        ["train.comm_hook=bf16", "meta.learn=[weights]", "data.meta_fraction=0.1"],
        "train.comm_hook: the meta step differentiates an update by the whole gradient",
    ),
    "group": (["augment.cutmix=1", "augment.mix_group=7"], "augment.mix_group: 7 does not divide a micro-batch"),
    "repeats": (
        ["train.batch_size=10", "augment.repeats=3"],
        "augment.repeats: 3 does not divide train.batch_size = 10",
    ),
    "weighting": (["augment.published_weighting=true", "augment.loss=bce"], "augment.published_weighting: reproduces"),
    "trimmed and weighed": (
        ["augment.trim=0.1", "augment.published_weighting=true"],
        "augment.trim: leaves out samples",
    ),
    "losses of nothing": (
        ["data.root=''", "data.loader=synthetic", "run.log_losses=true"],
        "run.log_losses: synthetic images have no losses",
    ),
    "planted in nothing": (["run.plant=0.01", "run.sample_record=false"], "run.plant: flipped labels tell something"),
    "planted in most": (["run.plant=0.99"], "run.plant: 0.99 must be at most 0.5"),
    "planted like none": (["run.plant_like=runs/first"], "run.plant_like: nothing is flipped"),
    "empty folder": (["run.dir='  '"], "run.dir: is empty"),
    "policies too late": (["augment.aa=ra-n2-m9", "augment.start_epochs=100"], "augment.start_epochs: 100 leaves"),
    "copies of mixtures": (["augment.copies=2", "augment.cutmix=1"], "augment.copies: a mixed sample is no copy"),
    "copies, repeats": (["augment.copies=2", "augment.repeats=2"], "augment.copies: comes instead of augment.repeats"),
    "copies, trimmed": (["augment.copies=2", "augment.trim=0.1"], "augment.copies: its loss cannot be trimmed"),
    "copies that are the image": (["augment.copies=2", "augment.hflip=0"], "augment.copies: 2 copies would all be"),
    "copies without labels": (
        ["augment.copies=2", "augment.clean_loss=0", "augment.copies_loss=0"],
        "augment.clean_loss: with augment.copies_loss it is 0",
    ),
    "patience at the end": (
        ["train.patience=3", "eval.every=0"],
        "train.patience: counts evaluations of select, and there are none before the end",
    ),
    "synthetic classes drawn": (
        ["data.root=''", "data.loader=synthetic", "data.sampling=sqrt"],
        "data.sampling: synthetic images have no classes to draw by",
    ),
    "images repeated twice": (
        ["data.sampling=sqrt", "augment.repeats=2"],
        "data.sampling: sqrt repeats images in an epoch itself",
    ),
    "even classes adjusted": (
        ["data.sampling=balanced", "augment.logit_adjustment=1"],
        "augment.logit_adjustment: does nothing where classes are drawn evenly",
    ),
    "even classes weighed": (
        ["data.sampling=balanced", "augment.class_weight=inverse"],
        "augment.class_weight: inverse is 1 for all classes where data.sampling=balanced",
    ),
    "synthetic classes weighed": (
        ["data.root=''", "data.loader=synthetic", "augment.class_weight=inverse"],
        "augment.class_weight: synthetic images have no labels worth weighing",
    ),
    "class weights undone": (
        ["augment.class_weight=[1,2]", "augment.trim=0.1"],
        "augment.class_weight: augment.trim, augment.published_weighting and train.plain_step undo",
    ),
    "images of nothing": (
        ["data.root=''", "data.loader=synthetic", "data.table=t.csv"],
        "data.table: data.loader=synthetic reads no images",
    ),
    "drawn twice and trusted": (
        ["data.sampling=sqrt", "augment.trust=4"],
        "data.sampling: sqrt draws images several times an epoch, and augment.trust",
    ),
    "names of no file": (
        ["model.checkpoint_keys=efficientnet_lite0"],
        "model.checkpoint_keys: efficientnet_lite0 does nothing unless model.initial_checkpoint is set",
    ),
    "threshold of one label": (
        ["eval.threshold=0.9"],
        "eval.threshold: 0.9 does nothing unless data.multi_label is on",
    ),
    "a teacher of grey": (
        ["distill.teacher=resnet18", "distill.pretrained=true", "data.channels=1", "data.mean=[0.5]", "data.std=[0.2]"],
        "distill.teacher: tells one class of an image with three channels",
    ),
    "folders of a table": (
        ["data.table=t.csv", "data.class_level=leaf"],
        "data.class_level: leaf is about folders, and data.table names the classes",
    ),
    "means of other channels": (["data.channels=1"], "data.mean: [0.485, 0.456, 0.406] and data.std = [0.229"),
    "means of five channels": (["data.channels=5"], "data.mean: [0.485, 0.456, 0.406] and data.std = [0.229"),
    "a policy for five channels": ([*FIVE, "augment.aa=ta_wide"], "augment.aa: it and augment.color_jitter are for"),
    "jitter of five channels": ([*FIVE, "augment.color_jitter=0.3"], "augment.aa: it and augment.color_jitter are"),
    "five channels over a colour": ([*FIVE, "data.background=white"], "data.background: [255, 255, 255] is a colour"),
    "five channels turned": ([*FIVE, "data.exif=apply"], "data.exif: files of data.channels = 5 are read as they are"),
    "five channels packed": ([*FIVE, "data.root=wds:/x"], "data.channels: 5 channels are read from single files"),
    "colours of five channels": (
        [*FIVE, "meta.learn=[policy]", "data.meta_fraction=0.1"],
        "data.channels: learned operations on images have colours",
    ),
    "copies of grey": ([*GREY, "eval.tta=2", "augment.aa=ra-n2-m9"], "eval.tta: its policies are for colours"),
    "colours of grey": (
        [*GREY, "meta.learn=[policy]", "data.meta_fraction=0.1"],
        "data.channels: learned operations on images have colours",
    ),
    "classes of folders": (
        ["data.multi_label=columns", "augment.loss=bce"],
        "data.multi_label: the classes of images are read from a table; set data.table",
    ),
    "classes that exclude": ([*MANY[:2]], "data.multi_label: needs a sigmoid for each class"),
    "many labels, one label": (
        [*MANY, "data.labels=x.tsv"],
        "data.multi_label: data.labels, class_map and sampling, run.plant",
    ),
    "many labels, smoothed": ([*MANY, "augment.smoothing=0.1"], "data.multi_label: a target has no share that is"),
    "keys of a folder": (["data.target_key=fine"], "data.input_key: it and data.target_key name parts of the records"),
    "nothing separated": (["data.label_separator=;"], "data.label_separator: ; does nothing unless data.multi_label"),
    "copies of nothing": (["eval.tta=8"], "eval.tta: 8 copies would all be the image itself"),
}


@pytest.mark.parametrize(
    "keys",
    [
        *(["augment.cutmix=1"], ["augment.shift=0.2"], ["augment.other_class=true"], ["augment.copies=1"]),
        *(["train.plain_step=true"], ["augment.mix_layer=layer1", "augment.cutmix=1", "augment.soften=none"]),
        *(["run.plant=0.01"], ["run.log_losses=true"], ["augment.trust=2"], ["meta.frozen=true"]),
        *(["eval.tta=2", "augment.aa=ra-n2-m9"], ["data.class_map=m.csv"]),
    ],
)
def test_what_is_about_one_label_does_not_go_with_many(tmp_path: Path, keys: list[str]) -> None:
    assert any(found.startswith("data.multi_label: ") for found in problems(tmp_path, GOOD, *MANY, *keys))
    mixed = ["augment.cutmix=1", "augment.mixup=0.2", "augment.shift=0.1", "augment.soften=weight", "augment.trim=0.1"]
    read(tmp_path, GOOD, *MANY, *mixed)


@pytest.mark.parametrize(
    "keys",
    [
        *(["train.precision=fp16"], ["eval.tta=2", "augment.aa=ra-n2-m9"], ["train.gradient_as_bucket_view=true"]),
        *(["optim.opt=sgdp"], ["meta.learn=[policy]", "data.meta_fraction=0.1"], ["train.bucket_cap_mb=50"]),
    ],
)
def test_what_a_divided_network_cannot_do_is_refused_and_what_only_acts_is_not(tmp_path: Path, keys: list[str]) -> None:
    (found,) = problems(tmp_path, GOOD, "train.parallel=fsdp2", *keys)
    assert found.startswith(("train.parallel: ", "train.comm_hook: "))
    acts = ["meta.learn=[policy]", "meta.frozen=true", "train.precision=bf16", "optim.opt=AdamW"]
    read(tmp_path, GOOD, "train.parallel=fsdp2", *acts)


@pytest.mark.parametrize("name", BROKEN_RULES)
def test_keys_that_do_not_go_together(tmp_path: Path, name: str) -> None:
    overrides, message = BROKEN_RULES[name]
    (found,) = problems(tmp_path, GOOD, *overrides)
    assert found.startswith(message)


def test_every_rule_is_broken_above() -> None:
    told = [message for _, message in BROKEN_RULES.values()]
    for _, text in recipe_rules._RULES:
        begin = text.split("{", maxsplit=1)[0]
        assert any(message.startswith(begin) or begin.startswith(message) for message in told), text


# key: (value that does nothing by itself, overrides with which it does something)
IDLE: dict[str, tuple[str, list[str]]] = {
    "bce_target_thresh": ("0.2", ["loss=bce"]),
    "bce_sum": ("true", ["loss=bce"]),
    "focal_gamma": ("1", ["loss=focal"]),
    "gce_q": ("0.5", ["loss=gce"]),
    "fill_value": ("0.5", ["shift=0.1", "fill=constant"]),
    "fill": ("random", ["shift=0.1"]),
    "shift_dist": ("uniform", ["shift=0.1"]),
    "shift_limit": ("0.5", ["shift=0.1"]),
    "anneal_epochs": ("5", ["shift=0.1"]),
    "anneal_factor": ("10", ["shift=0.1", "anneal_epochs=5"]),
    "soften_k": ("3", ["shift=0.1", "soften=weight"]),
    "soften_threshold": ("0.5", ["shift=0.1"]),
    "soften_visibility": ("iou", ["shift=0.1"]),
    "soften_rule": ("own", ["shift=0.1", "cutmix=1"]),
    "mixup_prob": ("0.5", ["mixup=1"]),
    "mixup_mode": ("elem", ["cutmix=1", "mix_layer=layer1"]),
    "mix_group": ("8", ["mixup=1"]),
    "lam_fold": ("true", ["cutmix=1"]),
    "mixup_switch_prob": ("0.7", ["mixup=1", "cutmix=1"]),
    "remode": ("pixel", ["reprob=0.1"]),
    "recount": ("2", ["reprob=0.1"]),
    "start_epochs": ("5", ["aa=ra-n2-m9"]),
    "clean_loss": ("0.5", ["copies=1"]),
    "copies_loss": ("0.5", ["copies=1"]),
    "consistency": ("0.5", ["copies=1"]),
    "consistency_detach": ("true", ["copies=1"]),
    "class_weight_beta": ("0.9", ["class_weight=effective"]),
}


@pytest.mark.parametrize("key", IDLE)
def test_a_key_that_does_nothing_is_refused(tmp_path: Path, key: str) -> None:
    value, needed = IDLE[key]
    (found,) = problems(tmp_path, GOOD, f"augment.{key}={value}")
    assert found.startswith(f"augment.{key}: ")
    assert "does nothing unless augment." in found or "does nothing unless both augment." in found
    read(tmp_path, GOOD, f"augment.{key}={value}", *(f"augment.{text}" for text in needed))
    usual = getattr(Augment(), key)
    read(tmp_path, GOOD, f"augment.{key}={'null' if usual is None else str(usual).lower()}")


@pytest.mark.parametrize(
    ("overrides", "need"),
    [
        (["mixup_switch_prob=0.7", "cutmix=1"], "both augment.mixup and augment.cutmix are above 0"),
        (["fill_value=0.7", "shift=0.1"], "augment.fill is constant"),
        (["soften_k=3", "shift=0.1", "soften=none"], "augment.soften is not none"),
        (["soften_rule=own", "cutmix=1"], "augment.shift is above 0"),
        (
            ["soften_rule=own", "soften=none"],
            "augment.shift is above 0 and augment.cutmix is above 0 and",
        ),
        (["soften_p_max=0.9", "soften=none"], "augment.soften is not none"),
        (["soften_p_max=0.9", "cutmix=1", "mix_layer=layer1"], "augment.mix_layer is null"),
        (["other_class=true", "soften=weight"], "augment.soften is both or target"),
        (["copies=1", "consistency=0", "consistency_detach=true"], "augment.consistency is above 0"),
    ],
)
def test_what_a_key_lacks_is_named(tmp_path: Path, overrides: list[str], need: str) -> None:
    (found,) = problems(tmp_path, GOOD, *(f"augment.{text}" for text in overrides))
    assert f"does nothing unless {need}" in found


def test_every_key_that_may_do_nothing_is_tried_above() -> None:
    keys = {key for _, _, keys in recipe_rules._NEEDS for key in keys}
    assert keys == set(IDLE) | {"soften_p_max", "other_class"}


def test_a_key_that_does_nothing_says_so_only_of_itself(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD, "augment.loss=bbce", "augment.bce_sum=true")
    assert found.startswith("augment.loss: 'bbce' is not one of")


@pytest.mark.parametrize("text", ["1e-3", "5e-5", "1E-3", "1.e-3", ".5", "+2", "3", "0.1"])
def test_numbers_are_written_without_quotes(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, GOOD + f"optim: {{lr: {text}}}").optim.lr == float(text)
    assert read(tmp_path, GOOD, f"optim.lr={text}").optim.lr == float(text)
    assert type(read(tmp_path, GOOD, f"optim.lr={text}").optim.lr) is float


@pytest.mark.parametrize("text", ["no", "on", "off", "y", "1:30", "0x1f", "1_000", "~x"])
def test_yaml_1_1_surprises_stay_texts(text: str) -> None:
    assert parse_yaml(text) == text


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = "data: {root: x, loader: dalli, mean: [1]}\noptm: {}\noptim: {lr: '1e-3', momentum: 2}\ntrain: {epochs: 0}"
    found = problems(tmp_path, text, "run.seed", "run.kep=3", "eval.weights=ema")
    keys = [problem.split(":")[0] for problem in found]
    assert sorted(keys) == sorted(
        [
            "'run.seed'",
            "run.kep",
            "optm",
            "data.loader",
            "data.mean",
            "optim.lr",
            "optim.momentum",
            "train.epochs",
            "eval.weights",
        ]
    )


def test_a_broken_value_is_told_once_and_joins_no_rule(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD, "optim.min_lr=.inf")
    assert found == "optim.min_lr: inf is not a finite number"
    (found,) = problems(tmp_path, GOOD, "optim.lr=abc", "optim.min_lr=0.5")
    assert found == "optim.lr: expected float, got 'abc' (str)"
    (found,) = problems(tmp_path, GOOD, "data.scale=[]")
    assert found == "data.scale: [] must have 2 numbers"


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: no such recipe"):
        read_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="cannot be read as a recipe"):
        read_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"data: {root: \xff}")
    with pytest.raises(RecipeError, match=r"latin\.yaml: cannot be read as a recipe"):
        read_recipe(tmp_path / "latin.yaml")
    (tmp_path / "nul.yaml").write_bytes(b"data: {root: \0}")
    with pytest.raises(RecipeError, match=r"nul\.yaml: not valid YAML"):
        read_recipe(tmp_path / "nul.yaml")


@pytest.mark.parametrize(("text", "found"), [("- data", "['data'] (list)"), ("hello", "'hello' (str)")])
def test_a_recipe_is_a_mapping(tmp_path: Path, text: str, found: str) -> None:
    assert f"the recipe: expected a mapping of keys, got {found}" in problems(tmp_path, text)


STRANGE = {
    "list as key": "? [a]\n: 1",
    "set among the arguments": "model: {kwargs: {a: !!set {x}}}",
    "number of 5,000 digits": "run: {seed: 1" + 5000 * "0" + "}",
    "3,000 brackets": "run: {dir: " + 3000 * "[" + "}",
    "name in braces": "run: {dir: '${nothing}'}",
    "open brace": "run: {dir: '${nothing'}",
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_texts_are_recipe_errors(tmp_path: Path, name: str) -> None:
    problems(tmp_path, GOOD + STRANGE[name])


@pytest.mark.parametrize("overrides", [["data.loader=resident", "data.crop=3"], ["eval.weights=ema", "model.ema=yes"]])
def test_a_broken_key_joins_no_rule_at_all(tmp_path: Path, overrides: list[str]) -> None:
    assert len(problems(tmp_path, GOOD, *overrides)) == 1


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.seed=010", 10),
        ("run.seed=08", 8),
        ("run.dir=2026-11-22", "2026-11-22"),
        ("run.dir=2026-13-45", "2026-13-45"),
        ("model.kwargs={a: 2026-01-01}", {"a": "2026-01-01"}),
    ],
)
def test_values_mean_what_they_say(tmp_path: Path, override: str, value: object) -> None:
    section, key = override.partition("=")[0].split(".")
    assert getattr(getattr(read(tmp_path, GOOD, override), section), key) == value


@pytest.mark.parametrize("override", ["run.dir='${run.seed}'", "run.dir='???'"])
def test_values_that_refer_to_other_keys_are_refused(tmp_path: Path, override: str) -> None:
    assert [problem.partition(":")[0] for problem in problems(tmp_path, GOOD, override)] == ["run.dir"]


def test_an_empty_recipe_wants_only_a_data_root(tmp_path: Path) -> None:
    assert problems(tmp_path, "# nothing\n") == ["data.root: not set; name a folder of images or embedded:mnist5k"]
    assert read(tmp_path, "", "data.root=x") == Recipe(run=Run(dir=os.path.join("runs", "r")), data=Data(root="x"))


def test_what_is_about_initial_weights_is_left_out_with_them(tmp_path: Path) -> None:
    keys = ["data.root=x", "model.initial_checkpoint=w.pth", "model.checkpoint_keys=map", "model.checkpoint_fit=0.5"]
    (tmp_path / "r.yaml").write_text("")
    assert read_recipe(tmp_path / "r.yaml", [*keys, *UNTRAINED]).model == Model(pretrained=False)


def test_overrides_win_in_their_order_and_make_sections(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD + "run: {seed: 1}", "run.seed=2", "run.seed=3", "model.name=a=b", "run.dir=")
    assert (recipe.run.seed, recipe.model.name, recipe.run.dir) == (3, "a=b", os.path.join("runs", "r"))
    recipe = read(tmp_path, GOOD, "model.kwargs.a.b=[1, 2]", "model.kwargs.c=null")
    assert recipe.model.kwargs == {"a": {"b": [1, 2]}, "c": None}


def test_recipes_do_not_share_their_lists(tmp_path: Path) -> None:
    first = read(tmp_path, GOOD)
    first.data.mean[0] = 9
    first.model.kwargs["x"] = 1
    assert read(tmp_path, GOOD).data.mean == Data().mean
    assert Model().kwargs == {}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_of_the_project_are_sound_and_survive_a_round_trip(tmp_path: Path, path: Path) -> None:
    recipe = read_recipe(path)
    assert validate(recipe) == []
    assert read(tmp_path, to_yaml(recipe)) == recipe


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_the_arms_of_studies_are_sound(path: Path) -> None:
    study = parse_yaml(path.read_text())
    drawn = {f"{{{name}}}": "drawn" for name in ("labels", "splits", "with_meta", "clean")} | {"{seed}": "0"}
    for overrides in study["arms"].values():
        settings = [*study.get("overrides", []), *overrides]
        for name, value in drawn.items():
            settings = [setting.replace(name, value) for setting in settings]
        if any(setting.startswith("data.splits=") for setting in settings):  # lists take the place of fractions
            settings += [f"data.{split}_fraction=0" for split in ("meta", "select", "test")]
        read_recipe(ROOT / study["recipe"], settings)


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1).filter(
    lambda text: text.strip() and "${" not in text and text != "???" and len(text.encode()) < 256
)


@settings(max_examples=60)
@given(
    texts,
    st.sampled_from(["no", "1e-3", "08", "2026-11-22", "null", "1:30", "- a", "{a", "'", "#", "=", "~", "0x1f", " a "]),
    st.floats(1e-300, 1e30),
    st.integers(0, 2**63 - 1),
    st.one_of(st.none(), st.lists(st.floats(0, 0.999), min_size=2, max_size=4)),
)
def test_a_round_trip_keeps_every_value(
    tmp_path_factory: pytest.TempPathFactory, name: str, root: str, lr: float, seed: int, betas: list[float] | None
) -> None:
    recipe = Recipe(
        run=Run(dir="run", seed=seed, trackers=["wandb"]),
        data=Data(root=root),
        model=Model(name=name, kwargs={"a": [1, "2", None, {"b": True}], "1e-3": 1e-3}),
        optim=Optim(lr=lr, opt_betas=betas, warmup_lr=0.0),
    )
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert read_recipe(path) == recipe


def test_differences_name_each_key_with_both_values() -> None:
    old = Recipe(data=Data(root="x"))
    assert differences(old, Recipe(data=Data(root="x"))) == {}
    new = Recipe(data=Data(root="y"), optim=Optim(lr=0.2), augment=Augment(hflip=0.0))
    assert differences(old, new) == {"data.root": ("x", "y"), "optim.lr": (0.1, 0.2), "augment.hflip": (0.5, 0.0)}
    assert differences(replace(old, model=Model(kwargs={"a": 1})), old) == {"model.kwargs": ({"a": 1}, {})}


def test_what_may_differ_is_the_name_of_a_key() -> None:
    known = {f"{section.name}.{key.name}" for section in fields(Recipe) for key in fields(section.type)}  # type: ignore[arg-type]
    assert known > RESUMABLE


@pytest.mark.parametrize("value", [".nan", "-.inf", "[0.5, .nan, 0.5]"])
def test_no_key_takes_a_number_that_is_not_finite(tmp_path: Path, value: str) -> None:
    for section in fields(Recipe):
        for key in fields(section.type):  # type: ignore[arg-type]
            name = f"{section.name}.{key.name}"
            if "dict" not in str(key.type):  # mappings are handed on to other libraries as they are
                assert any(text.startswith(f"{name}: ") for text in problems(tmp_path, GOOD, f"{name}={value}")), name


def process(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "fastaug" / "train.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["unknown key, near", "quoted 1e-3", "python tag", "override without value"])
def test_the_command_ends_with_2_and_names_the_problem(tmp_path: Path, name: str) -> None:
    text, overrides, message = BAD[name]
    (tmp_path / "r.yaml").write_text(text)
    ended = process(tmp_path / "r.yaml", *overrides, "--check")
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_the_check_prints_a_recipe_that_can_be_read_again(tmp_path: Path) -> None:
    for order in (["--check", "run.seed=5"], ["run.seed=5", "--check"]):
        ended = process(ROOT / "recipes" / "quickstart.yaml", *order)
        assert ended.returncode == 0, ended.stderr
        recipe = read(tmp_path, ended.stdout)
        assert recipe == read_recipe(ROOT / "recipes" / "quickstart.yaml", ["run.seed=5"])
        assert YAML(typ="safe").load(ended.stdout)["run"]["seed"] == 5


def test_the_command_line() -> None:
    assert train.parse(["r.yaml"]).check is None
    assert train.parse(["r.yaml", "--check", "a.b=1"]).overrides == ["a.b=1"]
    assert train.parse(["r.yaml", "a.b=1", "--check=full"]).check == "full"
    with pytest.raises(SystemExit):
        train.parse(["r.yaml", "--check=ful"])


def test_a_list_tells_each_element_that_is_wrong(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD, "run.trackers=[visdom, wandb, neptune]", "data.std=[0, a, -1]")
    assert found == [
        "data.std: 0.0 must be at least 1e-06",
        "data.std: expected list of float, got [0, 'a', -1] (list)",
        "data.std: -1.0 must be at least 1e-06",
        *(f"run.trackers: '{name}' is not one of {', '.join(get_args(Tracker))}" for name in ("visdom", "neptune")),
    ]


def test_a_value_of_a_list_or_text_is_told_once(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD, "augment.class_weight=[1, -2]")
    assert found == ["augment.class_weight: -2.0 must be at least 0"]
    found = problems(tmp_path, GOOD, "augment.class_weight=[1, a]")
    assert found == ["augment.class_weight: expected list of float or str, got [1, 'a'] (list)"]
    found = problems(tmp_path, GOOD, "augment.class_weight=3")
    assert found == ["augment.class_weight: expected list of float or str, got 3 (int)"]


def test_sections_check_what_python_code_gives_them() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        Optim(lr=-1)
    with pytest.raises(ValidationError, match="Unexpected keyword"):
        Optim(rate=1)  # type: ignore[call-arg]
    optim = replace(Optim(), lr=2)
    assert optim.lr == 2.0
    assert vars(optim) == {field.name: getattr(optim, field.name) for field in fields(optim)}


def test_a_resolved_recipe_has_the_number_of_its_schema(tmp_path: Path) -> None:
    text = to_yaml(read(tmp_path, GOOD))
    assert text.startswith(f"schema: {SCHEMA}\n")
    assert read(tmp_path, text) == read(tmp_path, text.partition("\n")[2])
    assert read(tmp_path, text.replace(f"schema: {SCHEMA}", "schema: 1"))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (SCHEMA + 1, f"schema: {SCHEMA + 1} of "),
        (0, "schema: 0 is not the number of a schema"),
        ("'2'", "schema: '2' is not the number of a schema"),
        ("true", "schema: True is not the number of a schema"),
    ],
)
def test_a_schema_that_is_not_known_is_refused(tmp_path: Path, number: object, message: str) -> None:
    (found,) = problems(tmp_path, f"schema: {number}\n{GOOD}")
    assert found.startswith(message)
    assert "update fastaug" in found or "leave it out" in found


@pytest.mark.parametrize("text", ["runs/a", "2024", "runs/exp #2", "a: b", "no", "[a", "'", "1e3"])
def test_any_path_goes_through_an_override(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(GOOD)
    recipe = read_recipe(tmp_path / "r.yaml", [as_override("run.dir", text)])
    assert recipe.run.dir == text


def test_a_network_of_the_hub_is_read_for_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("data: {root: x}\nmodel: {name: 'hf-hub:a/b', pretrained: true}\n")
    assert read_untrained(tmp_path / "r.yaml", UNTRAINED).model.pretrained is False
