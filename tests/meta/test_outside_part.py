"""A learned part from outside of the package: the example of docs/learned_parts.md, taken from the page and trained."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import LARGEST_MOMENTUM
from fastaug.training.worker import run

from .conftest import fresh_accelerator, last, lines

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

    return start


@pytest.mark.usefixtures("example")
def test_the_example_learns_beside_a_part_of_ours(train):
    folder = train(f"meta.learn=['{NAME}',softness]", f"meta.parts={{'{NAME}': {{lr: 0.02}}}}")
    learned = lines(folder, "learned")
    weights = [[line["class_weight/0"], line["class_weight/1"]] for line in learned]
    assert weights[0] == pytest.approx([1, 1], abs=0.0201)  # one step of Adam
    assert weights[-1] != pytest.approx([1, 1], abs=1e-4)
    assert learned[-1]["soften_k"] != 2
    assert all(line["hypergradient"] > 0 for line in lines(folder, "meta"))


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([f"meta.learn=['{NAME}']", f"meta.parts={{'{NAME}': {{rate: 1}}}}"], ["meta.parts", "'rate'", "lr: float"]),
        (["meta.learn=['class_weights:Nothing']"], ["class_weights:Nothing", "no subclass"]),
        (["meta.learn=['nowhere:Nothing']"], ["nowhere:Nothing", "cannot be imported", "PYTHONPATH"]),
        (["meta.learn=['pathlib:Path']"], ["pathlib:Path", "no subclass"]),
        ([f"meta.learn=['{NAME}']", f"meta.parts={{'{NAME}': {{lr: high}}}}"], [NAME, "lr = 'high'"]),
    ],
    ids=["argument", "class", "module", "kind", "value"],
)
def test_what_cannot_be_a_part_is_refused(train, settings, words):
    folder = train(*settings, code=2)
    reason = json.loads((folder / "status.json").read_text())["reason"]
    assert all(word in reason for word in words), reason


OTHERS = """
import torch

from fastaug.meta.learned_part import LearnedPart
from fastaug.meta.parts.inner_rates import InnerRates


class Rates(InnerRates):
    "Our part of the optimizer's settings under another name."


class Rows:
    def __init__(self):
        self.values = torch.zeros(200, 2, dtype=torch.float64)

    def rows(self, ids):
        return self.values[ids].requires_grad_()

    def move(self, ids, gradient):
        self.values[ids] -= gradient


class Table(LearnedPart):
    "Two numbers for every image, in float64, of which the first is the logarithm of its loss weight."

    def __init__(self, setting):
        super().__init__()
        self.table = Rows()
        self.register_buffer("values", self.table.values)

    def tables(self):
        return {"pairs": self.table}

    def target(self, target, view):
        return target._replace(weight=target.weight * view.rows["pairs"][:, 0].float().exp())


class Tint(LearnedPart):
    "A colour added to every image."

    acts_on_images = True

    def __init__(self, setting):
        super().__init__(0.05)
        self.colour = torch.nn.Parameter(torch.zeros(3, 1, 1))

    def images(self, images, view):
        return (images + self.colour).clamp(0, 1)


class Instant(LearnedPart):
    instant = True

    def revise(self, revision):
        return revision._replace(target=revision.target._replace(weight=2 * revision.target.weight))


class Forgot(LearnedPart):
    def __init__(self, setting):
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))
"""


@pytest.fixture
def others(tmp_path, monkeypatch):
    (tmp_path / "others.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("others", None)


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return last(folder)[1]["meta"]["learned"]


@pytest.mark.slow
@pytest.mark.usefixtures("others")
def test_parts_on_the_optimizer_on_images_and_with_tables_learn_from_outside_too(train):
    """And are continued: the values are those of a run without a break."""
    keys = ["meta.learn=['others:Rates','others:Tint','others:Table']", "train.epochs=2"]
    whole = train(*keys, "meta.regulariser=start")
    found = state_of(whole)
    for name, begin in (("Rates.rates.lr", 1.0), ("Rates.rates.momentum", 0.9)):
        bounds = (LARGEST_MOMENTUM, 0.0) if name.endswith("momentum") else (10.0, 0.1)
        share = found[f"parts.{name}.raw"].sigmoid()
        now = share * bounds[0] if bounds[1] == 0 else bounds[1] * (bounds[0] / bounds[1]) ** share
        assert abs(now.item() - begin) > 1e-4, name
    assert found["parts.Tint.colour"].abs().max() > 1e-3
    assert (found["parts.Table.values"][:, 0] != 0).sum() == 16
    assert (found["parts.Table.values"][:, 1] == 0).all()
    checkpoints = sorted((whole / "checkpoints").glob("step-*"))
    shutil.rmtree(checkpoints[-1])
    (whole / "checkpoints" / "last").write_text(checkpoints[0].name)
    fresh_accelerator()
    again = state_of(train(*keys, "meta.regulariser=start"))
    assert again.keys() == found.keys()
    assert all(torch.equal(again[name], found[name]) for name in found)


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["meta.learn=[softness,'others:Instant']"], "meta.learn: Instant: instant parts cannot be learned beside"),
        (["meta.learn=['others:Instant']", "meta.every=2"], "meta.every: 2 does not suit instant parts"),
        (
            ["meta.learn=['others:Tint']", "meta.engine=fused"],
            "meta.engine: fused differentiates targets and probabilities only, and Tint",
        ),
        (["meta.learn=['others:Rates']", "meta.engine=fused"], "and Rates learns elsewhere"),
        (
            ["meta.learn=['others:Tint']", "meta.engine=difference"],
            "meta.engine: difference is wrong for learned images (Tint)",
        ),
        (["meta.learn=['others:Rates']", "meta.approximate=true"], "meta.learn: Rates is not known for SGD"),
        (["meta.learn=['others:Tint']", "meta.regulariser=entropy"], "no learned part has one called entropy"),
        (["meta.learn=['others:Forgot']"], "others:Forgot: has parameters and lr = None"),
    ],
)
def test_what_does_not_suit_a_part_from_outside_is_refused(train, settings, words):
    folder = train(*settings, code=2)
    assert words in json.loads((folder / "status.json").read_text())["reason"]
