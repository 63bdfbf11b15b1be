"""The result of a run: result.json, and its summary on the screen."""

import shlex
from pathlib import Path
from typing import Any

from fastaug.data.packed.index import PackedIndex
from fastaug.data.shards.layout import ShardIndex
from fastaug.evaluation.class_table import print_worst
from fastaug.evaluation.latency import parameters
from fastaug.provenance import commit, versions
from fastaug.training.build import Trainer
from fastaug.training.checkpoint import name_of
from fastaug.training.model_facts import attach_result
from fastaug.training.timing import peak_memory

HEADLINE = (
    *("top1", "top5", "balanced_top1", "precision_macro", "recall_macro", "f1_macro", "f1_weighted"),
    *("nll", "ece", "ece_bins", "weights"),
)
MULTI_LABEL = ("mean_ap", "f1_micro", "f1_macro", "exact", "bce", "threshold", "weights")  # with data.multi_label


def write_result(trainer: Trainer, figures: dict[str, dict[str, Any]]) -> None:
    """Writes result.json with the figures of every split by name; main process, where there are some of test."""
    if not trainer.accelerator.is_main_process or "test" not in figures:
        return
    progress, metric = trainer.progress, trainer.metric
    one_label = trainer.recipe.data.multi_label == "off"
    best = {"step": progress.best_step, "metric": metric, f"select_{metric}": progress.best_value}
    result = {
        **{name: figures["test"][name] for name in (HEADLINE if one_label else MULTI_LABEL)},
        "checkpoint": "last",
        "test": figures["test"],
        "select": figures.get("select"),
        **{name: value for name, value in figures.items() if name not in ("test", "select")},
        "best": best if progress.best_step else None,
        "stopped_early": trainer.early,
        "parameters": parameters(trainer.network),
        "images_per_second": progress.images_seen / progress.train_seconds,
        "train_seconds": progress.train_seconds,
        "images_seen": progress.images_seen,
        "seconds_per_epoch": progress.train_seconds * trainer.order.steps_per_epoch / progress.step,
        **peak_memory(trainer.accelerator.device),
        "skipped_images": len(progress.skipped),
        **({"meta_shares": shared} if (shared := trainer.parts.splits.meta_shares) else {}),  # no result: an ablation
        "loader": trainer.recipe.data.loader,
        "source": source(trainer),
        "processes": trainer.accelerator.num_processes,
        "device": trainer.accelerator.device.type,
        "versions": versions(),
        "commit": commit(),
    }
    trainer.folder.write_json("result.json", result)
    attach_result(trainer, result)


def summarise(trainer: Trainer, test: dict[str, Any]) -> None:
    """Prints the figures of the test split, the speed of the run, where things are and what may come next."""
    progress = trainer.progress
    names = ("top1", "top5", "balanced_top1", "f1_macro", "nll", "ece", *MULTI_LABEL[:-1])
    rows = {f"test {name}": f"{test[name]:.4f}" for name in dict.fromkeys(names) if name in test}
    rows |= {
        "images/s": f"{progress.images_seen / progress.train_seconds:.0f}",
        "training": f"{progress.train_seconds:.1f} s",
        "skipped": str(len(progress.skipped)),
    }
    if progress.best_step is not None:
        rows[f"best {trainer.metric} of select"] = f"{progress.best_value:.4f}, {name_of(progress.best_step)}"
    print_worst(trainer.console, test)
    trainer.console.summary(f"{trainer.folder.path} ({test['weights']} weights, last checkpoint)", rows)
    for line in whereabouts(trainer.folder.path, trainer.record is not None):
        trainer.console.print(line)


def whereabouts(run: Path, keeps_samples: bool) -> list[str]:
    """Lines that say where the files of an ended run are, and the commands that go on from it, ready to be copied."""
    name = shlex.quote(str(run))
    labels = [f"  fastaug label-report {name}"] if keeps_samples else []
    learned = [f"  fastaug show-policy {name}"] if (run / "policy.json").exists() else []
    return [
        f"figures: {run / 'result.json'}; weights: {run / 'checkpoints'}",
        "next:",
        f"  fastaug report {name}",
        f"  fastaug predict {name} FILE|FOLDER",
        *labels,
        *learned,
    ]


def source(trainer: Trainer) -> str:
    """Where the pixels of a run came from."""
    index = trainer.parts.index
    if index is None:
        return "random pixels"
    packed = "packed" if isinstance(index, PackedIndex) else "files"
    stored = index.settings.format if isinstance(index, ShardIndex) else packed
    what = {
        "raw": "raw pixels of shards, read",
        "jpeg": "encoded files in shards, decoded by DALI",
        "packed": "encoded images of a packed set, decoded by DALI",
    }
    when = "once and kept in memory" if trainer.recipe.data.loader == "resident" else "for every batch"
    return f"{what.get(stored, 'encoded files, decoded by DALI')} {when}"
