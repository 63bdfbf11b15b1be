"""One pass of a loader over odd and damaged files, in this process: `python -m attacks.loading FOLDER JSON`.

It prints which images were used and which were skipped, and why. That it gets so far is the first thing that is asked.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks.odd_files import CHANGES
from fastaug.console import Console
from fastaug.data.build import DataParts, build_loader
from fastaug.data.index import Index, load_index
from fastaug.data.loaders.base import Crop, Loading
from fastaug.data.sampler import Ids, Request
from fastaug.data.shards.layout import Settings, open_shards
from fastaug.data.shards.writer import make_shards
from fastaug.data.splits import Splits


@dataclass(frozen=True)
class Trial:
    """How a set is loaded. `changed` files of each kind of change are changed while the second epoch runs."""

    loader: str  # dali, resident, raw or jpeg
    batch: int
    threads: int
    exif: str = "ignore"
    changed: int = 0
    seed: int = 0


def loaded(root: Path, trial: Trial) -> dict[str, Any]:
    """Ids and skip reasons of each epoch, by path."""
    index = load_index(root / "set", exif=trial.exif, threads=trial.threads, cache=root / "cache")
    source = index
    if trial.loader in ("raw", "jpeg"):
        settings = Settings(trial.loader, 32, 95 if trial.loader == "jpeg" else None, 300, trial.exif)
        out = root / f"shards-{trial.loader}-{trial.exif}"
        make_shards(index, out, settings, workers=trial.threads, console=Console(main=False))
        source = open_shards(out, trial.exif)
    ids = np.arange(len(index), dtype=np.int64)
    parts = DataParts(index.classes, Splits(ids, ids[:0], ids[:0], ids[:0]), source)
    loading = Loading(torch.device("cpu"), trial.batch, trial.threads)
    resident = trial.loader == "resident"
    crop = Crop("whole" if resident else "rrc", 32, trial.seed, exif=trial.exif)
    epochs = []
    loader = build_loader(parts, ids, crop, loading, resident=resident)
    for epoch in range(2):
        order = np.random.default_rng(trial.seed + epoch).permutation(ids)
        requests = [Request(epoch, order[i : i + trial.batch]) for i in range(0, len(ids), trial.batch)]
        changing = _changing(index, order, trial, len(requests)) if epoch and trial.changed else iter(())
        used: list[int] = []
        for batch in loader.batches(requests):
            assert len(batch.ids) == len(batch.images) == len(batch.labels)
            used += batch.ids.tolist()
            next(changing, None)
        epochs.append({"used": _paths(index, used), "twice": len(used) - len(set(used))})
    skipped = {_paths(index, [id])[0]: reason for id, reason in loader.skipped.items()}
    return {"listed": _paths(index, ids.tolist()), "epochs": epochs, "skipped": skipped}


def _changing(index: Index, order: Ids, trial: Trial, times: int) -> Iterator[None]:
    """Changes files that the loader has still to read, a part of them each of the first times it is asked."""
    draw = np.random.default_rng(trial.seed)
    good = [id for id in order[::-1].tolist() if len(index.paths[id].split(b"/")[-1]) == 9 and id not in index.reasons]
    kinds = [*CHANGES] * trial.changed
    victims = good[: len(kinds)]
    for part in np.array_split(np.arange(len(kinds)), max(times // 2, 1)):
        for i in part.tolist():
            CHANGES[kinds[i]](Path(os.fsdecode(index.path(victims[i]))), draw)
        yield


def _paths(index: Index, ids: list[int]) -> list[str]:
    return [os.fsdecode(index.paths[id]) for id in ids]


def main() -> None:
    """The command."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    root, trial = Path(sys.argv[1]), Trial(**json.loads(sys.argv[2]))
    print(json.dumps({"trial": asdict(trial)} | loaded(root, trial)))


if __name__ == "__main__":
    main()
