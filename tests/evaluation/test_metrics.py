import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from fastaug.errors import DataError
from fastaug.evaluation.metrics import Evaluation

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def logits_and_labels(count: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of a model that is right now and then, and more sure than it should be."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    logits = torch.randn(count, classes, generator=generator) * 2
    logits[torch.arange(count), labels] += 1.5
    return logits, labels


def figures_by_numpy(logits: np.ndarray, labels: np.ndarray, bins: int) -> dict[str, float]:
    logits = logits.astype(np.float64)
    logp = (
        logits
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        - logits.max(1, keepdims=True)
    )
    rank = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(1)  # classes before the right one
    confidence, right = np.exp(logp).max(1), logits.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    ece = sum(abs(right[place == b].sum() - confidence[place == b].sum()) for b in range(bins)) / len(labels)
    nll = -logp[np.arange(len(labels)), labels].mean()
    return {"top1": right.mean(), "top5": (rank < 5).mean(), "nll": nll, "ece": ece}


def measured(accelerator: Accelerator, logits: torch.Tensor, labels: torch.Tensor, sizes: list[int], bins: int) -> dict:
    meter = Evaluation(logits.shape[1], bins, CPU)
    for part, of in zip(logits.split(sizes), labels.split(sizes), strict=True):
        meter.add(part, of)
    return meter.result(accelerator)


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 100])
@pytest.mark.parametrize("bins", [2, 15])
def test_figures_are_those_of_the_formulas(accelerator: Accelerator, classes: int, bins: int) -> None:
    logits, labels = logits_and_labels(1000, classes)
    result = measured(accelerator, logits, labels, [1000], bins)
    expected = figures_by_numpy(logits.numpy(), labels.numpy(), bins)
    assert result["images"] == 1000
    assert result["ece_bins"] == bins
    for name in ("top1", "top5", "nll"):
        assert result[name] == pytest.approx(expected[name], abs=1e-12), name
    assert result["ece"] == pytest.approx(expected["ece"], abs=1e-5)


