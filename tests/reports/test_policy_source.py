"""policy.py: a stranger's process with torchvision alone gives our pixels at the same draws, for every operation."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

from fastaug.augment.operation_sets import read_operations, transforms_of
from fastaug.augment.sequence_policy import SequencePolicy
from fastaug.augment.shared_policy import Draws, SharedPolicy
from fastaug.recipe.operation_files import FUNCTIONS, Operation, packaged_sets, read_entries
from fastaug.reports import policy_source as source
from fastaug.reports.policy_source import TOLERANCE, policy_source

FILL = (0.485, 0.456, 0.406)
SIZE = (24, 20)
EVERY = """
- {function: flip_x}
- {function: flip_y}
- {function: rotate, max: 60}
- {function: translate_x, max: 0.33}
- {name: by pixels x, function: translate_x, max: 5, absolute: true}
- {function: translate_y, max: 0.33}
- {name: by pixels y, function: translate_y, max: 5, absolute: true}
- {function: shear_x, max: 0.5}
- {function: shear_y, max: 0.5}
- {function: scale, max: 1.5}
- {function: scale_x, max: 1.5}
- {function: scale_y, min: 0.8, max: 1.1}
- {function: perspective, max: 0.3}
- {function: elastic, max: 0.1}
- {function: brightness, max: 1.9}
- {function: contrast, max: 1.9}
- {function: saturation, max: 1.9}
- {function: sharpness, max: 1.9}
- {name: +sharpness, function: sharpness, min: 1, max: 3}
- {function: hue, max: 0.5}
- {function: posterize, min: 2, max: 8}
- {function: solarize, min: 0, max: 1}
- {function: equalize, max: 1}
- {function: autocontrast, max: 1}
- {function: invert, max: 1}
- {function: cutout, min: 0.2, max: 0.6}
- {name: square, function: cutout, min: 0, max: 9, absolute: true}
- {function: blur, max: 0.06}
- {name: blurred, function: blur, max: 2.5, absolute: true}
- {function: stroke, min: -2, max: 2}
"""
# In a process that cannot have fastaug: no path leads to it.
PLAY = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("policy", sys.argv[1])
policy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(policy)
play, given = policy.LearnedPolicy(), torch.load(sys.argv[2])
torch.save([play(image, draws) for image, draws in zip(given["images"], given["draws"])], sys.argv[3])
assert not any(name.split(".")[0] in ("fastaug", "kornia", "timm") for name in sys.modules)
"""


def play(folder, text, images, draws):
    (folder / "policy.py").write_text(text)
    torch.save({"images": images, "draws": draws}, folder / "given.pt")
    command = [sys.executable, "-I", "-c", PLAY, *(str(folder / name) for name in ("policy.py", "given.pt", "out.pt"))]
    subprocess.run(command, check=True, cwd=folder, env={}, timeout=120)
    return torch.load(folder / "out.pt")


def drawn(policy, draws):
    """The draws of a policy as the program takes them."""
    amounts = policy.amounts(draws).detach()
    return [
        [
            (int(k) - 1, amounts[i, s, : len(policy.transforms[int(k) - 1].reach)].tolist())
            for s, k in enumerate(ops)
            if k > 0
        ]
        for i, ops in enumerate(draws.op)
    ]


def degrees(policy, draws):
    """Rotations are in radians there."""
    turn = torch.pi / 180
    name = [t.entry.function for t in policy.transforms]
    return [[(k, [a * turn for a in x] if name[k] == "rotate" else x) for k, x in ops] for ops in drawn(policy, draws)]


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    path = tmp_path_factory.mktemp("set") / "every.yaml"
    path.write_text(EVERY)
    assert {entry.function for entry in read_entries(str(path))} == FUNCTIONS.keys() - {"identity"}
    policy = SharedPolicy(read_operations(str(path), FILL), 2, magnitude=0.8, fill=FILL)
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(0))
        policy.strengths.add_(torch.linspace(-0.5, 0.5, len(policy.strengths)))
    return policy


