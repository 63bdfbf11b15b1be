"""summary.csv as timm's training script writes it: a line an epoch, made of the lines of metrics.jsonl."""

import csv
import io
import math
from pathlib import Path
from typing import Any

from fastaug.training.run_folder import read_log

COLUMNS = ("epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr")


def read_epochs(file: Path, weights: str, last_step: float = math.inf) -> dict[int, dict[str, float]]:
    """By epoch, from 1: mean training loss, learning rate of its last line, figures of select, or test without it.

    Up to `last_step`; the figures are those of the network's `weights` ("raw" or "ema").
    """
    lines = [line for line in read_log(file) if line["step"] <= last_step] if file.is_file() else []
    epochs: dict[int, dict[str, float]] = {}
    before, losses = 0, dict[int, tuple[float, int]]()
    for line in (line for line in lines if line["event"] == "train"):
        epoch, updates = math.ceil(line["epoch"]), line["step"] - before
        total, count = losses.get(epoch, (0.0, 0))
        losses[epoch] = total + updates * line["loss"], count + updates
        epochs[epoch] = {"train_loss": losses[epoch][0] / losses[epoch][1], "lr": line["lr"]}
        before = line["step"]
    split = "select" if any(line["event"] == "select" for line in lines) else "test"
    for line in (line for line in lines if line["event"] == split and line["weights"] == weights):
        epochs.setdefault(math.ceil(line["epoch"]), {}).update(evaluated(line))
    return epochs


def evaluated(figures: dict[str, Any]) -> dict[str, float]:
    """The figures of an evaluation by timm's names, shares in per cent; images of several classes have no top-1."""
    if "bce" in figures:
        return {"eval_loss": figures["bce"]}
    return {"eval_loss": figures["nll"], "eval_top1": 100 * figures["top1"], "eval_top5": 100 * figures["top5"]}


def summary_table(epochs: dict[int, dict[str, float]]) -> bytes:
    """The file; what an epoch lacks stays empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({"epoch": epoch - 1, **values} for epoch, values in sorted(epochs.items()))  # timm counts from 0
    return text.getvalue().encode()
