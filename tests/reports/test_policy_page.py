"""Charts and page of a learned policy, from lines of a log and from draws; a browser, where there is one, opens it."""

import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from fastaug.augment.operation_sets import read_operations
from fastaug.augment.policy_settings import drawn_values
from fastaug.augment.shared_policy import SharedPolicy
from fastaug.reports import charts, policy_page
from fastaug.reports.thumbnails import png
from fastaug.seeding import Key, Stream


def line(epoch, **values):
    return {"event": "learned", "step": int(10 * epoch), "epoch": epoch, **values}


LINES = [
    line(
        epoch,
        policy_identity=0.2,
        **{"policy_probability/turn": 0.6 - 0.3 * epoch, "policy_probability/up": 0.2 + 0.3 * epoch},
        **{"policy_magnitude/turn": 0.5 + 0.4 * epoch, "policy_magnitude/up": 0.5},
        soften_k=2.0 - epoch,
        soften_saturation=0.5,
    )
    for epoch in (0.0, 0.5, 1.0)
]


def colour_at(image, x, y):
    return "#" + "".join(f"{c:02x}" for c in image.getpixel((round(x), round(y))))


def test_shares_stand_one_above_the_other():
    found = policy_page.history(LINES)
    assert set(found) == {"probability", "magnitude", "soften_k"}
    image, colours = found["probability"], charts.palette(["(nothing)", "turn", "up"])
    field = charts.HEIGHT - charts.TOP - charts.BOTTOM
    for x, shares in ((charts.LEFT + 3, (0.2, 0.6, 0.2)), (charts.WIDTH - charts.RIGHT - 3, (0.2, 0.3, 0.5))):
        below = 0.0
        for name, share in zip(("(nothing)", "turn", "up"), shares, strict=True):
            y = charts.HEIGHT - charts.BOTTOM - (below + share / 2) * field
            assert colour_at(image, x, y) == colours[name]
            below += share


def test_lines_pass_their_values():
    image, colours = policy_page.history(LINES)["magnitude"], charts.palette(["turn", "up"])
    y = charts.HEIGHT - charts.BOTTOM - 0.7 * (charts.HEIGHT - charts.TOP - charts.BOTTOM)  # turn at half an epoch
    x = (charts.LEFT + charts.WIDTH - charts.RIGHT) / 2
    pixels = np.asarray(image.crop((round(x) - 1, round(y) - 2, round(x) + 2, round(y) + 3))).reshape(-1, 3)
    wanted = [int(colours["turn"][i : i + 2], 16) for i in (1, 3, 5)]
    assert (np.abs(pixels.astype(int) - wanted).sum(1) < 60).any()


@pytest.mark.parametrize("epochs", [(1.0,), (1.0, 1.0)])
def test_a_short_history_and_none(epochs):
    assert policy_page.history([]) == {}
    assert set(policy_page.history([LINES[0] | {"epoch": epoch} for epoch in epochs])) >= {"probability", "magnitude"}


def test_ticks_are_few_and_round():
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert charts.ticks(-0.031, 0.02) == [-0.03, -0.02, -0.01, 0, 0.01, 0.02]
    assert all(len(charts.ticks(0, high)) <= 7 for high in (0.3, 1, 7, 30, 99, 1e5))


def test_what_is_drawn_is_told_in_the_units_of_a_file():
    policy = SharedPolicy(read_operations("geometry"), 2, magnitude=0.5)
    draws = policy.sample(Key(0, 0, Stream.LEARNED), torch.arange(500))
    drawn = drawn_values(policy, draws)
    turns = drawn["rotate, degrees"]
    assert turns.shape == (500, 2)
    assert turns[~turns.isnan()].abs().max() <= 15
    zooms = drawn["scale, factor"]
    assert 1 / 1.5**0.5 - 1e-6 <= zooms[~zooms.isnan()].min() < 0.9 < 1.1 < zooms[~zooms.isnan()].max() < 1.5**0.5
    operations = torch.stack([values.isfinite().sum(1) for values in drawn.values()]).sum(0)
    assert operations.equal((draws.op > 0).sum(1))
    texts = [policy_page.sample_texts(drawn, i) for i in range(500)]
    assert ["nothing"] in texts
    assert {len(lines) for lines in texts} == {1, 2}
    image = policy_page.parameters(drawn)
    assert image.size == (3 * charts.SMALL[0], 3 * charts.SMALL[1])  # 8 operations
    assert policy_page.parameters({"flip_x": torch.ones(3, 1)}) is None  # yes or no


def test_images_stand_beside_what_became_of_them():
    before = torch.randint(0, 256, (2, 10, 10, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    after = [255 - before, before]
    image = policy_page.before_and_after(before, after, [[["turn 3"], ["nothing"]], [["a"] * 9, ["b"]]])
    step = policy_page.CELL + policy_page.GAP
    for column, shown in enumerate((before, *after)):
        left = policy_page.GAP + column * step
        cell = image.crop((left, policy_page.GAP, left + policy_page.CELL, policy_page.GAP + policy_page.CELL))
        assert (np.asarray(cell.resize((10, 10), Image.Resampling.NEAREST)) == shown[0].numpy()).all()


def page(tmp_path):
    pictures = {name: png(image) for name, image in policy_page.history(LINES).items()}
    text = policy_page.page("<script>alert(1)</script>", {"policy": {"a<b": 0.25}}, pictures, ["note & note"]).decode()
    (tmp_path / "policy.html").write_text(text)
    return text


def test_the_page_has_everything_in_it_and_nothing_that_runs(tmp_path):
    text = page(tmp_path)
    assert "<script" not in text
    assert "a&lt;b" in text
    assert "note &amp; note" in text
    assert len(re.findall(r'src="data:image/png;base64,', text)) == 3
    assert not re.findall(r'(src|href)="(?!data:)', text)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium (apt-get install chromium)")
def test_the_page_opens_in_a_browser(tmp_path):
    page(tmp_path)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    command += [f"--user-data-dir={tmp_path}/profile", "--window-size=1000,1400"]
    url = f"file://{tmp_path}/policy.html"
    shot = [*command, f"--screenshot={tmp_path}/shot.png", url]
    subprocess.run(shot, check=True, capture_output=True, timeout=120)
    shown = {
        f"{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in Image.open(tmp_path / "shot.png").convert("RGB").getcolors(1 << 24)
    }
    assert {colour[1:] for colour in charts.palette(["(nothing)", "turn", "up"]).values()} <= shown  # the first chart
