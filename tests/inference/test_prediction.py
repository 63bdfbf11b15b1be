"""Predictions are evaluation's: the same loader, preprocessing and arithmetic, to the bit."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

import fastaug
from fastaug.augment.pipeline import BatchAugment
from fastaug.data.loose_files import find_images
from fastaug.data.sampler import evaluation_requests
from fastaug.distributed import build_accelerator
from fastaug.errors import DataError, RecipeError
from fastaug.evaluation.test_time import TestTimeAugmentation
from fastaug.inference.prediction import build_predictor, predict
from fastaug.recipe.schema import Recipe
from fastaug.training.build_data import evaluation_loader, find_data

Ids = npt.NDArray[np.int64]


def held_out(run: Path) -> Path:
    return run.parent / "images" / "val"


def evaluated(recipe: Recipe, network: torch.nn.Module, copies: int = 0) -> tuple[torch.Tensor, Ids]:
    """Logits and labels of the test split of a run as evaluation has them, in the order of paths."""
    for kept in (AcceleratorState, GradientState, PartialState):  # of a run in this process, in another precision
        kept._reset_state()
    accelerator = build_accelerator(recipe)
    parts = find_data(recipe, accelerator)
    loader = evaluation_loader(recipe, accelerator, parts, parts.splits.test)
    augment = BatchAugment(recipe, len(parts.classes))
    test_time = TestTimeAugmentation(recipe, augment, copies) if copies else None
    found, labels = [], []
    with torch.no_grad(), accelerator.autocast():
        for batch in loader.batches(evaluation_requests(parts.splits.test, recipe.eval.batch_size, 1, 0)):
            logits = network(augment.evaluation(batch)) if test_time is None else test_time.logits(network, batch, 12)
            found.append(logits[:, :12])
            labels.append(batch.labels)
    return torch.cat(found), torch.cat(labels).numpy()


def predicted(run: Path, **choices: Any) -> tuple[torch.Tensor, Any]:
    predictor = build_predictor(run, **choices)
    paths = find_images([held_out(run)]).paths
    logits = torch.zeros(len(paths), 12)
    index = predictor.index_of(paths)

    def keep(rows: Ids, batch: torch.Tensor) -> None:
        logits[rows] = batch.to(logits)

    assert not predictor.logits(index, keep)
    return logits, predictor


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_logits_of_the_test_split_are_those_of_evaluation(
    tiny_run: Path, train_tiny: Callable[..., Path], precision: str
) -> None:
    run = tiny_run if precision == "no" else train_tiny(train__precision=precision, train__epochs=1)
    logits, predictor = predicted(run)
    ours, labels = evaluated(predictor.recipe, predictor.network)
    assert torch.equal(logits, ours.float())
    result = predictor.facts.result
    assert result is not None
    assert float((logits.argmax(1).numpy() == labels).mean()) == pytest.approx(result["top1"], abs=1e-12)


def test_probabilities_are_ranked_and_named(tiny_run: Path) -> None:
    logits, predictor = predicted(tiny_run)
    found = predict(predictor, find_images([held_out(tiny_run)]).paths, 3)
    assert found.outputs.shape == (48, 3)
    assert np.array_equal(found.outputs[:, 0], logits.argmax(1).numpy())
    assert np.allclose(found.probabilities[:, 0], logits.double().softmax(1).max(1).values.numpy(), atol=1e-12)
    assert (np.diff(found.probabilities, axis=1) <= 0).all()


def test_of_several_labels_each_has_a_probability_of_its_own(tiny_run: Path) -> None:
    predictor = build_predictor(tiny_run)
    data = replace(predictor.recipe.data, multi_label="separated")
    several = replace(predictor, recipe=replace(predictor.recipe, data=data))
    found = predict(several, find_images([held_out(tiny_run)]).paths, 12)
    want = predicted(tiny_run)[0].double().sigmoid().sort(1, descending=True).values
    np.testing.assert_allclose(found.probabilities, want.numpy(), rtol=1e-6)


def test_it_agrees_with_load_on_one_picture(tiny_run: Path) -> None:
    model, transform, classes = fastaug.load(tiny_run)
    file = next(held_out(tiny_run).rglob("*.jpg"))
    with torch.no_grad():
        by_hand = model(transform(Image.open(file))[None])[0].softmax(0)
    found = predict(build_predictor(tiny_run), [os.fsencode(file)], 1)
    assert classes[int(found.outputs[0, 0])] == classes[int(by_hand.argmax())]
    assert float(found.probabilities[0, 0]) == pytest.approx(float(by_hand.max()), abs=1e-5)


def test_copies_under_the_policy_are_those_of_evaluation(train_tiny: Callable[..., Path]) -> None:
    run = train_tiny(augment__aa="ta_wide", train__epochs=1)
    plain, _ = predicted(run)
    averaged, predictor = predicted(run, copies=2)
    assert not torch.allclose(averaged.softmax(1), plain.softmax(1), atol=1e-4)
    assert torch.allclose(averaged.exp().sum(1), torch.ones(len(averaged)), atol=1e-5)
    # Draws are made for row numbers, which here are not the ids of the set: one copy fewer is another mean.
    ones, _ = predicted(run, copies=1)
    assert not torch.equal(ones, averaged)
    assert predictor.recipe.eval.tta == 2


def test_copies_without_a_policy_are_refused(tiny_run: Path) -> None:
    with pytest.raises(RecipeError, match="--tta: 2 copies would all be the image itself; leave it out"):
        build_predictor(tiny_run, copies=2)


def test_damaged_images_keep_their_rows(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    good = find_images([held_out(tiny_run)]).paths[:2]
    paths = [good[0], os.fsencode(tmp_path / "broken.jpg"), good[1]]
    found = predict(build_predictor(tiny_run), paths)
    assert list(found.damaged) == [1]
    assert (found.outputs[1] == -1).all()
    assert np.isnan(found.probabilities[1]).all()
    assert np.array_equal(found.outputs[[0, 2]], predict(build_predictor(tiny_run), good).outputs)
    with pytest.raises(DataError, match=r"not one of 1 images can be decoded, the first .*broken\.jpg"):
        predict(build_predictor(tiny_run), paths[1:2])


def test_more_classes_than_there_are_cannot_be_told(tiny_run: Path) -> None:
    paths = find_images([held_out(tiny_run)]).paths[:1]
    assert predict(build_predictor(tiny_run), paths, 12).outputs.shape == (1, 12)
    with pytest.raises(RecipeError, match="13 is not between 1 and 12"):
        predict(build_predictor(tiny_run), paths, 13)


def test_a_temperature_divides_the_logits(tiny_run: Path) -> None:
    paths = find_images([held_out(tiny_run)]).paths[:3]
    predictor = build_predictor(tiny_run)
    plain, soft = predict(predictor, paths, 12), predict(predictor, paths, 12, temperature=2.0)
    assert np.array_equal(soft.outputs, plain.outputs)
    root = np.sqrt(plain.probabilities)
    np.testing.assert_allclose(soft.probabilities, root / root.sum(1, keepdims=True), rtol=1e-9)
    for wrong in (0.0, float("nan"), float("inf")):
        with pytest.raises(RecipeError, match="is no number above 0"):
            predict(predictor, paths, 12, temperature=wrong)
