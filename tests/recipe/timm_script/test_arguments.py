"""Arguments of timm's script: all are known, and read as its own parser reads them."""

import importlib.util
import inspect
import os
import re
from pathlib import Path

import pytest
from timm.optim import optimizer_kwargs
from timm.scheduler import scheduler_kwargs

from fastaug.errors import RecipeError
from fastaug.recipe.key_table import describe
from fastaug.recipe.timm_script.arguments import all_arguments, checked_values, parse_words

NOT_OF_THE_SCRIPT = {"opt_args", "opt_foreach"}  # attributes that timm's functions look for and its parser never sets


@pytest.mark.parametrize("reader", [scheduler_kwargs, optimizer_kwargs])
def test_what_timm_reads_from_its_arguments_is_known(reader: object) -> None:
    read = set(re.findall(r"cfg(?:\.|, ')(\w+)", inspect.getsource(reader)))  # type: ignore[arg-type]
    assert len(read) > 5
    assert not read - set(all_arguments()) - NOT_OF_THE_SCRIPT


def test_each_argument_says_what_becomes_of_it_once() -> None:
    for argument in all_arguments().values():
        said = [argument.key, argument.here, argument.lacks, argument.idle]
        assert sum(map(bool, said)) == 1, argument.name
        if argument.key:
            assert argument.key in describe(argument.key)


@pytest.mark.slow
def test_every_flag_of_timms_parser_is_known_with_its_default() -> None:
    """Against the script itself, which timm's package does not have: TIMM_SCRIPT names it."""
    if not (script := os.environ.get("TIMM_SCRIPT")):
        pytest.skip("set TIMM_SCRIPT to train.py of github.com/huggingface/pytorch-image-models")
    spec = importlib.util.spec_from_file_location("timm_train_script", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    theirs = [*module.config_parser._actions, *module.parser._actions]
    theirs = [action for action in theirs if action.dest != "help"]
    assert len(theirs) >= 173
    for action in theirs:
        ours = all_arguments()[action.dest]
        assert ours.options == list(action.option_strings), action.dest
        assert (ours.default, ours.const or None) == (action.default, action.const if ours.const else None), action.dest
        assert (ours.kind == "flag") == (action.nargs == 0), action.dest
        assert ours.choices == list(action.choices or []), action.dest
        assert ours.nargs == (action.nargs or None), action.dest


def test_words_are_read_as_argparse_does() -> None:
    words = "/data --jsd --dr .97 -vb 64 -b=32 --scale 0.1 1 --torchcompile --model-kwargs a=1 b=x --opt-eps 1e-3"
    assert parse_words(words.split()) == {
        **{"data": "/data", "jsd": True, "decay_rate": 0.97, "validation_batch_size": 64, "batch_size": 32},
        **{"scale": [0.1, 1.0], "torchcompile": "inductor", "model_kwargs": {"a": 1, "b": "x"}, "opt_eps": 1e-3},
    }
    assert parse_words(["--warmup-e", "3"]) == {"warmup_epochs": 3}  # the beginning of one name alone


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mixupp 0.2", "--mixupp: unknown to timm's train.py of 1.0.29 to 1.0.31; did you mean --mixup"),
        ("--zzzz", "--zzzz: unknown to timm's train.py of 1.0.29 to 1.0.31; leave it out"),
        ("/data more", "'more': belongs to no argument"),
        ("--lr", "argument --lr: expected one argument"),
        ("--epochs 1.5", "argument --epochs: invalid int value: '1.5'"),
        ("--train-size-schedule x", "invalid choice: 'x'"),
        ("--model-kwargs img_size", "'img_size' is not NAME=VALUE"),
        ("--mix 1", "ambiguous option: --mix"),
    ],
)
def test_words_that_timm_does_not_take(words: str, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_words(words.split())
    assert message in str(refused.value)


def test_values_of_a_file() -> None:
    given = {"lr": "3e-4", "epochs": 10.0, "mean": ["0.5", 0.4], "amp": True, "lr_base": 1, "clip_grad": None}
    assert checked_values(given, "args.yaml") == {
        **{"lr": 3e-4, "epochs": 10, "mean": [0.5, 0.4], "amp": True, "lr_base": 1.0, "clip_grad": None},
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 1, "imgsz": 640}, "a.yaml: learning_rate: no argument of timm's"),
        ({"lr_bases": 1}, "did you mean lr_base"),
        ({"epochs": "ten"}, "a.yaml: epochs: 'ten' is no int"),
        ({"epochs": 1.5}, "'1.5' is no int"),
        ({"amp": "yes"}, "'yes' is no flag"),
        ({"mean": 0.5}, "'0.5' is no float"),
        ({"epochs": None}, "'None' is no int"),
        ({"model_kwargs": "a=1"}, "is no kwargs"),
        ([1], "a.yaml: no mapping of arguments"),
        ({}, "a.yaml: no mapping of arguments"),
    ],
)
def test_values_that_are_not_timms(values: object, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        checked_values(values, "a.yaml")
    assert message in str(refused.value)


def test_the_file_of_facts_is_in_the_package() -> None:
    assert Path(inspect.getfile(all_arguments.__wrapped__)).with_name("arguments.yaml").is_file()
