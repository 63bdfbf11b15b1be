"""The tool as a person starts it: what it draws for a seed, what it says of runs that are missing, its tables."""

import json
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from fastaug.commands.study import Study, arms_of, has_ended, main, settings_of
from fastaug.recipe.reading import read_recipe, to_yaml

REPO = Path(__file__).resolve().parents[2]
ERRORS = {"plain": [0.20, 0.30, 0.40], "better": [0.19, 0.28, 0.39], "apart": [0.5, None, None]}


class Ended(NamedTuple):
    """How the command has ended."""

    returncode: int
    stdout: str
    stderr: str


def ended_here(*words: object) -> Ended:
    """The command in this process, which has imported torch already."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = main([*map(str, words)])
    return Ended(code, out.getvalue(), err.getvalue())


def study(folder: Path, *words: str) -> Ended:
    return ended_here(folder / "tiny.yaml", "--runs", folder / "runs", *words)


def started(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The tool as a person starts it."""
    command = [sys.executable, str(REPO / "tools/study.py"), str(folder / "tiny.yaml"), "--runs", str(folder / "runs")]
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=900, check=False)


@pytest.fixture
def ended(tmp_path):
    """A study of three arms and seeds whose runs have ended, but for two of them."""
    (tmp_path / "tiny.yaml").write_text(
        "recipe: recipes/quickstart.yaml\nseeds: 3\narms: {plain: [], better: [], apart: []}"
    )
    for arm, errors in ERRORS.items():
        for seed, error in enumerate(errors):
            folder = tmp_path / "runs" / f"tiny-{arm}-{seed}"
            folder.mkdir(parents=True)
            result = {"top1": 1 - (error or 0), "ece": 0.1, "nll": 0.7, "commit": "abc"}
            result["select"] = {"top1": 0.5, "nll": 0.9}
            result["samples"] = {"weight_auroc": 0.9, "loss_auroc": 0.8}
            if error is not None:
                (folder / "result.json").write_text(json.dumps(result))
    return tmp_path


def test_what_is_missing_is_named_and_the_rest_is_told_in_whole_lines(ended):
    done = study(ended, "--collect", "--json", str(ended / "out.json"))
    assert done.returncode == 0, done.stderr
    for seed in (1, 2):
        assert f"seed {seed}  apart: missing, {ended}/runs/tiny-apart-{seed} has no result.json" in done.stdout
    rows = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("\u2502")}
    assert len(rows["plain"]) > 120  # six figures, none cut
    lines = [line.replace("\u2502", " ").split() for line in done.stdout.splitlines() if line.startswith("\u2502")]
    assert lines[0][:4] == ["plain", "3", "0.3000", "(0.1000)"]
    assert lines[2][:4] == ["apart", "1", "0.5000", "(nan)"]
    assert lines[3][:4] == ["better", "3", "-0.0133", "(0.0058)"]  # by seed: ten times less than the arms' own spread
    assert lines[4][:4] == ["apart", "1", "0.3000", "(nan)"]
    runs = json.loads((ended / "out.json").read_text())["runs"]
    assert [(run["seed"], run["error"]) for run in runs["apart"]] == [(0, 0.5)]


def test_differences_are_to_the_arm_that_is_named(ended):
    assert "arm less better, by seed" in study(ended, "--collect", "--against", "better").stdout
    done = study(ended, "--collect", "--against", "nobody")
    assert done.returncode == 2
    assert "'nobody' is no arm" in done.stderr


