"""A learned part from outside of the package: the example of docs/learned_parts.md, taken from the page and trained."""

import json
import re
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from fastaug.recipe.reading import read_recipe
from fastaug.training.worker import run

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "learned_parts.md").read_text()
RECIPE = """
data: {img_size: 20, crop: rrc, threads: 1}
model: {name: test_resnet}
optim: {opt: sgd, lr: 0.02}
train: {epochs: 2, batch_size: 8}
augment: {cutmix: 1.0, shift: 0.2}
meta: {every: 1, fraction: 1, batch_size: 6, engine: forward}
eval: {every: 0}
run: {log_every: 1}
"""
NAME = "class_weights:ClassWeights"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The page's Python example as a module in a folder of its own."""
    (source,) = re.findall(r"```python\n# class_weights.py\n(.*?)```", PAGE, re.S)
    assert len(source.splitlines()) <= 30
    (tmp_path / "class_weights.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield source
    sys.modules.pop("class_weights", None)


@pytest.fixture
def train(tmp_path, jpeg_folder):
    root = jpeg_folder(splits=("train", "meta", "test"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def start(*overrides: str, code: int = 0) -> Path:
        settings = [f"data.root={root}", f"run.dir={tmp_path / 'run'}", *overrides]
        assert run(read_recipe(tmp_path / "recipe.yaml", settings)) == code
        return tmp_path / "run"

    yield start
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.mark.usefixtures("example")
def test_the_example_learns_beside_a_part_of_ours(train):
    folder = train(f"meta.learn=['{NAME}',softness]", f"meta.parts={{'{NAME}': {{lr: 0.02}}}}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    learned = [line for line in lines if line["event"] == "learned"]
    weights = [[line["class_weight/0"], line["class_weight/1"]] for line in learned]
    assert weights[0] == pytest.approx([1, 1], abs=0.0201)  # one step of Adam
    assert weights[-1] != pytest.approx([1, 1], abs=1e-4)
    assert learned[-1]["soften_k"] != 2
    assert all(line["hypergradient"] > 0 for line in lines if line["event"] == "meta")


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([f"meta.learn=['{NAME}']", f"meta.parts={{'{NAME}': {{rate: 1}}}}"], ["meta.parts", "'rate'", "lr: float"]),
        (["meta.learn=['class_weights:Nothing']"], ["class_weights:Nothing", "cannot be imported", "PYTHONPATH"]),
        (["meta.learn=['nowhere:Nothing']"], ["nowhere:Nothing", "cannot be imported", "No module named"]),
        (["meta.learn=['pathlib:Path']"], ["pathlib:Path", "no subclass"]),
    ],
    ids=["argument", "class", "module", "kind"],
)
def test_what_cannot_be_a_part_is_refused(train, settings, words):
    folder = train(*settings, code=2)
    reason = json.loads((folder / "status.json").read_text())["reason"]
    assert all(word in reason for word in words), reason