def test_figures_are_those_of_torchmetrics(accelerator: Accelerator) -> None:
    logits, labels = logits_and_labels(500, 10)
    result = measured(accelerator, logits, labels, [500], 15)
    for name, k in (("top1", 1), ("top5", 5)):
        expected = multiclass_accuracy(logits, labels, num_classes=10, top_k=k, average="micro")
        assert result[name] == pytest.approx(expected.item(), abs=1e-6)
    assert result["nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits.double(), labels).item(), abs=1e-12)
    ece = multiclass_calibration_error(logits.softmax(-1), labels, num_classes=10, n_bins=15, norm="l1")
    assert result["ece"] == pytest.approx(ece.item(), abs=1e-6)


def test_uneven_and_empty_batches_count_each_image_once(accelerator: Accelerator) -> None:
    logits, labels = logits_and_labels(100, 7)
    whole = measured(accelerator, logits, labels, [100], 15)
    parts = measured(accelerator, logits, labels, [1, 0, 60, 7, 32], 15)
    assert parts.pop("f1_by_class") == pytest.approx(whole.pop("f1_by_class"))
    assert parts == pytest.approx(whole, abs=1e-6)


def test_bfloat16_outputs_are_summed_exactly(accelerator: Accelerator) -> None:
    logits, labels = logits_and_labels(3000, 10)
    coarse = logits.bfloat16()
    result = measured(accelerator, coarse, labels, [3000], 15)
    expected = figures_by_numpy(coarse.float().numpy(), labels.numpy(), 15)
    assert result["nll"] == pytest.approx(expected["nll"], abs=1e-12)
    assert result["ece"] == pytest.approx(expected["ece"], abs=1e-5)


def test_a_model_that_is_sure_and_right_and_one_that_is_sure_and_wrong(accelerator: Accelerator) -> None:
    labels = torch.tensor([0, 1, 2])
    sure = torch.nn.functional.one_hot(labels, 3).float() * 1000
    right = measured(accelerator, sure, labels, [3], 15)
    assert {k: right[k] for k in ("top1", "top5", "nll", "ece")} == {"top1": 1, "top5": 1, "nll": 0, "ece": 0}
    wrong = measured(accelerator, sure.roll(1, 1), labels, [3], 15)
    assert (wrong["top1"], wrong["nll"]) == (0, 1000)
    assert wrong["ece"] == pytest.approx(1)


def test_outputs_that_are_nan_hit_nothing(accelerator: Accelerator) -> None:
    nan = float("nan")
    logits = torch.tensor([[0.0, nan, 1.0], [nan, nan, nan], [0.0, 5.0, 1.0]])
    result = measured(accelerator, logits, torch.tensor([1, 0, 1]), [3], 15)
    assert (result["images"], result["top1"], result["top5"]) == (3, 1 / 3, 1 / 3)
    assert np.isnan([result["nll"], result["ece"]]).all()


@pytest.mark.parametrize("batches", [0, 1])
def test_no_image_at_all_is_an_error(accelerator: Accelerator, batches: int) -> None:
    meter = Evaluation(10, 15, CPU)
    for _ in range(batches):
        meter.add(torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="no image of the split could be decoded"):
        meter.result(accelerator)


RANK = """
import json, torch
from accelerate import Accelerator
from fastaug.evaluation.metrics import Evaluation
from fastaug.training.train_meter import TrainMeter
torch.set_num_threads(1)
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
assert accelerator.num_processes == 2
generator = torch.Generator().manual_seed(0)
logits, labels = torch.randn(30, 6, generator=generator), torch.randint(6, (30,), generator=generator)
figures = []
for cut in (20, 30):  # uneven; then nothing for the second process
    meter = Evaluation(6, 15, torch.device("cpu"), pairs=True)
    part = slice(0, cut) if rank == 0 else slice(cut, 30)
    meter.add(logits[part], labels[part])
    figures.append(meter.result(accelerator) | {"details": meter.details(accelerator, list("abcdef"))})
train = TrainMeter(accelerator)
train.add(torch.tensor(1.0 + rank), torch.tensor(7.0))
train.add(torch.tensor(3.0), torch.tensor(0.5))
figures.append(dict(zip(("loss", "grad_norm"), train.read())))
if rank == 0:
    print("FIGURES" + json.dumps(figures))
accelerator.end_training()  # or a thread of the process group may outlive the interpreter, which aborts
"""


def test_two_processes_give_the_figures_of_one(
    accelerator: Accelerator, tmp_path: Path, in_processes: Callable[..., str]
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    said = in_processes(2, script)
    uneven, lone, loss = json.loads(said.partition("FIGURES")[2].splitlines()[0])
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(30, 6, generator=generator), torch.randint(6, (30,), generator=generator)
    whole = measured(accelerator, logits, labels, [30], 15)
    meter = Evaluation(6, 15, CPU, pairs=True)
    meter.add(logits, labels)
    for figures in (uneven, lone):
        assert figures.pop("details") == meter.details(accelerator, list("abcdef"))
        assert figures.pop("f1_by_class") == pytest.approx(whole["f1_by_class"])
    del whole["f1_by_class"]
    assert uneven == pytest.approx(whole, abs=1e-6)
    assert lone == pytest.approx(whole, abs=1e-6)
    assert loss == {"loss": (1 + 2 + 2 * 3) / 2, "grad_norm": 0.5}


def test_f1_is_scikit_learns_and_a_class_that_nobody_names_has_none(accelerator: Accelerator) -> None:
    logits, labels = logits_and_labels(300, 6)
    labels[labels == 4] = 0  # named, but not there
    logits[:, 5], labels[labels == 5] = -torch.inf, 1  # neither
    logits[7] = torch.nan  # counts as wrong, for none
    result = measured(accelerator, logits, labels, [100, 200], 15)
    named = logits.argmax(1)
    named[7] = -1
    expected = f1_score(labels, named, labels=range(5), average=None, zero_division=0)
    assert result["f1_by_class"][:5] == pytest.approx(expected)
    assert result["f1_by_class"][5] is None
    assert result["f1_macro"] == pytest.approx(expected.mean())


def test_balanced_top1_is_the_mean_recall_of_the_classes_that_have_images(accelerator: Accelerator) -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    logits = torch.nn.functional.one_hot(torch.zeros_like(labels), 3).float()  # all for class 0
    logits[90:95] = torch.tensor([0.0, 1.0, 0.0])
    result = measured(accelerator, logits, labels, [40, 60], 15)
    assert result["top1"] == pytest.approx(0.95)
    assert result["balanced_top1"] == pytest.approx((1 + 0.5) / 2)  # class 2 has no image


def test_balanced_top1_is_scikit_learns(accelerator: Accelerator) -> None:
    logits, labels = logits_and_labels(300, 6)
    labels[labels == 4] = 0  # named, but not there
    result = measured(accelerator, logits, labels, [300], 15)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of predictions of class 4
        assert result["balanced_top1"] == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))


def test_averages_of_precision_recall_and_f1_are_scikit_learns(accelerator: Accelerator) -> None:
    logits, labels = logits_and_labels(300, 6)
    labels[labels == 4] = 0  # named, but not there
    logits[:, 3], logits[:, 5], labels[labels == 5] = -torch.inf, -torch.inf, 1  # there, not named; neither
    result = measured(accelerator, logits, labels, [100, 200], 15)
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(labels, logits.argmax(1), average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            if (name, average) != ("recall", "weighted"):  # top-1
                assert result[f"{name}_{average}"] == pytest.approx(value), (name, average)


def test_details_are_scikit_learns_table_and_matrix(accelerator: Accelerator) -> None:
    logits, labels = logits_and_labels(400, 5)
    labels[labels == 4] = 0
    logits[7] = torch.nan  # taken for nothing
    meter = Evaluation(5, 15, CPU, pairs=True)
    for part, of in zip(logits.split([150, 250]), labels.split([150, 250]), strict=True):
        meter.add(part, of)
    names = [f"class {label}" for label in range(5)]
    found = meter.details(accelerator, names)
    named = logits.argmax(1)
    keep = torch.arange(400) != 7
    wanted = confusion_matrix(labels[keep], named[keep], labels=range(5))
    matrix = [[found["confusion"].get(a, {}).get(b, 0) for b in names] for a in names]
    np.testing.assert_array_equal(matrix, wanted)
    named[7] = -1
    columns = precision_recall_fscore_support(labels, named, labels=range(5), zero_division=0)
    for row, precision, recall, f1, images in zip(found["classes"], *columns, strict=True):
        assert (row["precision"], row["f1"], row["images"]) == pytest.approx((precision, f1, images))
        assert row["recall"] == (pytest.approx(recall) if images else None)