def test_every_arm_is_in_each_cell_and_methods_are_laid_out_by_cells(ended):
    (ended / "tiny.yaml").write_text(
        "recipe: recipes/quickstart.yaml\nseeds: 3\narms: {plain: [], better: []}\n"
        "cells: {clean: {}, noisy: {noise: 0.4}, uneven: {imbalance: 10}}"
    )
    for arm in ("plain", "better"):
        for seed in range(3):
            (ended / f"runs/tiny-{arm}-{seed}").rename(ended / f"runs/tiny-noisy-{arm}-{seed}")
    words = ("--collect", "--cells", "clean", "noisy", "--layout", "error", "--json", str(ended / "out.json"))
    done = study(ended, *words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "| error, % | clean | noisy |" in lines
    assert "| better |  | **28.7±10.02** |" in lines
    assert any("-0.0133 (0.0058) p=0.057" in line for line in lines)
    found = json.loads((ended / "out.json").read_text())["cells"]
    assert found.keys() == {"clean", "noisy"}
    assert found["noisy"]["differences"]["better"]["error"]["pairs"] == 3
    done = study(ended, "--collect", "--cells", "nothing")
    assert (done.returncode, "'nothing' is no cell" in done.stderr) == (2, True)


def test_lists_take_the_place_of_fractions(tmp_path):
    arms = {"ours": ["data.splits={splits}"], "control": ["data.splits={with_meta}"], "plain": []}
    whole = Study(
        "tiny", tmp_path / "r.yaml", arms, [0], ["data.labels={labels}", "data.select_fraction=0.2"], tmp_path
    )
    drawn = tmp_path / "tiny-drawn-3"
    for arm, folder in (("ours", "splits"), ("control", "control")):
        settings = settings_of(whole, arm, 3)
        assert f"data.splits={drawn}/{folder}" in settings
        assert f"data.labels={drawn}/labels.tsv" in settings
        assert settings.index("data.select_fraction=0") > settings.index("data.select_fraction=0.2")
    assert "data.select_fraction=0" not in settings_of(whole, "plain", 3)


@pytest.mark.slow
def test_labels_and_splits_are_drawn_for_every_seed_and_common_overrides_reach_all(tmp_path):
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("meta", 2), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{i}.png")
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{root: {tmp_path}/images, img_size: 8, threads: 1}}\nmodel: {{name: test_resnet}}\n"
        "train: {epochs: 1, batch_size: 4}\nrun: {log_losses: true}\neval: {every: 0}\n"
    )
    (tmp_path / "tiny.yaml").write_text(
        f"recipe: {tmp_path}/recipe.yaml\nseeds: 2\nlabels: {{noise: 0.4, kind: uniform}}\n"
        "overrides: [data.select_fraction=0.2, 'data.split_seed={seed}']\n"
        "arms: {control: ['data.labels={labels}', 'data.splits={with_meta}', data.select_fraction=0]}\n"
    )
    done = started(tmp_path, "optim.lr=0.01")
    assert done.returncode == 0, done.stderr
    drawn = [tmp_path / "runs" / f"tiny-drawn-{seed}" for seed in (0, 1)]
    for name in ("labels.tsv", "control/select.txt"):
        one, two = ((folder / name).read_text() for folder in drawn)
        assert one != two
        assert one
    for seed in (0, 1):
        recipe = (tmp_path / f"runs/tiny-control-{seed}/recipe.yaml").read_text()
        assert f"labels: {drawn[seed]}/labels.tsv" in recipe
        assert f"split_seed: {seed}" in recipe
        assert "lr: 0.01" in recipe
        assert "loss_auroc" in json.loads((tmp_path / f"runs/tiny-control-{seed}/result.json").read_text())["samples"]


def tiny(folder, text):
    """A study over a folder of noise; a run takes seconds."""
    images, draw = folder / "images", np.random.default_rng(0)
    for name in ("a", "b"):
        for split in ("train", "val"):
            (images / split / name).mkdir(parents=True)
            for i in range(4):
                noise = draw.integers(0, 255, (8, 8, 3), np.uint8)
                Image.fromarray(noise).save(images / split / name / f"{i}.png")
    (folder / "recipe.yaml").write_text(
        f"data: {{root: {folder}/images, img_size: 8, threads: 1}}\nmodel: {{name: test_resnet}}\n"
        "train: {epochs: 1, batch_size: 4}\neval: {every: 0}\n"
    )
    (folder / "tiny.yaml").write_text(f"recipe: {folder}/recipe.yaml\nseeds: 1\n{text}\n")


def written(folder):
    return {path.parent.name: path.stat().st_mtime_ns for path in (folder / "runs").glob("*/result.json")}


def test_what_has_ended_under_the_same_settings_is_not_started_again(tmp_path):
    tiny(tmp_path, "arms: {a: [], b: [optim.lr=0.01], c: []}")
    of_a = {"recipe": tmp_path / "recipe.yaml", "seeds": [0], "overrides": [], "runs": tmp_path / "runs"}
    whole = Study(name="tiny", arms={"a": [], "b": ["optim.lr=0.01"], "c": []}, **of_a)
    for arm in whole.arms:
        folder = whole.folder(arm, 0)
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(to_yaml(read_recipe(whole.recipe, settings_of(whole, arm, 0))))
        (folder / "status.json").write_text('{"code": 0, "reason": "done", "step": 2}')
        (folder / "result.json").write_text('{"top1": 0.5, "ece": 0.1, "nll": 0.7, "select": null, "commit": "abc"}')
    before = written(tmp_path)
    assert study(tmp_path, "--jobs", "2").returncode == 0
    assert written(tmp_path) == before
    done = study(tmp_path, "--collect", "optim.lr=0.01")
    assert f"seed 0  a: left out, {whole.folder('a', 0)}: was trained with another optim.lr\n" in done.stdout
    assert "seed 0  b: error 0.5000\n" in done.stdout
    assert "b: error 0.5000" in study(tmp_path, "--collect", "data.root=elsewhere").stdout  # of another machine
    assert "b-0: its settings cannot be compared: optim.rate" in study(tmp_path, "--collect", "optim.rate=1").stdout
    assert has_ended(whole, "a", 0)
    assert not has_ended(whole._replace(last=["optim.lr=0.3"]), "a", 0)
    assert has_ended(whole._replace(last=["data.threads=2"]), "a", 0)  # changes no number
    (whole.folder("a", 0) / "status.json").write_text('{"code": null, "reason": "running", "step": 1}')
    (whole.folder("b", 0) / "result.json").unlink()
    (whole.folder("c", 0) / "recipe.yaml").unlink()
    assert not any(has_ended(whole, arm, 0) for arm in whole.arms)


