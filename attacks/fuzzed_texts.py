"""Texts to fuzz: recipes and overrides, files of policies, lists of images, labels and splits."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np

from attacks.target import Target
from fastaug.data.class_map import ClassMap
from fastaug.data.folders import Folder
from fastaug.data.image_table import table_rows
from fastaug.data.index import Index
from fastaug.data.label_files import read_class_numbers, with_labels
from fastaug.data.multi_label import multi_label_rows
from fastaug.data.path_table import PathTable
from fastaug.data.splits import make_splits
from fastaug.errors import DataError, RecipeError
from fastaug.recipe.operation_files import read_entries
from fastaug.recipe.policy_file import read_policy_file
from fastaug.recipe.reading import read_recipe, to_yaml
from fastaug.recipe.subpolicy_files import read_subpolicies

# ---- recipes ----

RECIPE = """
data: {root: images, img_size: 32, select_fraction: 0.1, meta_fraction: 0.1, mean: [0.5, 0.5, 0.5]}
model: {name: test_resnet, kwargs: {drop_rate: 0.1}, ema: true}
optim: {lr: 1e-3, sched: cosine}
augment: {aa: rand-m9-mstd0.5, shift: 0.2}
meta: {learn: [softness, weights], every: 4}
run: {dir: runs/x, trackers: [csv]}
"""
OVERRIDES = "optim.lr=0.1\nmodel.kwargs={a: [1, null]}\nmeta.learn=[policy]\ndata.mean=[0.1, 0.2, 0.3]\naugment.aa=null"


def _write_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "overrides.txt").write_text(OVERRIDES)


def _recipe(folder: Path) -> None:
    recipe, again = read_recipe(folder / "recipe.yaml"), folder / "again.yaml"
    again.write_text(to_yaml(recipe))
    if read_recipe(again) != recipe:
        raise AssertionError(f"written and read, it is another recipe: {recipe}")


def _overrides(folder: Path) -> None:
    (folder / "plain.yaml").write_text(RECIPE)
    words = os.fsdecode((folder / "overrides.txt").read_bytes()).split("\n")
    read_recipe(folder / "plain.yaml", words)


# ---- policies ----

SUBPOLICIES = [[["ShearX", 0.9, 0.5], ["Invert", 0.2, 0.1]], [["Rotate", 0.4, 0.8]]]
OPERATIONS = [
    {"name": "turn", "function": "rotate", "max": 30},
    {"name": "far", "function": "translate_x", "min": 5, "max": 30, "absolute": True, "fixed": True},
    {"name": "other", "function": "shear", "param": {"axis": "X", "min": None, "max": 0.3, "absolute": True}},
]
PIECE = {"kind": "softness", "settings": {"a": [1]}, "values": {"k": [1.0, 2.0]}, "start": {"k": [1.0, 1.0]}}
POLICY = {"fastaug_policy": 1, "data": {"img_size": 8}, "parts": {"softness": PIECE}, "tables": ["weights"]}


def _write_policies(folder: Path) -> None:
    for name, values in (("subpolicies", SUBPOLICIES), ("operations", OPERATIONS)):
        for ending in ("yaml", "json"):  # JSON is YAML too
            (folder / f"{name}.{ending}").write_text(json.dumps(values))
    (folder / "policy.json").write_text(json.dumps(POLICY))


def _subpolicies(ending: str, folder: Path) -> None:
    read_subpolicies(str(folder / f"subpolicies.{ending}"))


def _operations(ending: str, folder: Path) -> None:
    read_entries(str(folder / f"operations.{ending}"))


# ---- lists ----

NAMES = [f"{split}/{label}/{i}.png" for split in ("train", "val") for label in ("a", "b") for i in range(2)]


def _index() -> Index:
    """An index of NAMES, of which no file is there."""
    labels = np.array([name.split("/")[1] == "b" for name in NAMES], np.int64)
    folders = np.array([Folder.TRAIN if name.startswith("train") else Folder.TEST for name in NAMES], np.uint8)
    sides, sound = np.ones(len(NAMES), np.int32), np.zeros(len(NAMES), np.uint8)
    return Index(
        Path("/x"), ("a", "b"), PathTable.of([*map(str.encode, NAMES)]), labels, sides, sides, sound, folders, {}
    )


def _write_lists(folder: Path) -> None:
    for ending, separator in (("csv", ","), ("tsv", "\t")):
        rows = [("path", "label", "split"), *((name, name.split("/")[1], name.split("/")[0]) for name in NAMES)]
        (folder / f"table.{ending}").write_text("".join(separator.join(row) + "\n" for row in rows))
    (folder / "columns.csv").write_text("path,a,b,split\nx,1,0,train\ny,0,1,train\nz,1,1,val\n")
    (folder / "separated.csv").write_text("path;label;split\nx;a|b;train\ny;b;train\nz;;val\n")
    (folder / "map.csv").write_text('name,class\na,"one, or two"\nb,\n')
    (folder / "labels.tsv").write_text("# remark\n0\tb\ntrain/b/1.png\ta\n")
    (folder / "numbers.tsv").write_text("a\t1\nb\t0.5\n")
    (folder / "splits").mkdir()
    (folder / "splits" / "train.txt").write_text("0\n1\ntrain/b/0.png\n")
    (folder / "splits" / "meta.txt").write_text("3\n")


def _table(ending: str, folder: Path) -> None:
    table_rows(folder / f"table.{ending}", b"/x", ClassMap())


def _several(kind: str, folder: Path) -> None:
    multi_label_rows(folder / f"{kind}.csv", b"/x", kind, "|")


def _map(folder: Path) -> None:
    ClassMap(folder / "map.csv").of("a")


def _labels(folder: Path) -> None:
    with_labels(_index(), make_splits(_index(), seed=0), folder / "labels.tsv")


TEXTS = {
    "recipe": Target(_write_recipe, {"recipe": _recipe, "overrides": _overrides}, (RecipeError,)),
    "policies": Target(
        _write_policies,
        {
            **{f"subpolicies.{ending}": partial(_subpolicies, ending) for ending in ("yaml", "json")},
            **{f"operations.{ending}": partial(_operations, ending) for ending in ("yaml", "json")},
            "policy": lambda folder: read_policy_file(folder / "policy.json"),
        },
        (RecipeError,),
    ),
    "lists": Target(
        _write_lists,
        {
            **{ending: partial(_table, ending) for ending in ("csv", "tsv")},
            **{kind: partial(_several, kind) for kind in ("columns", "separated")},
            "class map": _map,
            "labels": _labels,
            "numbers": lambda folder: read_class_numbers(folder / "numbers.tsv", ("a", "b"), "train.class_weights"),
            "splits": lambda folder: make_splits(_index(), seed=0, files=folder / "splits"),
        },
        (DataError,),
    ),
}
