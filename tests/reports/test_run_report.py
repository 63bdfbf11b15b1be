"""The report of runs from files alone: what it says, hostile names, many classes, unfinished runs; in a browser too."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from fastaug.evaluation.sample_file import FILE
from fastaug.reports.run_details import Part, RunData, bins_of, ece_of
from fastaug.reports.run_files import read_run, read_runs
from fastaug.reports.run_groups import grouped
from fastaug.reports.run_report import page

HOSTILE = "</td><script>alert(1)</script>'\"&"
LONG = "very_long_name_of_a_class_" * 20


def paged(*folders):
    """The page of runs whose data are gone."""
    groups = grouped(read_runs(folders))
    data = {run.name: RunData(None, "data.root: /nowhere does not exist") for group in groups for run in group.runs}
    return page("Runs", groups, data, {group.name: Part(why="no batch") for group in groups})


def text_of(content):
    """What can be read on a page."""
    text = re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", content.decode(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", text)


@pytest.fixture
def runs(made_run):
    folders = [made_run(f"plain-{s}", f"run.seed={s}", top1=0.5 + s / 10) for s in range(2)]
    return [*folders, *(made_run(f"soft-{s}", f"run.seed={s}", "augment.shift=0.3", top1=0.7) for s in range(2))]


def test_what_the_page_of_several_runs_says(runs):
    text = text_of(paged(*runs))
    assert "4 runs of 2 recipes" in text
    assert re.search(r"plain 2 55\.00 % ± 7\.07 % 100\.00 %", text)
    assert re.search(r"soft 2 70\.00 % ± 0\.00 %", text)
    assert re.search(r"soft 2 \+15\.00 % ± 7\.07 %", text)  # paired
    assert re.search(r"augment\.shift 0 0\.3 0", text)
    assert "run.seed" not in text
    assert "No pictures: data.root: /nowhere does not exist" in text
    assert "there is no profile.json; fastaug profile-step" in text
    assert "torch 2.9" in text
    assert "aaaaaaaaaaaa" in text


def test_curves_of_images_of_several_classes_are_of_their_figure(runs):
    assert "top-1 of select" in text_of(paged(runs[0]))
    log = runs[0] / "metrics.jsonl"
    log.write_text(log.read_text().replace('"top1"', '"mean_ap"'))
    text = text_of(paged(runs[0]))
    assert "mAP of select" in text
    assert "top-1 of select" not in text


def test_equal_runs_give_equal_pages(runs):
    assert paged(*runs) == paged(*runs)


def test_nothing_is_fetched(runs):
    content = paged(*runs).decode()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', content)
    assert "url(" not in content
    assert "@import" not in content


def test_the_profile_of_a_step_is_shown(runs):
    stages = {"load_ms": 1.0, "load_share": 0.25, "forward_ms": 3.0, "forward_share": 0.75, "step_ms": 4.0}
    (runs[0] / "profile.json").write_text(json.dumps({"limited_by": "forward", "figures": stages}))
    text = text_of(paged(runs[0]))
    assert "limited by forward" in text
    assert "forward 3.00 75.00 %" in text


def test_skipped_files_and_what_was_learned(runs):
    skipped = [{"step": 1, "id": i, "path": f"/x/{HOSTILE}{i}", "reason": "truncated"} for i in range(150)]
    (runs[0] / "skipped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in skipped))
    learned = [
        {"event": "learned", "step": s, "epoch": s / 10, "policy_identity": 0.5, "soften_k": 2.0}
        | {"policy_probability/turn": 0.5, "policy_magnitude/turn": s / 20}
        for s in (0, 10, 20)
    ]
    with open(runs[0] / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in learned)
    content = paged(runs[0])
    text = text_of(content)
    assert "150 damaged images were left out, the first 100" in text
    assert "policy probability" in text
    assert "soften k" in text
    assert b'class="area c1"' in content
    assert "The recipe learns no policy" in text_of(paged(runs[1]))


def test_hostile_and_long_names_do_nothing(made_run):
    folder = made_run("hostile", classes=3)
    names = [HOSTILE, LONG, "\u202eback\udcff"]
    text = (folder / "result.json").read_text()
    for number, name in enumerate(names):
        text = text.replace(json.dumps(f"class{number}"), json.dumps(name))
    (folder / "result.json").write_text(text)
    (folder / "classes.json").write_text(json.dumps({"classes": names}))
    status = {"code": 1, "reason": HOSTILE, "step": 1}
    (folder / "status.json").write_text(json.dumps(status))
    content = paged(folder).decode()
    assert content.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in content


def test_many_classes_are_pairs_and_a_table(made_run):
    content = paged(made_run("many", classes=1000))
    text = text_of(content)
    assert "A matrix of 1,000 classes cannot be read" in text
    assert "class999" in text
    assert len(content) < 1_000_000


@pytest.mark.parametrize("gone", ["result.json", "metrics.jsonl", "samples.npz", "status.json", "classes.json"])
def test_without_a_file_its_part_says_why(runs, gone):
    (runs[0] / gone).unlink()
    text = text_of(paged(runs[0]))
    assert f"{gone} is not there" in text


def test_a_run_that_has_just_begun(made_run):
    folder = made_run("begun")
    for name in ("result.json", "metrics.jsonl", "samples.npz", "classes.json", "status.json"):
        (folder / name).unlink()
    text = text_of(paged(folder))
    assert "No run has a result: begun is not ended" in text
    assert "metrics.jsonl is not there" in text


def test_nan_and_values_of_other_kinds(made_run):
    folder = made_run("odd")
    result = json.loads((folder / "result.json").read_text())
    result["test"] |= {"nll": float("nan"), "ece": "high", "confused": [7, {}], "classes": [{}, 3]}
    result["test"]["confusion"] = {"a": 3, "b": {"b": "many"}}
    result |= {"versions": [], "train_seconds": None, "images_per_second": float("inf")}
    (folder / "result.json").write_text(json.dumps(result))
    lines = [
        {"event": "train", "epoch": e, "loss": loss} for e, loss in ((1, 2.0), (2, float("nan")), ("x", 1), (3, {}))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with np.load(folder / FILE) as stored:
        columns = dict(stored)
    columns["probability"][:] = np.nan
    columns["other"][:] = 99
    np.savez(folder / FILE, **columns)
    text = text_of(paged(folder))
    assert "no image of test with a known probability" in text
    assert "NaN" in text


def test_bins_are_those_of_the_calibration_error(made_run):
    own = read_run(made_run("one"), "one").samples.of("test")
    bins, wanted = bins_of(own, 10), 0.0
    pairs = list(zip(own["probability"].tolist(), own["other_probability"].tolist(), strict=True))
    for low in range(10):
        inside = [(max(p, q), p > q) for p, q in pairs if low / 10 < max(p, q) <= (low + 1) / 10]
        assert bins[low].images == len(inside)
        wanted += abs(sum(sure for sure, _ in inside) - sum(right for _, right in inside)) / len(pairs)
    assert ece_of(bins) == pytest.approx(wanted)
    assert 0.05 < wanted < 0.5


# ---- in a browser ----

STATE = """(() => {
document.querySelectorAll('details').forEach(each => { each.open = true; });
const table = document.querySelector('table.classes'), button = table.querySelectorAll('th button')[0];
const first = () => table.tBodies[0].rows[0].cells[0].textContent;
button.focus();
const focused = document.activeElement === button;
const found = [first()];
const order = () => button.parentElement.getAttribute('aria-sort');
for (let i = 0; i < 2; i++) { button.click(); found.push(first() + ' ' + order()); }
return {
  wide: document.scrollingElement.scrollWidth, inner: innerWidth, focused, found,
  colour: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
  unlabelled: document.querySelectorAll('svg:not([aria-label]), .scroll.tall:not([tabindex])').length,
  plain: document.querySelectorAll('[onclick]').length,
};
})()"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_is_read_at_any_width_dark_and_by_keyboard(runs, browser, width, dark):
    for name in ("result.json", "classes.json"):
        file = runs[0] / name
        file.write_text(file.read_text().replace("class1", LONG).replace("class2", "class11"))
    said = browser(paged(*runs), STATE, width=width, dark=dark).said
    assert said["inner"] == width
    assert said["wide"] <= width
    assert said["focused"]
    assert [text.split()[0][:7] for text in said["found"]] == ["class0", "class0", "very_lo"]
    assert [text.split()[-1] for text in said["found"][1:]] == ["ascending", "descending"]
    assert said["unlabelled"] == said["plain"] == 0
    paper, ink = (sum(map(int, re.findall(r"\d+", said[which])[:3])) for which in ("colour", "ink"))
    assert (paper < 150 < ink) == dark


@pytest.mark.slow
def test_the_console_is_silent_and_the_picture_is_no_empty_page(runs, browser, tmp_path):
    content = paged(*runs)
    assert browser(content).console == []
    assert browser(content, width=360).console == []
    command = [shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,1400"]
    command += [f"--user-data-dir={tmp_path}/profile", f"--screenshot={tmp_path}/shot.png"]
    (tmp_path / "runs.html").write_bytes(content)
    subprocess.run([*command, f"file://{tmp_path}/runs.html"], check=True, capture_output=True, timeout=200)
    colours = Image.open(tmp_path / "shot.png").convert("RGB").getcolors(1 << 24)
    shown = {f"{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in colours}
    assert {"1f6fd6", "d9480f"} <= shown  # the curves of both recipes


@pytest.mark.slow
def test_a_browser_runs_nothing_of_a_name(made_run, browser):
    folder = made_run("hostile")
    for name in ("result.json", "classes.json"):
        file = folder / name
        file.write_text(file.read_text().replace("class1", "<img src=x onerror=document.title=1><script>x()</script>"))
    found = browser(paged(folder), "[document.title, document.querySelectorAll('[onerror]').length]")
    assert found.said == ["Runs", 0]
    assert found.console == []