def test_a_result_from_before_a_run_that_has_not_ended_is_missing(ended):
    for seed, code in enumerate(("0", "null", "75")):
        (ended / f"runs/tiny-plain-{seed}/status.json").write_text(f'{{"code": {code}, "reason": "", "step": 1}}')
    done = study(ended, "--collect", "--json", str(ended / "out.json"))
    runs = json.loads((ended / "out.json").read_text())["runs"]
    assert [run["seed"] for run in runs["plain"]] == [0]
    assert "seed 1  plain: missing" in done.stdout
    assert [run["seed"] for run in runs["better"]] == [0, 1, 2]  # without status.json


def ending_with(end, folder, monkeypatch, at="b"):
    """A study of the arms a to d, with a small program for `fastaug`: it notes its arm, and that of `at` ends so."""
    arms = ", ".join(f"{name}: [run.name={name}]" for name in "abcd")
    tiny(folder, f"arms: {{{arms}}}")
    lines = ["import os, signal, sys", "from pathlib import Path"]
    lines += ["arm = next(w for w in sys.argv if w.startswith('run.name=')).removeprefix('run.name=')"]
    lines += [f"(Path({str(folder)!r}) / f'started-{{arm}}').touch()", f"if arm == {at!r}: {end}"]
    (folder / "program.py").write_text("\n".join(lines))
    monkeypatch.setattr("fastaug.commands.study.PACKAGE", folder / "program.py")


@pytest.mark.parametrize("wrote", [False, True])
def test_a_run_that_fails_is_told_with_what_it_wrote_and_the_others_are_started(tmp_path, monkeypatch, wrote):
    ending_with("sys.exit(3)", tmp_path, monkeypatch)
    log = tmp_path / "runs/tiny-b-0/errors.log"
    log.parent.mkdir(parents=True)
    if wrote:
        log.touch()
    done = study(tmp_path)
    assert done.returncode == 1
    assert f"seed 0  b: a run ended with code 3{f', see {log}' if wrote else ''}\n" in done.stderr
    assert (tmp_path / "started-d").exists()


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("sys.exit(75)", 75, "a run was stopped; the same command goes on"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1, "a run ended with code -9; the same command goes on"),
    ],
    ids=["stopped", "killed"],
)
def test_a_run_that_was_stopped_or_killed_ends_the_study(tmp_path, monkeypatch, end, code, words):
    ending_with(end, tmp_path, monkeypatch)
    done = study(tmp_path)
    assert done.returncode == code
    assert words in done.stderr
    assert sorted(path.name for path in tmp_path.glob("started-*")) == ["started-a", "started-b"]


@pytest.fixture(params=["SIGTERM", "SIGINT", "SIGUSR1"])
def signal_name(request):
    """A signal, which would be an error here, where the study does not take it."""

    def untaken(number, _):
        raise AssertionError(f"{number} was not taken")

    before = signal.signal(getattr(signal, request.param), untaken)
    yield request.param
    assert signal.getsignal(getattr(signal, request.param)) is untaken
    signal.signal(getattr(signal, request.param), before)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_signal_to_the_study_reaches_its_runs_and_starts_no_other(tmp_path, monkeypatch, signal_name, jobs):
    """The program sends its parent, the study, the signal, and ends as a training does, when that signal is back."""
    reached = f"(Path({str(tmp_path)!r}) / 'reached').touch()"
    lines = [f"signal.signal(signal.{signal_name}, lambda *_: ({reached}, os._exit(75)))"]
    lines += [f"os.kill(os.getppid(), signal.{signal_name})", "import time", "time.sleep(20)"]
    ending_with("; ".join(lines), tmp_path, monkeypatch)
    done = study(tmp_path, "--jobs", str(jobs))
    assert done.returncode == 75
    assert f"signal {signal_name}; the same command goes on" in done.stderr
    assert (tmp_path / "reached").exists()
    assert jobs == 2 or not (tmp_path / "started-c").exists()  # of two at a time the other may have ended before


def test_a_signal_that_came_too_late_for_the_last_run_ends_the_study_too(tmp_path, monkeypatch, signal_name):
    lines = [f"signal.signal(signal.{signal_name}, signal.SIG_IGN)", f"os.kill(os.getppid(), signal.{signal_name})"]
    ending_with("; ".join(lines), tmp_path, monkeypatch, at="d")
    done = study(tmp_path)
    assert done.returncode == 75
    assert f"signal {signal_name}; the same command goes on" in done.stderr


