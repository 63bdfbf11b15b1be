"""The tool on a real run: pictures and the matrix, which a distortion then repeats."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image
from torch import nn

from fastaug.batch import Batch
from fastaug.commands import show_features
from fastaug.errors import DataError, RecipeError
from fastaug.evaluation.confusion import Seen, confusion_csv, confusion_matrix, look, read_confusion
from fastaug.recipe.reading import read_recipe
from fastaug.reports.feature_map import confusion_picture, feature_map
from fastaug.training.worker import run

RECIPE = """
data: {img_size: 16, threads: 1, test_fraction: 0.5, select_fraction: 0.2}
model: {name: test_resnet}
train: {epochs: 1, batch_size: 4}
eval: {every: 0}
"""


def fresh():
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_a_run_is_shown_and_its_confusion_is_one_of_its_classes(tmp_path, jpeg_folder, monkeypatch, capsys):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    settings = [f"data.root={jpeg_folder(classes=3, images=12)}", f"run.dir={tmp_path / 'run'}"]
    assert run(read_recipe(tmp_path / "recipe.yaml", settings)) == 0
    fresh()
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    kept = (tmp_path / "run/recipe.yaml").read_text()
    (tmp_path / "other/recipe.yaml").write_text(kept.replace("precision: 'no'", "precision: bf16"))
    assert "precision: bf16" in (tmp_path / "other/recipe.yaml").read_text()
    monkeypatch.setattr(sys, "argv", ["show_features.py", str(tmp_path / "run"), str(tmp_path / "other")])
    assert show_features.main() == 0, capsys.readouterr()
    fresh()
    for name in ("features.png", "confusion.png"):
        with Image.open(tmp_path / "run" / name) as picture:
            assert picture.width > 200
    names = tuple(sorted(path.name for path in Path(settings[0].partition("=")[2]).iterdir()))
    matrix = read_confusion(tmp_path / "run/confusion.csv", names)
    assert matrix.sum(1).tolist() == [6, 6, 6]
    on_select = show_features.run_confusion(tmp_path / "run", names[::-1])
    assert on_select.sum() == 6
    fresh()


def test_features_are_what_the_classifier_is_given():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def get_classifier(self):
            return self.fc

        def forward(self, images):
            return self.fc(images * 2)

    class Plain:
        def evaluation(self, batch):
            return batch.images

    torch.manual_seed(0)
    net = Net()
    images = [torch.randn(n, 4) for n in (3, 2)]
    batches = [Batch(x, *[torch.arange(len(x))] * 3) for x in images]
    seen = look(net, batches, Plain(), 2)
    assert torch.equal(seen.features, torch.cat(images) * 2)
    assert torch.equal(seen.predicted, net(torch.cat(images))[:, :2].argmax(1))
    assert seen.labels.tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(DataError, match="no image of the split"):
        look(net, [], Plain(), 2)


def test_a_matrix_is_written_and_read_in_any_order_of_classes(tmp_path):
    seen = Seen(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 2, 1, 0]), torch.zeros(4, 1))
    matrix = confusion_matrix(seen, 3)
    assert matrix.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0]]
    file = tmp_path / "confusion.csv"
    file.write_bytes(confusion_csv(matrix, ("a,b", "\udce9", "c")))
    assert read_confusion(file, ("a,b", "\udce9", "c")).tolist() == matrix.tolist()
    assert read_confusion(file, ("c", "a,b")).tolist() == [[0, 1], [1, 1]]
    with pytest.raises(DataError, match="knows no class emu"):
        read_confusion(file, ("emu", "c"))
    for text, words in (("x,a\na,1\n", "not the same classes"), ("true class,a\na,-1\n", "below 0"), ("", "is no")):
        file.write_text(text)
        with pytest.raises(DataError, match=words):
            read_confusion(file, ("a",))


def test_a_split_of_few_images_has_no_map_and_says_so():
    seen = Seen(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), torch.zeros(3, 4))
    with pytest.raises(RecipeError, match="of 3 images there is no map; --no-map"):
        show_features.on_a_plane(seen, ("a", "b"), 2000)


def test_wrong_ones_are_drawn_larger_and_rows_are_shares():
    points, labels = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]), np.array([0, 1, 0])
    none = np.zeros(3, dtype=bool)
    plain, marked = (np.asarray(feature_map(points, labels, wrong, ("a", "b"))) for wrong in (none, ~none))
    dark = [int((picture[:740].sum(2) < 150).sum()) for picture in (plain, marked)]
    assert dark[1] > dark[0] + 20  # the edge of a larger dot
    small = np.asarray(confusion_picture(np.array([[3.0, 1.0], [0.0, 0.0]]), ("a", "b")))
    large = confusion_picture(np.eye(100), [str(i) for i in range(100)])
    assert small[206, 206].tolist() == [64, 64, 64]
    assert small[206, 206 + 34].tolist() == [191, 191, 255]
    assert large.width < 800
