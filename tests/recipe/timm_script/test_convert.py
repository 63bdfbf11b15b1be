"""The recipe of timm's arguments trains as they do: every argument told, the same rates, the same loss."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from fastaug.errors import RecipeError
from fastaug.losses import build_objective
from fastaug.nets.optim import build_optimizer, build_schedule
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Recipe
from fastaug.recipe.strict_yaml import parse_yaml
from fastaug.recipe.timm_script.arguments import all_arguments
from fastaug.recipe.timm_script.command_line import read_command
from fastaug.recipe.timm_script.conversion import Conversion, default_of
from fastaug.recipe.timm_script.convert import converted
from fastaug.recipe.timm_script.recipe_text import recipe_text, table
from fastaug.targets import hard_target, smoothed

COMMANDS = parse_yaml(Path(__file__).with_name("commands.yaml").read_text())
NAMES = [entry["source"] for entry in COMMANDS]
UPDATES = 5  # of an epoch


def made_of(words: str) -> Conversion:
    return converted(read_command(f"train.py --data-dir /data --model test_resnet {words}"))


def recipe_of(made: Conversion, folder: Path) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(recipe_text(made, "recipe.yaml"))
    return read_recipe(file, [])


def test_there_are_25_published_commands_with_their_source() -> None:
    assert len(COMMANDS) == len(set(NAMES)) == 25


@pytest.mark.parametrize("entry", COMMANDS, ids=NAMES)
def test_published_commands_convert_and_nothing_is_dropped(entry: dict[str, str], tmp_path: Path) -> None:
    given = read_command(entry["command"])
    made = converted(given)
    assert list(made.rows) == list(all_arguments())
    said = table(made)
    for name in given.given:
        row = made.rows[name]
        assert row.keys or row.note, name
        assert row.argument.flag in said
    told = {key for row in made.rows.values() for key in row.keys}
    assert set(made.keys) == told | {key for key in made.keys if key in ("distill.mean", "distill.std")}
    recipe = recipe_of(made, tmp_path)
    for key, value in made.keys.items():
        section, name = key.split(".")
        assert getattr(getattr(recipe, section), name) == value


@pytest.mark.slow
@pytest.mark.parametrize("entry", COMMANDS, ids=NAMES)
def test_published_commands_pass_the_full_check(entry: dict[str, str], tmp_path: Path) -> None:
    from fastaug.commands import train

    (tmp_path / "r.yaml").write_text(recipe_text(converted(read_command(entry["command"])), "r.yaml"))
    assert train.main([str(tmp_path / "r.yaml"), "--check=full"]) == 0


def test_the_table_is_not_empty_by_chance() -> None:
    """An argument that nothing tells is an error."""
    given = read_command("train.py /data --model test_resnet")
    assert not [row for row in converted(given).rows.values() if row.outcome == "idle" and row.given and not row.note]


RATES = [
    "--epochs 8",
    "--epochs 8 --warmup-epochs 2 --warmup-prefix --cooldown-epochs 3 --min-lr 1e-3",
    "--epochs 8 --warmup-epochs 2 --sched-on-updates --cooldown-epochs 1 --min-lr 1e-3",
    "--epochs 8 --warmup-epochs 2 --warmup-prefix --sched-on-updates",
    "--epochs 9 --sched step --decay-epochs 2.4 --decay-rate .9 --warmup-epochs 3 --warmup-lr 1e-6",
    "--epochs 9 --sched step --decay-epochs 1.3 --sched-on-updates --warmup-epochs 0 --cooldown-epochs 4",
    "--epochs 9 --sched multistep --decay-milestones 3 6 --warmup-epochs 1",
    "--epochs 9 --sched multistep --decay-milestones 3 6 --warmup-epochs 2 --warmup-prefix",
    "--epochs 9 --sched multistep --decay-milestones 3 6 --warmup-epochs 2 --warmup-prefix --sched-on-updates",
    "--epochs 6 --sched constant --warmup-epochs 2",
    "--epochs 6 --sched none",
    "--epochs 6 --layer-decay .7 --opt adamw --lr-base 1e-3 --opt-betas .9 .98 --weight-decay .05",
    "--epochs 6 --layer-decay .7 --layer-decay-min-scale .5 --opt lamb",
]


@pytest.mark.parametrize("words", RATES)
def test_every_parameter_group_has_timms_rate_and_decay_at_every_update(words: str, tmp_path: Path) -> None:
    made = made_of(f"{words} -b 32")
    recipe = recipe_of(made, tmp_path)
    theirs = SimpleNamespace(**made.source.values)
    theirs.lr = recipe.optim.lr
    network = timm.create_model("test_resnet", num_classes=3)
    optimizer = create_optimizer_v2(network, **optimizer_kwargs(theirs), **theirs.opt_kwargs)
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(theirs), updates_per_epoch=UPDATES)
    ours = build_optimizer(recipe.optim, network)
    set_rate = build_schedule(recipe.optim, ours, epochs=recipe.train.epochs, updates_per_epoch=UPDATES)
    assert recipe.train.epochs == epochs
    groups = list(zip(ours.param_groups, optimizer.param_groups, strict=True))
    assert all(a["weight_decay"] == b["weight_decay"] and a["params"] == b["params"] for a, b in groups)
    assert all(a.get(key) == b.get(key) for a, b in groups for key in ("momentum", "betas", "eps", "nesterov"))
    for update in range(epochs * UPDATES):  # as the script steps it
        set_rate(update)
        for mine, other in groups:
            assert mine["lr"] == pytest.approx(other["lr"], rel=1e-12, abs=1e-15), update
        if scheduler is not None:
            scheduler.step_update(update + 1)
            if (update + 1) % UPDATES == 0:
                scheduler.step((update + 1) // UPDATES)


@pytest.mark.parametrize(
    ("words", "processes", "rate"),
    [
        ("", 1, 0.1 * 128 / 256),
        ("-b 64 --grad-accum-steps 2", 8, 0.1 * 1024 / 256),
        ("-b 64 --opt adamw --lr-base 1e-3", 4, 1e-3),
        ("-b 128 --opt lamb --lr-base 5e-3 --lr-base-size 512", 16, 5e-3 * 2),
        ("-b 128 --opt lamb --lr-base 5e-3 --lr-base-scale linear", 16, 5e-3 * 8),
        ("-b 128 --lr-base-scale sqrt", 2, 0.1),
        ("-b 128 --opt nadamw --lr-base 1e-3", 4, 1e-3 * math.sqrt(2)),
        ("-b 128 --lr 0.3", 4, 0.3),
        ("-b 128 --lr 0", 4, 0.2),  # counts as not given in timm too
    ],
)
def test_the_learning_rate_of_the_size_of_an_update(words: str, processes: int, rate: float) -> None:
    command = f"train.py /data --model test_resnet {words}"
    assert converted(read_command(command, processes)).keys["optim.lr"] == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("words", "loss"),
    [
        ("--smoothing .1", LabelSmoothingCrossEntropy(0.1)),
        ("--smoothing 0", torch.nn.CrossEntropyLoss()),
        ("--bce-loss", BinaryCrossEntropy(smoothing=0.1)),
        ("--bce-loss --bce-sum", BinaryCrossEntropy(smoothing=0.1, sum_classes=True)),
        ("--bce-loss --bce-target-thresh .2", BinaryCrossEntropy(smoothing=0.1, target_threshold=0.2)),
        ("--loss bce --smoothing .3", BinaryCrossEntropy(smoothing=0.3)),
    ],
)
def test_the_loss_of_hard_labels_is_timms(words: str, loss: torch.nn.Module, tmp_path: Path) -> None:
    augment = recipe_of(made_of(words), tmp_path).augment
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 5, generator=draw), torch.randint(5, (6,), generator=draw)
    target = smoothed(hard_target(labels), augment.smoothing)
    ours = build_objective(augment, None)(logits, target).item() / 6
    assert ours == pytest.approx(loss(logits, labels).item(), rel=1e-6)


def test_the_batch_is_of_all_processes_and_what_is_left_is_dropped() -> None:
    made = converted(read_command("./distributed_train.sh 4 /data --model test_resnet -b 32"))
    assert made.keys["train.batch_size"] == 128
    assert made.keys["train.drop_last"] is True
    assert made.keys["eval.batch_size"] == 32
    words = "/data --model test_resnet -b 32 --grad-accum-steps 2"
    accumulated = converted(read_command(f"./distributed_train.sh 4 {words}"))
    assert accumulated.keys["train.batch_size"] == 256
    assert accumulated.keys["train.accumulate"] == 2


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("", {"augment.color_jitter": 0.4, "augment.smoothing": 0.1, "optim.weight_decay": 2e-5, "run.seed": 42}),
        ("", {"model.channels_last": False, "optim.sched_on_updates": False, "train.epochs": 300, "run.keep": 10}),
        ("", {"data.img_size": 160, "data.crop_pct": 0.95, "data.mean": [0.5] * 3, "data.std": [0.5] * 3}),
        ("--model efficientnet_b2", {"data.interpolation": "bicubic", "data.img_size": 256, "data.mean": None}),
        ("--aa rand-m9-mstd0.5", {"augment.aa": "rand-m9-mstd0.5", "augment.color_jitter": None}),
        ("--aa 3a --color-jitter .3", {"augment.aa": "3a", "augment.color_jitter": 0.3}),
        ("--no-aug --crop-pct 1", {"data.crop": "center", "augment.hflip": 0.0, "augment.color_jitter": None}),
        ("--in-chans 1 --mean .3 --std .2", {"data.channels": 1, "data.mean": [0.3], "data.std": [0.2]}),
        ("--in-chans 1", {"data.channels": 1, "data.mean": [0.5], "data.std": [0.5]}),
        ("--mean .3 --std .2", {"data.mean": [0.3] * 3, "data.std": [0.2] * 3}),
        ("--input-size 3 64 64", {"data.img_size": 64}),
        ("--input-size 3 64 96", {"data.img_size": 160}),
        ("--model-ema --model-ema-warmup", {"model.ema": True, "model.ema_warmup": True, "eval.weights": "ema"}),
        ("--model-ema --model-ema-force-cpu", {"model.ema": True, "eval.weights": None}),
        ("--amp", {"train.precision": "fp16"}),
        ("--amp --amp-dtype bfloat16", {"train.precision": "bf16"}),
        ("--amp-dtype bfloat16", {"train.precision": None}),
        ("--reprob .2", {"augment.reprob": 0.2, "augment.remode": "pixel"}),
        ("--remode rand", {"augment.remode": None}),
        ("--clip-mode agc", {"optim.clip_mode": None}),
        ("--clip-mode agc --clip-grad .1", {"optim.clip_mode": "agc", "optim.clip_grad": 0.1}),
        ("--mixup .2 --mixup-off-epoch 9", {"augment.mixup": 0.2, "augment.mixup_off_epoch": 9}),
        ("--mixup-off-epoch 9", {"augment.mixup_off_epoch": None}),
        ("--cutmix-minmax .2 .8", {"augment.cutmix": 1.0}),
        ("--gp max --drop-path 0", {"model.kwargs": {"global_pool": "max", "drop_path_rate": 0.0}}),
        ("--pretrained --initial-checkpoint w.pth", {"model.initial_checkpoint": "w.pth", "model.pretrained": None}),
        ("--pretrained --pretrained-path w.pth", {"model.initial_checkpoint": "w.pth", "model.pretrained": None}),
        ("--pretrained-path w.pth", {"model.initial_checkpoint": None}),
        ("--output runs --experiment a", {"run.dir": "runs/a"}),
        ("--experiment a", {"run.dir": "output/train/a"}),
        ("--log-wandb --checkpoint-hist 2", {"run.trackers": ["wandb"], "run.keep": 2}),
        ("--log-wandb --wandb-project a", {"run.project": "a"}),
        ("--wandb-project a", {"run.project": None}),
        ("--dataset torch/cifar10", {"data.root": "cifar10:/data"}),
        ("--dataset torch/mnist", {"data.root": "mnist:/data"}),
        ("--dataset torch/fashion_mnist", {"data.root": "mnist:/data/FashionMNIST"}),
        ("--dataset torch/kmnist", {"data.root": "mnist:/data/KMNIST"}),
        ("--dataset wds/x --input-key png --target-key c", {"data.input_key": "png", "data.target_key": "c"}),
        ("--input-key png", {"data.input_key": None}),
        ("--dataset hfds/timm/mini", {"data.root": "hfds:/data"}),
        ("--sched poly", {"optim.sched": "cosine"}),
        ("--kd-model-name resnet18 --task-loss-weight .25", {"distill.teacher": "resnet18", "distill.weight": 0.75}),
        ("--native-amp --jsd-loss", {"train.precision": "fp16"}),
    ],
)
def test_keys_of_arguments(words: str, keys: dict[str, Any]) -> None:
    """None: the key is not written."""
    found = made_of(words).keys
    assert {key: found.get(key) for key in keys} == keys


@pytest.mark.parametrize(
    "words",
    [
        *("--vflip .5", "--aug-splits 3", "--jsd-loss", "--lr-noise .4 .9", "--resume last.pth.tar", "--sched tanh"),
        *("--eval-metric loss", "--class-map c.txt", "--dataset wds/x", "--train-split a", "--val-split ''"),
        "--no-aug",
        *("--bce-pos-weight 2", "--cutmix 1 --mixup-mode pair", "--head-init-scale .1", "--torchcompile eager"),
        *("--naflex-loader", "--train-img-sizes 128 160", "--task multilabel", "--loss asl", "--aug-repeats 3"),
        *("--lr-cycle-limit 2", "--start-epoch 3", "--wandb-tags a", "--model-dtype bfloat16", "--input-size 3 9 8"),
        *("--warmup-prefix --sched step", "--kd-model-name resnet18", "--kd-distill-type feature", "--num-gpu 2"),
    ],
)
def test_what_has_no_counterpart_is_told_in_the_table_and_in_the_recipe(words: str) -> None:
    before = {name for name, row in made_of("").rows.items() if row.outcome == "lacks"}
    made = made_of(words)
    lacks = {name: row for name, row in made.rows.items() if row.outcome == "lacks" and name not in before}
    assert lacks
    assert all(row.note for row in lacks.values())
    head = " ".join(line.strip("# ") for line in recipe_text(made, "r.yaml").splitlines() if line.startswith("#"))
    assert all(row.argument.flag in head for row in lacks.values())
    assert "no counterpart" in table(made)


def test_repeated_augmentation_is_kept_where_it_divides_the_update() -> None:
    words = "/data --model test_resnet --aug-repeats 3"
    kept = converted(read_command(f"./distributed_train.sh 2 {words} -b 48"))
    assert kept.keys["augment.repeats"] == 3
    lost = converted(read_command(f"./distributed_train.sh 2 {words} -b 64"))
    assert "augment.repeats" not in lost.keys
    assert "train.batch_size: 126" in lost.rows["aug_repeats"].note


def test_networks_with_dropout_of_their_own_are_those_of_timm() -> None:
    """timm's script passes its 0; a network that has another default must be told so."""
    assert made_of("--model ghostnet_100").keys["model.kwargs"] == {"drop_rate": 0.0}
    assert "model.kwargs" not in made_of("--model resnet18").keys
    assert made_of("--model ghostnet_100 --drop .3").keys["model.drop"] == 0.3


def test_a_network_of_one_size_is_built_for_the_size_asked_for() -> None:
    assert made_of("--model vit_tiny_patch16_224 --img-size 96").keys["model.kwargs"] == {"img_size": 96}
    assert made_of("--model vit_tiny_patch16_224 --model-kwargs img_size=96").keys["data.img_size"] == 96
    assert "model.kwargs" not in made_of("--img-size 96").keys


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model resnet5000 /data", "--model: "),
        ("--model test_resnet", "--data-dir: no folder of images is given"),
        ("--model test_resnet /data --sched cos", "'cos' is no schedule"),
        ("--model test_resnet /data --amp --amp-dtype half", "'half' is not float16 or bfloat16"),
    ],
)
def test_arguments_that_train_nothing(words: str, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        converted(read_command(f"train.py {words}"))
    assert message in str(refused.value)


def test_given_defaults_are_written_down_and_others_only_where_ours_differ() -> None:
    assert "optim.momentum" not in made_of("").keys
    assert made_of("--momentum .9").keys["optim.momentum"] == default_of("optim.momentum")