def test_its_pixels_are_ours_for_every_operation_alone_and_in_pairs(every, tmp_path, photos):
    n, draw = len(every.transforms), torch.Generator().manual_seed(1)
    alone = torch.stack([torch.arange(1, n + 1), torch.zeros(n, dtype=torch.int64)], 1)
    pairs = torch.randint(0, n + 1, (40, 2), generator=draw)
    op = torch.cat([alone, alone, pairs])
    noise = 2 * torch.rand(len(op), 2, every.numbers, generator=draw) - 1
    photo = torch.tensor(photos[0]).permute(2, 0, 1) / 255
    tops = torch.randint(0, 400, (len(op), 2), generator=draw).tolist()
    images = torch.stack([photo[:, y : y + SIZE[0], x : x + SIZE[1]] for y, x in tops])
    draws = Draws(op, noise)
    with torch.no_grad():
        ours = every.apply(images, draws)
    text, left = policy_source(every, SIZE)
    assert not left
    theirs = torch.stack(play(tmp_path, text, list(images), degrees(every, draws)))
    apart = (theirs - ours).abs().amax((1, 2, 3))
    names = [[every.transforms[k - 1].name for k in ops if k] for ops in op.tolist()]
    assert not {str(name): float(d) for name, d in zip(names, apart, strict=True) if d > TOLERANCE}
    assert ((ours - images).abs().amax((1, 2, 3)) > 10 * TOLERANCE).float().mean() > 0.8


def test_it_takes_pictures_and_bytes_and_draws_as_learned(every):
    text, _ = policy_source(every, SIZE)
    space = {}
    exec(compile(text, "policy.py", "exec"), space)
    policy = space["LearnedPolicy"]()
    photo = Image.linear_gradient("L").resize((30, 20))
    assert policy(photo).size == (30, 20)
    assert policy(photo).mode == "RGB"
    gray = torch.arange(144, dtype=torch.uint8).view(1, 12, 12)
    assert policy(gray, []).equal(gray)
    assert policy(gray).dtype == torch.uint8
    torch.manual_seed(0)
    counts = torch.zeros(2, 1 + len(every.transforms))
    for slot, row in enumerate(every.probabilities().detach()):
        torch.testing.assert_close(torch.tensor(space["PROBABILITIES"][slot]), row, rtol=1e-3, atol=2e-4)
    for _ in range(2000):
        for k, amounts in policy.draw():
            counts[0, k + 1] += 1
            transform = every.transforms[k]
            largest = max(transform.reach) * (torch.pi / 180 if transform.entry.function == "rotate" else 1)
            assert all(abs(a) <= largest for a in amounts)
    shares = every.probabilities().detach().sum(0)[1:]
    assert (counts[0, 1:] / 2000 - shares).abs().max() < 0.05


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("name", packaged_sets())
def test_it_is_short(name, slots):
    policy = SharedPolicy(read_operations(name, FILL), slots, fill=FILL)
    lines = policy_source(policy, SIZE).text.splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 120
    for logits, strength in ((0.5, 1.0), (3.0, -9.0)):  # of more digits
        with torch.no_grad():
            policy.logits.normal_(0, logits, generator=torch.Generator().manual_seed(slots))
            policy.strengths.fill_(strength)
        assert len(policy_source(policy, SIZE).text.splitlines()) <= 80


def test_a_program_that_cannot_be_short_has_lines_of_the_usual_width(every):
    lines = policy_source(every, SIZE).text.splitlines()
    assert len(lines) > 80
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", packaged_sets())
def test_that_of_sequences_is_short_too(name):
    for slots in (1, 2, 3):
        policy = SequencePolicy(read_operations(name, FILL), slots, fill=FILL)
        text = policy_source(policy, SIZE).text
        assert len(text.splitlines()) <= 80  # a table of thousands stands in long lines
        space = {}
        exec(compile(text, "policy.py", "exec"), space)
        table = policy.scores().detach().softmax(1)
        torch.testing.assert_close(torch.tensor(space["PROBABILITIES"]), table, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_a_picture_of_any_mode_comes_out_as_rgb_as_its_head_says(every, mode):
    text, _ = policy_source(every, SIZE)
    assert "comes out as RGB" in text.split('"""')[1]
    space = {}
    exec(compile(text, "policy.py", "exec"), space)
    photo = Image.linear_gradient("L").resize((30, 20)).convert(mode)
    out = space["LearnedPolicy"]()(photo, [])
    assert out.mode == "RGB"
    assert out.tobytes() == photo.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_a_picture_of_more_than_8_bits_is_refused(every, mode):
    space = {}
    exec(compile(policy_source(every, SIZE).text, "policy.py", "exec"), space)
    with pytest.raises(AssertionError, match=f"{mode}: not 8 bits; give a tensor"):
        space["LearnedPolicy"]()(Image.new(mode, (30, 20)), [])


def test_it_works_where_numbers_are_float64(every):
    space = {}
    exec(compile(policy_source(every, SIZE).text, "policy.py", "exec"), space)
    image, policy = torch.rand(3, 24, 20), space["LearnedPolicy"]()
    draws = [[(k, [(a + 3 * b) / 4 for a, b in ranges])] for k, (_, ranges, *_) in enumerate(space["OPERATIONS"])]
    expected = [policy(image, each) for each in draws]
    torch.set_default_dtype(torch.float64)
    try:
        found = [policy(image, each) for each in draws]
    finally:
        torch.set_default_dtype(torch.float32)
    for (name, *_), got, wanted in zip(space["OPERATIONS"], found, expected, strict=True):
        assert got.dtype == torch.float32, name
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5, msg=name)


