"""Runs on shards beside runs on the files that they were made of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.data.index import cache_file, load_index
from fastaug.distributed import build_accelerator
from fastaug.recipe.reading import read_recipe
from fastaug.training.build_data import find_data
from fastaug.training.worker import run

from ..conftest import MakeShards

RECIPE = """
data: {img_size: 32, threads: 1, select_fraction: 0.2}
model: {name: test_resnet}
optim: {opt: adamw, lr: 1e-3}
train: {epochs: 1, batch_size: 8}
augment: {shift: 0.2, cutmix: 1}
run: {log_ids: true, log_every: 1}
"""


@pytest.fixture(autouse=True)
def _no_process_state() -> None:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def recipe_of(tmp_path: Path, root: Path, *more: str) -> Any:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return read_recipe(str(tmp_path / "recipe.yaml"), [f"data.root={root}", *more])


def trained(tmp_path: Path, name: str, root: Path, *more: str) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """result.json, the ids of every update and the loss of every log line."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    folder = tmp_path / "runs" / name
    assert run(recipe_of(tmp_path, root, f"run.dir={folder}", *more)) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ids = [json.loads(line) for line in (folder / "ids-0.jsonl").read_text().splitlines()]
    return json.loads((folder / "result.json").read_text()), ids, [line.get("loss") for line in lines]


def test_a_run_on_shards_is_that_on_the_files(
    tmp_path: Path, jpeg_folder: Callable[..., Path], make: MakeShards
) -> None:
    root = jpeg_folder(images=12, splits=("train", "val"), kind="png")
    first = Path(load_index(root, threads=1).path(5).decode())
    first.write_bytes(first.read_bytes()[:300])
    cache_file(root, "ignore").unlink()
    index = load_index(root, threads=1)
    result, ids, losses = trained(tmp_path, "files", root)
    assert len(ids) == 3
    raw = trained(tmp_path, "raw", make(index, "raw", 500).root)
    assert raw[1:] == (ids, losses)
    jpeg = trained(tmp_path, "jpeg", make(index, "jpeg", 500).root)
    assert jpeg[1] == ids
    for name in ("top1", "nll", "ece", "test", "select", "images_seen", "skipped_images"):
        assert raw[0][name] == result[name], name
    assert result["skipped_images"] == 1
    assert jpeg[0]["skipped_images"] == 1
    skipped = [json.loads((tmp_path / f"runs/{name}/skipped.jsonl").read_text()) for name in ("files", "raw")]
    assert skipped[0]["id"] == skipped[1]["id"] == 5


def test_shards_are_other_data_than_the_files_and_each_other(
    tmp_path: Path, jpeg_folder: Callable[..., Path], make: MakeShards
) -> None:
    root = jpeg_folder(images=12, splits=("train", "val"))
    index = load_index(root, threads=1)
    made = {
        "raw": make(index, "raw", 64).root,
        "jpeg": make(index, "jpeg", 64).root,
        "smaller": make(index, "raw", 50, out="smaller").root,
        "other size of shards": make(index, "raw", 64, shard_size=7, out="again").root,
        "files": root,
    }
    recipe = recipe_of(tmp_path, root)
    accelerator = build_accelerator(recipe)
    prints = {}
    for name, folder in made.items():
        recipe.data.root = str(folder)
        prints[name] = find_data(recipe, accelerator).fingerprint()
    assert prints["raw"] == prints["other size of shards"]
    assert len(set(prints.values())) == 4


def test_ids_of_splits_are_those_of_the_files(
    tmp_path: Path, jpeg_folder: Callable[..., Path], make: MakeShards
) -> None:
    root = jpeg_folder(images=20, splits=("train", "val", "meta"))
    shards = make(load_index(root, threads=1)).root
    splits = []
    for folder in (root, shards):
        recipe = recipe_of(tmp_path, folder)
        splits.append(find_data(recipe, build_accelerator(recipe)).splits)
    for role in ("train", "meta", "select", "test"):
        assert np.array_equal(splits[0].of(role), splits[1].of(role))
        assert len(splits[0].of(role))
