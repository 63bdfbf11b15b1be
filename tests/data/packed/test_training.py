"""Training on packed sets beside training on the files that they were made of."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.recipe.reading import read_recipe
from fastaug.training.listeners import Listeners
from fastaug.training.worker import attempt

from .conftest import Picture, arrow_table, example, sample, save_to_disk, split_of, write_tar, write_tfrecord

RECIPE = """
data: {img_size: 32, threads: 1}
model: {name: test_resnet}
optim: {opt: adamw, lr: 1e-3}
train: {epochs: 2, batch_size: 4}
augment: {shift: 0.2, cutmix: 1}
run: {log_ids: true, log_every: 1}
"""


def tars(root: Path, pictures: list[Picture]) -> str:
    for split in ("train", "val"):
        own = split_of(pictures, split)
        members = [m for row, one in enumerate(own) for m in sample(f"{row:03d}", one, int(one.label[-1]))]
        write_tar(root / f"{split}-0.tar", members)
    return f"wds:{root}"


def tfrecords(root: Path, pictures: list[Picture]) -> str:
    for split in ("train", "val"):
        messages = [example({"image": one.content, "label": one.label.encode()}) for one in split_of(pictures, split)]
        write_tfrecord(root / f"{split}.tfrecord", messages)
    return f"tfrecord:{root}"


def hfds(root: Path, pictures: list[Picture]) -> str:
    return f"hfds:{save_to_disk(root, pictures, train='train', val='val')}"


def parquet(root: Path, pictures: list[Picture]) -> str:
    for split in ("train", "val"):
        table = arrow_table(split_of(pictures, split)).replace_schema_metadata({})
        names = pyarrow.array([one.label for one in split_of(pictures, split)])
        pyarrow.parquet.write_table(table.set_column(1, "label", names), root / f"{split}.parquet")
    return f"parquet:{root}"


def trained(tmp_path: Path, name: str, root: object, stop: int = 0) -> tuple[int, list[Any], list[Any], Any]:
    """Exit code, the ids of every update, the losses, and result.json; stopped by a signal at a step."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = tmp_path / "runs" / name
    recipe = read_recipe(str(tmp_path / "recipe.yaml"), [f"data.root={root}", f"run.dir={run}"])

    def hear(line: dict[str, Any]) -> None:
        if line.get("event") == "train" and line["step"] == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    code = attempt(recipe, Listeners([hear])).code
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ids = [json.loads(line) for line in (run / "ids-0.jsonl").read_text().splitlines()]
    result = run / "result.json"
    said = json.loads(result.read_text()) if result.exists() else {}
    return code, ids, [line["loss"] for line in lines if "loss" in line], said.get("nll")


@pytest.mark.slow
@pytest.mark.parametrize("pack", [tars, tfrecords, hfds, parquet])
def test_a_run_on_packed_images_in_the_order_of_paths_is_that_on_the_files(
    tmp_path: Path, picture_root: Path, in_order: list[Picture], pack: Callable[[Path, list[Picture]], str]
) -> None:
    (tmp_path / "set").mkdir()
    files = trained(tmp_path, "files", picture_root)
    packed = trained(tmp_path, "packed", pack(tmp_path / "set", in_order))
    assert files[0] == 0
    assert len(files[1]) == 6
    ids = [[[*x] if isinstance(x, list) else x for x in line.values()] for line in files[1]]
    assert [[*line.values()] for line in packed[1]] == ids
    if pack is not hfds:  # whose classes have an order of their own
        assert packed == files


@pytest.mark.slow
def test_a_run_that_is_stopped_in_an_epoch_goes_on_with_the_same_ids(tmp_path: Path, in_order: list[Picture]) -> None:
    root = tars(tmp_path / "set", in_order)
    whole = trained(tmp_path, "whole", root)
    assert whole[0] == 0
    assert trained(tmp_path, "stopped", root, stop=2)[0] == 75
    assert trained(tmp_path, "stopped", root) == whole