def test_what_cannot_be_written_is_told_and_not_drawn(monkeypatch):
    policy = SharedPolicy(read_operations("eight"), 1)
    monkeypatch.setattr(source, "MATRICES", {k: v for k, v in source.MATRICES.items() if k != "rotate"})
    text, left = policy_source(policy, SIZE)
    assert left == ["rotate"]
    assert "# LEFT OUT, its probability goes to doing nothing: 'rotate'\n" in text
    space = {}
    exec(compile(text, "policy.py", "exec"), space)
    assert len(space["OPERATIONS"]) == 7
    assert space["PROBABILITIES"][0] == pytest.approx([0.3, *[0.1] * 7])


def test_sequences_and_other_forms_of_probabilities(monkeypatch):
    monkeypatch.setattr(source, "MATRICES", {k: v for k, v in source.MATRICES.items() if k != "rotate"})
    policy = SequencePolicy(read_operations("eight"), 2)
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(0))
    space = {}
    exec(compile(policy_source(policy, SIZE).text, "policy.py", "exec"), space)
    table = policy.scores().detach().softmax(1).view(9, 9)
    given = torch.tensor(space["PROBABILITIES"][0]).view(8, 8)  # without rotate, the first
    torch.testing.assert_close(given[1:, 1:], table[2:, 2:], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(given[0, 1:], table[:2, 2:].sum(0), rtol=1e-3, atol=1e-4)
    torch.manual_seed(0)
    drawn = space["LearnedPolicy"]()
    pairs = torch.zeros(8, 8)
    for _ in range(3000):
        draws = [k for k, _ in drawn.draw()]
        if len(draws) == 2:
            pairs[draws[0] + 1, draws[1] + 1] += 1 / 3000
    assert (pairs[1:, 1:] - given[1:, 1:]).abs().max() < 0.02
    for form in ({"tau": 0.0}, {"mix": 0.0}):
        policy = SharedPolicy(read_operations("wide_geom"), 1, identity=0.9, **form)
        exec(compile(policy_source(policy, SIZE).text, "policy.py", "exec"), space)
        assert space["PROBABILITIES"][0] == pytest.approx([2 / 8, *[1 / 8] * 6], abs=1e-3)  # without rotate


@pytest.mark.parametrize("fill", ["border", "reflect"])
def test_what_lies_outside_is_as_ours(fill):
    policy = SharedPolicy(read_operations("wide_geom", fill), 1, magnitude=1.0, fill=fill)
    draws = Draws(torch.tensor([[k + 1] for k in range(7)]), torch.ones(7, 1, policy.numbers))
    images = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0)).expand(7, -1, -1, -1)
    ours = policy.apply(images, draws).detach()
    space = {}
    exec(compile(policy_source(policy, SIZE).text, "policy.py", "exec"), space)
    theirs = [space["LearnedPolicy"]()(image, own) for image, own in zip(images, degrees(policy, draws), strict=True)]
    assert (torch.stack(theirs) - ours).abs().max() < TOLERANCE


def test_names_are_never_code():
    hostile = ['"""', "');import os#", "a\\", "{most}", "é", "__import__('os')"]
    entries = [Operation(name, "rotate", -30, 30) for name in hostile]
    policy = SharedPolicy(transforms_of(entries), 1)
    for text in (policy_source(policy, SIZE).text,):
        space = {}
        exec(compile(text, "policy.py", "exec"), space)
        assert [operation[0] for operation in space["OPERATIONS"]] == hostile
        assert "import os" not in text.replace("');import os#", "")
