"""What checks are refused for, and what a temperature is fitted on; whole evaluations: tests/commands."""

from typing import Any

import numpy as np
import pytest

from fastaug.data.build import DataParts, synthetic_parts
from fastaug.data.index import Index
from fastaug.data.path_table import PathTable
from fastaug.data.splits import Splits
from fastaug.errors import RecipeError
from fastaug.recipe.schema import Recipe
from fastaug.training.evaluation_checks import Checks, Scene, begin, images_to_fit

IDS = np.arange(20)


def scene(split: str = "test", **parts: Any) -> Scene:
    """Five images of each split, and nothing that could be run."""
    splits = Splits(**{"train": IDS[:5], "meta": IDS[5:10], "select": IDS[10:15], "test": IDS[15:], **parts})
    nothing: Any = None
    return Scene(Recipe(), nothing, DataParts(("a", "b"), splits, None), nothing, nothing, split)


def test_it_is_fitted_on_a_split_that_is_not_reported() -> None:
    fitted, left_out = images_to_fit(scene(), "select")
    assert (fitted.tolist(), left_out.tolist()) == (IDS[10:15].tolist(), [])
    assert images_to_fit(scene(), "meta")[0].tolist() == IDS[5:10].tolist()
    with pytest.raises(RecipeError, match="select has images of select, which is reported"):
        images_to_fit(scene("select"), "select")
    with pytest.raises(RecipeError, match="meta has images of test"):  # as with @test in meta.txt
        images_to_fit(scene(meta=IDS[15:], meta_shares="test"), "meta")
    with pytest.raises(RecipeError, match=r"no meta split \(data.meta_fraction=0\); fit it on select, or on a share"):
        images_to_fit(scene(meta=IDS[:0]), "meta")


def test_a_share_is_drawn_by_id_and_not_reported() -> None:
    fitted, left_out = images_to_fit(scene(), "0.6")
    assert len(fitted) == 3
    assert np.array_equal(fitted, left_out)
    assert set(fitted) < set(range(15, 20))
    grown = images_to_fit(scene(test=IDS[14:], select=IDS[10:14]), "0.5")[0]
    assert len({*fitted} & {*grown}) >= 2  # the order of two ids does not depend on others
    for wrong in ("0", "1", "nan", "-0.5", "train"):
        with pytest.raises(RecipeError, match="neither select nor meta, nor a share"):
            images_to_fit(scene(), wrong)
    with pytest.raises(RecipeError, match="leaves none"):
        images_to_fit(scene(), "0.01")


def test_images_of_several_classes_are_refused() -> None:
    one = scene()
    zeros = np.zeros(20, np.int64)
    hot = np.zeros((20, 2), np.uint8)
    columns: Any = [zeros] * 5
    index = Index(None, ("a", "b"), PathTable.of([b"x"] * 20), *columns, {}, multi_hot=hot)  # type: ignore[arg-type]
    one.parts = DataParts(("a", "b"), one.parts.splits, index)
    assert begin(Checks(severities=(1,)), one) == []  # which wants none
    with pytest.raises(RecipeError, match=r"data\.multi_label: calibration and robustness"):
        begin(Checks(occlusion=1), one)


def test_synthetic_images_have_no_label_map(tmp_path: Any) -> None:
    one = scene()
    one.parts = synthetic_parts(20, 2, 5)
    with pytest.raises(RecipeError, match="synthetic images have no names"):
        begin(Checks(label_map=tmp_path / "map.json"), one)
