"""What the tool finds in the last checkpoint of a run."""

import math
import re

import pytest
import torch

from fastaug.augment.augmenter import Augmenter
from fastaug.recipe.reading import to_yaml
from fastaug.recipe.schema import Data, Meta, Recipe
from fastaug.training import checkpoint


def ended(folder, amounts, **keys):
    """A run folder whose augmenter draws these amounts for any noise."""
    net = Augmenter("affine")
    with torch.no_grad():
        for number, name in enumerate(net.names):
            net.last.bias[number] = math.atanh(amounts.get(name, 0.0) / net.reach[number].item())
    for step, state in ((9, Augmenter("affine").state_dict()), (10, net.state_dict())):
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        learned = {f"parts.augmenter.net.{name}": value for name, value in state.items()}
        weights = {"model": {"weight": torch.zeros(1)}}
        checkpoint.save(folder / "checkpoints", step, weights, {"meta": {"learned": learned}})
    (folder / "checkpoints" / "step-00000011.tmp").mkdir()  # is being written
    meta = Meta(learn=["augmenter"], **keys)
    (folder / "recipe.yaml").write_text(to_yaml(Recipe(data=Data(root="x"), meta=meta)))
    return folder


def test_angle_zoom_and_shift_of_several_runs(tmp_path, tool):
    turned = ended(tmp_path / "turned", {"rotate": 45.0, "translate_x": 0.125})
    zoomed = ended(tmp_path / "zoomed", {"scale_x": math.log(1.5), "scale_y": math.log(1.5), "translate_y": -0.25})
    (tmp_path / "turned" / "result.json").write_text('{"top1": 0.95, "nll": 0.2}')
    lines = tool("known_shift", turned, zoomed).splitlines()
    assert [line.split()[0] for line in lines] == ["turned", "zoomed"]
    numbers = [[float(n) for n in re.findall(r"(-?[\d.]+) \(0\.000\)", line)] for line in lines]
    assert numbers[0] == pytest.approx([45, 1, 0.125, 0], abs=2e-3)
    assert numbers[1] == pytest.approx([0, 1.5, 0, -0.25], abs=2e-3)
    assert lines[0].endswith("top1 0.9500  nll 0.2000")


def test_a_run_without_an_augmenter_of_noise_is_named(tmp_path, tool):
    said = tool("known_shift", ended(tmp_path / "seeing", {}, conditioned=True), code=5)
    assert "seeing: has no augmenter of noise alone" in said
