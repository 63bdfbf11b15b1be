"""What one run has learned acts in another: the same values, nothing learned, trained on train + meta."""

import json
import re
import shutil

import numpy as np
import torch

from fastaug.augment import load_policy
from fastaug.meta.learned_part import LearnedPart

from .conftest import assert_same, last, lines

LEARN = ["meta.learn=[policy,softness,smoothing,optim]", "meta.policy_lr=0.3", "meta.softness_lr=0.3"]


class Idle(LearnedPart):
    """A part from outside that does nothing."""

    def __init__(self, setting):  # noqa: ARG002
        super().__init__(0.1)
        self.number = torch.nn.Parameter(torch.tensor(3.0))


def reason(folder):
    return json.loads((folder / "status.json").read_text())["reason"]


def parts_of(folder):
    return json.loads((folder / "policy.json").read_text())["parts"]


def test_parts_act_as_they_were_learned_and_nothing_learns(train):
    learned = train("learned", *LEARN)
    parts = parts_of(learned)
    assert parts.keys() == {"policy", "softness", "smoothing", "optim"}
    frozen = train("frozen", *LEARN, f"meta.reuse={learned}")
    alone = train("alone", f"meta.reuse={learned / 'policy.json'}", "meta.learn=[]")
    for folder in (frozen, alone):
        assert parts_of(folder) == parts
        assert not lines(folder, "meta")
        state = last(folder)[1]
        assert state["meta"].keys() == {"learned"}
        assert_same(state["meta"]["learned"], last(learned)[1]["meta"]["learned"])
    assert_same(last(frozen)[0], last(alone)[0])
    images = [json.loads((folder / "result.json").read_text())["images_seen"] for folder in (learned, frozen)]
    assert images == [2 * 22, 2 * 32]  # with the 10 images of meta


def test_the_rest_of_a_frozen_run_is_a_plain_run_on_train_and_meta(train, tmp_path):
    outside = f"meta.learn=['{__name__}:Idle']"
    frozen = train("frozen", outside, "meta.frozen=true", "run.log_ids=true")
    lists = tmp_path / "lists"
    lists.mkdir()
    seen = {i for line in map(json.loads, (frozen / "ids-0.jsonl").read_text().splitlines()) for i in line["ids"]}
    (lists / "train.txt").write_text("".join(f"{i}\n" for i in sorted(seen)))
    (lists / "test.txt").write_text("".join(f"{i}\n" for i in sorted(set(range(40)) - seen)))
    plain = train(
        "plain",
        f"data.splits={lists}",
        "data.meta_fraction=0",
        "data.test_fraction=0",
        "meta.learn=[]",
        "run.log_ids=true",
    )
    assert len(seen) == 32
    assert (frozen / "ids-0.jsonl").read_text() == (plain / "ids-0.jsonl").read_text()
    assert_same(last(frozen)[0], last(plain)[0])


def test_needs_no_meta_split_and_continues_to_the_bit(train, tmp_path):
    learned = train("learned", *LEARN)
    keys = [f"meta.reuse={learned}", "meta.learn=[]", "data.meta_fraction=0", "train.epochs=3"]
    whole = train("whole", *keys)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for name in ("result.json", "status.json"):
        (cut / name).unlink()
    for step in sorted((cut / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(step)
    train("cut", *keys)
    assert_same(last(cut)[0], last(whole)[0])
    assert_same(last(cut)[1]["optimizer"], last(whole)[1]["optimizer"])
    for step in sorted((cut / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(step)
    (cut / "result.json").unlink()
    file = learned / "policy.json"
    file.write_text(re.sub(r'("k.raw": )[-\d.e]+', r"\g<1>0.5", file.read_text()))
    train("cut", *keys, code=2)
    assert "meta.reuse: has other values than when this run began" in reason(cut)


def test_weights_of_single_images_come_from_a_run_on_the_same_images(train):
    learned = train("learned", "meta.learn=[weights]")
    weights = last(learned)[1]["meta"]["learned"]["parts.weights.table.weight"]
    assert len(weights.unique()) > 2
    frozen = train("frozen", "meta.learn=[weights]", f"meta.reuse={learned}")
    assert_same(last(frozen)[1]["meta"]["learned"]["parts.weights.table.weight"], weights)
    again = train("again", f"meta.reuse={learned}", "meta.learn=[]")
    assert_same(last(again)[0], last(frozen)[0])
    other = train("other", "meta.learn=[weights]", f"meta.reuse={learned}", "data.split_seed=1", code=2)
    assert "weights: belongs to that run's images, labels and splits" in reason(other)
    other = train("file", "meta.learn=[weights]", f"meta.reuse={learned / 'policy.json'}", code=2)
    assert "numbers of single images are in no policy file" in reason(other)


MISFITS = [
    (
        ["meta.learn=[policy]", "meta.sequence=true"],
        "parts.policy.settings.sequence: is false, and the recipe makes",
    ),
    (["meta.learn=[policy]", "meta.slots=3"], "parts.policy.settings.slots: is 2, and the recipe makes it 3"),
    (["meta.learn=[policy]", "meta.operations=base"], "parts.policy.settings.operations: is [{"),
    (["meta.learn=[policy,weights]"], "weights: numbers of single images are in no policy file"),
    (["meta.learn=[softness]"], "parts.softness: is missing, policy, optim is there; take it out of meta.learn"),
    (["meta.learn=[optim]", "optim.opt=adamw"], "parts.optim.values.rates.momentum.raw: is no parameter of this"),
]


def test_what_does_not_fit_the_recipe_is_named_and_nothing_is_imported(train):
    learned = train("learned", "meta.learn=[policy,optim]", "train.epochs=1")
    file = learned / "policy.json"
    for number, (overrides, said) in enumerate(MISFITS):
        folder = train(f"other{number}", *overrides, f"meta.reuse={file}", code=2)
        assert f"meta.reuse: {file}: {said}" in reason(folder)
    file.write_text(file.read_text().replace('"kind": "optim"', f'"kind": "{__name__}:Idle"'))
    folder = train("hostile", "meta.learn=[]", f"meta.reuse={file}", code=2)
    assert f"parts: '{__name__}:Idle' does not come with fastaug" in reason(folder)


def test_the_policy_of_a_plain_loop_gives_the_pixels_of_the_run(train):
    learned = train("learned", "meta.learn=[policy]", "meta.policy_lr=0.3", "run.seed=3")
    policy = load_policy(learned, seed=3)
    assert len(policy.policy.logits.unique()) > 4
    images = torch.rand(6, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(6) + 7
    out = policy(images, ids, 4)
    from fastaug.seeding import Key, Stream

    draws = policy.policy.sample(Key(3, 4, Stream.LEARNED), ids)
    assert (out == policy.policy.apply(images, draws)).all()
    assert (out != images).any()
    assert not out.requires_grad
    assert np.allclose(policy.policy.fill, [0.485, 0.456, 0.406])
