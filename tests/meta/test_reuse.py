"""What one run has learned acts in another: the same values, nothing learned, trained on train + meta."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch

from fastaug.augment import load_policy
from fastaug.meta.learned_part import LearnedPart
from fastaug.seeding import Key, Stream

from .conftest import assert_same, last, lines

PARTS = "meta.learn=[policy,softness,smoothing,optim]"
LEARN = [PARTS, "meta.probabilities=score", "meta.policy_lr=0.3", "meta.softness_lr=0.3", "train.epochs=1"]
MISFITS = [
    (["meta.learn=[policy]", "meta.sequence=true"], "parts.policy.settings.sequence: is false, and the recipe makes"),
    (["meta.learn=[policy]", "meta.slots=3"], "parts.policy.settings.slots: is 2, and the recipe makes it 3"),
    (["meta.learn=[policy]", "meta.operations=base"], "parts.policy.settings.operations (how many): is "),
    (["meta.learn=[policy,weights]"], "weights: numbers of single images are in no policy file"),
    (["meta.learn=[augmenter]"], "parts.augmenter: is missing, policy, softness, smoothing, optim is there; take it"),
    (["meta.learn=[optim]", "optim.opt=adamw"], "parts.optim.values.rates.momentum.raw: is no parameter of this"),
    (["meta.learn=[]", "augment.shift=0"], "holds policy, softness, smoothing, optim, and meta.learn: softness has no"),
]


class Idle(LearnedPart):
    """A part from outside that does nothing."""

    def __init__(self, setting):  # noqa: ARG002
        super().__init__(0.1)
        self.number = torch.nn.Parameter(torch.tensor(3.0))


def reason(folder):
    return json.loads((folder / "status.json").read_text())["reason"]


def parts_of(folder):
    found = json.loads((folder / "policy.json").read_text())["parts"]
    return {name: {key: part[key] for key in ("kind", "settings", "values", "summary")} for name, part in found.items()}


def wider(file):
    """The policy's operations as a file, the second of them with a wider range."""
    operations = json.loads(file.read_text())["parts"]["policy"]["settings"]["operations"]
    operations[1]["max"] = 0.4
    path = file.parent / "wider.yaml"
    path.write_text("\n".join(f"- {json.dumps(operation)}" for operation in operations))
    return path


def without_checkpoints_behind(folder, kept):
    """As after a kill: the first `kept` checkpoints, and no end."""
    (folder / "result.json").unlink()
    for step in sorted((folder / "checkpoints").glob("step-*"))[kept:]:
        shutil.rmtree(step)


def test_parts_act_as_they_were_learned_and_nothing_learns(train):
    learned = train("learned", *LEARN, "run.seed=3")
    parts, file = parts_of(learned), learned / "policy.json"
    assert parts.keys() == {"policy", "softness", "smoothing", "optim"}
    frozen = train("frozen", PARTS, f"meta.reuse={learned}", "train.epochs=2")
    alone = train("alone", "meta.learn=[]", f"meta.reuse={file}", "data.meta_fraction=0", "train.epochs=2")
    for folder in (frozen, alone):
        assert parts_of(folder) == parts
        assert not lines(folder, "meta")
        state = last(folder)[1]
        assert state["meta"].keys() == {"learned", "settings"}
        assert_same(state["meta"]["learned"], last(learned)[1]["meta"]["learned"])
    assert_same(last(frozen)[0], last(alone)[0])
    assert json.loads((learned / "result.json").read_text())["images_seen"] == 22
    assert json.loads((frozen / "result.json").read_text())["images_seen"] == 2 * 32  # with the 10 images of meta

    # ---- continued ----
    whole = last(alone)
    without_checkpoints_behind(alone, 1)
    again = train("alone", "meta.learn=[]", f"meta.reuse={file}", "data.meta_fraction=0", "train.epochs=2")
    assert_same(last(again)[0], whole[0])
    assert_same(last(again)[1]["optimizer"], whole[1]["optimizer"])

    # ---- in a plain loop ----
    policy = load_policy(learned, seed=3)
    images, ids = torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(0)), torch.arange(6) + 7
    out = policy(images, ids, 4)
    assert (out == policy.policy.apply(images, policy.policy.sample(Key(3, 4, Stream.LEARNED), ids))).all()
    assert (out != images).any()
    assert not out.requires_grad
    assert np.allclose(policy.policy.fill, [0.485, 0.456, 0.406])

    # ---- what does not fit ----
    for number, (overrides, said) in enumerate(MISFITS):
        other = train(f"other{number}", *overrides, f"meta.reuse={file}", code=2)
        assert f"meta.reuse: {file}: {said}" in reason(other).replace(f"{file} holds", f"{file}: holds")
    other = train("ranges", "meta.learn=[policy]", f"meta.operations={wider(file)}", f"meta.reuse={file}", code=2)
    assert "settings.operations[1].max: is 0.33, and the recipe makes it 0.4; set the recipe's key" in reason(other)
    content = file.read_text()
    file.write_text(content.replace('"kind": "optim"', f'"kind": "{__name__}:Idle"'))
    other = train("hostile", "meta.learn=[]", f"meta.reuse={file}", code=2)
    assert f"parts: '{__name__}:Idle' does not come with fastaug" in reason(other)
    file.write_text(content.replace('"kind": "policy"', '"kind": "os:system"'))
    other = train("other kind", PARTS, f"meta.reuse={file}", code=2)
    assert 'parts.policy.kind: is "os:system", and "policy" is needed; take' in reason(other)
    without_checkpoints_behind(alone, 1)
    for changed in (
        re.sub(r'("k.raw": )[-\d.e]+', r"\g<1>0.5", content),
        content.replace('"max": 30.0', '"max": 31.0'),
    ):
        assert changed != content
        file.write_text(changed)
        other = train("alone", "meta.learn=[]", f"meta.reuse={file}", "data.meta_fraction=0", "train.epochs=2", code=2)
        assert "meta.reuse: does not hold what this run began with" in reason(other)