@pytest.mark.slow  # two trainings in processes of their own
def test_a_run_that_fails_is_told_and_the_others_are_trained(tmp_path):
    tiny(tmp_path, "arms: {bad: [model.name=no_such_network], good: []}")
    stale = tmp_path / "runs/tiny-bad-0"  # of other settings: its figures are not this arm's
    stale.mkdir(parents=True)
    (stale / "result.json").write_text('{"top1": 0.5, "ece": 0.1, "nll": 0.7, "select": null, "commit": "abc"}')
    done = study(tmp_path, "--json", str(tmp_path / "out.json"))
    assert done.returncode == 1
    assert f"seed 0  bad: a run ended with code 2, see {stale}/errors.log" in done.stderr
    assert "seed 0  good: error" in done.stdout
    runs = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert (runs["bad"], len(runs["good"])) == ([], 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_grid_is_a_run_for_every_combination_and_goes_on_where_it_was(tmp_path):
    tiny(tmp_path, "grid: {optim.lr: [.1, 1e-3], augment.aa: [null, ta_wide]}")
    done = started(tmp_path, "--jobs", "2", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    names = {f"optim.lr={lr},augment.aa={aa}" for lr in ("0.1", "0.001") for aa in ("null", "ta_wide")}
    assert json.loads((tmp_path / "out.json").read_text())["runs"].keys() == names
    first = written(tmp_path)
    assert first.keys() == {f"tiny-{name}-0" for name in names}
    recipe = (tmp_path / "runs/tiny-optim.lr=0.001,augment.aa=ta_wide-0/recipe.yaml").read_text()
    assert "lr: 0.001" in recipe
    assert "aa: ta_wide" in recipe

    lost = "tiny-optim.lr=0.1,augment.aa=null-0"  # as after a kill: no result, no end
    (tmp_path / "runs" / lost / "result.json").unlink()
    (tmp_path / "runs" / lost / "status.json").write_text('{"code": null, "reason": "running", "step": 2}')
    assert started(tmp_path).returncode == 0
    again = written(tmp_path)
    assert {name for name in first if again[name] != first[name]} == {lost}

    done = started(tmp_path, "train.epochs=2")  # ended, but under other settings: not taken for these
    assert done.returncode == 1
    assert "a run ended with code 2" in done.stderr


def test_a_grid_multiplies_arms_and_names_are_file_names():
    arms = arms_of({"plain": [], "shift": ["augment.shift=0.1"]}, {"data.labels": ["../a b", None]})
    assert arms == {
        "plain,data.labels=.._a_b": ["data.labels=../a b"],
        "plain,data.labels=null": ["data.labels=null"],
        "shift,data.labels=.._a_b": ["augment.shift=0.1", "data.labels=../a b"],
        "shift,data.labels=null": ["augment.shift=0.1", "data.labels=null"],
    }
    with pytest.raises(ValueError, match="2 combinations have 1 names"):
        arms_of({}, {"data.labels": ["a b", "a/b"]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "must be a mapping"),
        ("{recipe: x.yaml, seeds: two, arms: {a: []}}", "seeds: must be how many"),
        ("{recipe: x.yaml, seeds: 1, arms: [a]}", "arms: must be names"),
        ("{recipe: x.yaml, seeds: 1, grid: {optim.lr: 0.1}}", "grid: optim.lr: must be a list"),
        ("{recipe: x.yaml, seeds: 1, arms: {0.5: []}}", "arms: 0.5: must be a text; put it in quotes"),
        ("{recipe: x.yaml, seeds: 1, arms: {a: [optim.lr: 0.1]}}", "a: {'optim.lr': 0.1}: is no override; write it"),
        ("{recipe: x.yaml, seeds: 1, arms: {a: []}, overrides: [1]}", "overrides: 1: is no override"),
        ("{recipe: x.yaml, seeds: 1}", "arms: there is none"),
        ("{seeds: 1, arms: {a: []}}", "recipe: is missing"),
        ("{seeds: 1, seeds: 2}", "stands twice"),
        (
            "{recipe: x.yaml, seeds: 1, arms: {a: []}, labels: {share: 0.4}}",
            "labels: can have subsample, imbalance, noise",
        ),
        ("{recipe: x.yaml, seeds: 1, arms: {a: []}, cells: {x: 0.4}}", "x: can have subsample, imbalance, noise"),
        ("{recipe: x.yaml, seeds: 1, arms: {a: []}, cells: {x: {}}, labels: {}}", "in place of labels"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path, text, words):
    (tmp_path / "bad.yaml").write_text(text)
    refused = ended_here(tmp_path / "bad.yaml")
    assert refused.returncode == 2
    assert words in refused.stderr