@pytest.mark.slow
def test_what_reaches_pixels_is_told_on_images_of_another_size(train, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("[{function: stroke, max: 1}, {function: rotate, max: 9}]")
    of = ["meta.learn=[policy]", "meta.probabilities=score", f"meta.operations={tmp_path}/own.yaml", "train.epochs=1"]
    learned = train("pixels", *of)
    for size, told in ((20, False), (24, True)):
        train(f"at {size}", "meta.learn=[]", f"meta.reuse={learned}", "train.epochs=1", f"data.img_size={size}")
        said = " ".join(capsys.readouterr().out.split())
        assert ("meta.reuse: stroke act by pixels: learned on images of 20, here they are of 24" in said) == told


def test_the_rest_of_a_frozen_run_is_a_plain_run_on_train_and_meta(train, tmp_path):
    keys = ["run.log_ids=true", "train.epochs=1"]
    frozen = train("frozen", f"meta.learn=['{__name__}:Idle']", "meta.frozen=true", *keys)
    control = train("control", "meta.learn=[]", "meta.frozen=true", *keys)
    seen = {i for line in map(json.loads, (frozen / "ids-0.jsonl").read_text().splitlines()) for i in line["ids"]}
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("".join(f"{i}\n" for i in sorted(seen)))
    (lists / "test.txt").write_text("".join(f"{i}\n" for i in sorted(set(range(40)) - seen)))
    plain = [f"data.splits={lists}", "data.meta_fraction=0", "data.test_fraction=0", "meta.learn=[]"]
    plain = train("plain", *plain, *keys)
    assert len(seen) == 32
    for other in (control, plain):
        assert (frozen / "ids-0.jsonl").read_text() == (other / "ids-0.jsonl").read_text()
        assert_same(last(frozen)[0], last(other)[0])


@pytest.mark.slow
def test_weights_of_single_images_come_from_a_run_on_the_same_images(train):
    learned = train("learned", "meta.learn=[weights]", "train.epochs=1")
    weights = last(learned)[1]["meta"]["learned"]["parts.weights.table.weight"]
    assert len(weights.unique()) > 2
    frozen = train("frozen", "meta.learn=[weights]", f"meta.reuse={learned}", "train.epochs=1")
    assert_same(last(frozen)[1]["meta"]["learned"]["parts.weights.table.weight"], weights)
    again = train("again", "meta.learn=[]", f"meta.reuse={frozen}", "train.epochs=1")  # of a run that was frozen itself
    assert_same(last(again)[0], last(frozen)[0])
    other = train("other", "meta.learn=[weights]", f"meta.reuse={learned}", "data.split_seed=1", code=2)
    assert "weights: belongs to that run's images, labels and splits" in reason(other)
    other = train("file", "meta.learn=[weights]", f"meta.reuse={learned / 'policy.json'}", code=2)
    assert "numbers of single images are in no policy file" in reason(other)


@pytest.mark.slow
def test_tables_act_in_the_form_in_which_they_were_learned(train):
    """Softplus numbers of 0 are weights of 1, and no weight as bounded ones; RMSprop's own rows belong to the state."""
    keys = ["meta.weights_form=softplus", "meta.table_optimizer=rmsprop"]
    learned = train("learned", "meta.learn=[weights]", *keys, "train.epochs=1")
    again = train("again", "meta.learn=[]", f"meta.reuse={learned}", "train.epochs=1")
    third = train("third", "meta.learn=[]", f"meta.reuse={again}", "train.epochs=1")
    of_id = [weights_told(folder) for folder in (learned, again, third)]
    assert all(weight > 0.1 for weight in of_id[0].values())
    for other in of_id[1:]:
        assert {i: other[i] for i in of_id[0]} == of_id[0]
    apart = train("apart", "meta.learn=[weights]", keys[1], f"meta.reuse={learned}", code=2)
    assert "was learned with meta.weights_form = softplus, and the recipe has bounded; set it to that" in reason(apart)


def weights_told(folder):
    with open(folder / "samples.csv", newline="") as file:
        return {row["id"]: float(row["weight"]) for row in csv.DictReader(file)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["shared", "each"])
def test_a_sample_policy_acts_as_it_was_learned(train, kind):
    keys = ["meta.learn=[sample_policy]", f"meta.sample_policy={kind}", "meta.sample_policy_lr=0.5", "train.epochs=1"]
    learned = train("learned", *keys)
    again = train("again", "meta.learn=[]", f"meta.reuse={learned}", "train.epochs=1")
    values = last(learned)[1]["meta"]["learned"]
    assert_same(last(again)[1]["meta"]["learned"], values)
    (numbers,) = (value for name, value in values.items() if value.shape[-1:] == (14,))
    assert numbers.std(0).max() > 0 if kind == "each" else numbers[:7].std() > 0
    refused = train("refused", *keys, "meta.reuse=" + str(learned / "policy.json"), code=2 if kind == "each" else 0)
    assert kind == "shared" or "numbers of single images are in no policy file" in reason(refused)
