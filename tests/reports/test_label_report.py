"""The report of suspicious labels of a run folder, with made statistics; a browser, where there is one, ticks rows."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastaug.commands.label_report import main
from fastaug.data.build import DataParts
from fastaug.data.index import load_index
from fastaug.data.label_files import with_labels
from fastaug.data.splits import make_splits
from fastaug.errors import RecipeError
from fastaug.evaluation.sample_file import FILE, Samples, archive, read_samples
from fastaug.recipe.reading import read_recipe, to_yaml
from fastaug.reports.label_table import cautions, corrected, label_table
from fastaug.training.build_data import planted_parts

IMAGES, CLASSES = 40, 3
WRONG = (3, 50, 90)  # ids whose label looks wrong: as the next class


@pytest.fixture
def run(tmp_path, jpeg_folder):
    """A run folder with statistics of 90 training and 30 test images, ten of them with planted labels."""
    root = jpeg_folder(classes=CLASSES, images=IMAGES, sizes=(20, 24), kind="png")
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "r.yaml").write_text(
        f"data: {{root: {root}, test_fraction: 0.25, img_size: 20}}\nrun: {{plant: 0.12, dir: {folder}}}\n"
    )
    recipe = read_recipe(tmp_path / "r.yaml")
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    write_statistics(folder, parts_of(recipe))
    return folder


def parts_of(recipe):
    index = load_index(Path(recipe.data.root), exif="ignore", progress=False)
    splits = make_splits(index, seed=0, meta=0.0, select=0.0, test=recipe.data.test_fraction, files=None)
    return planted_parts(recipe, DataParts(index.classes, splits, index, index.labels))


def write_statistics(folder, parts, classes=CLASSES):
    size, draw = len(parts.index), np.random.default_rng(0)
    planted = np.isin(np.arange(size), parts.planted.ids)
    wrong = planted | np.isin(np.arange(size), WRONG)
    given = np.where(wrong, draw.uniform(0.05, 0.15, size), draw.uniform(0.9, 0.95, size)).astype(np.float32)
    other = np.where(wrong, 0.8, 0.03).astype(np.float32)
    looks = (parts.index.labels + 1) % classes
    columns = {"probability": given, "other_probability": other, "other": looks, "margin": given - other}
    columns |= {"cross_entropy": -np.log(given), "forgotten": wrong * 1, "visits": np.full(size, 5)}
    ids = parts.splits.test
    held_out = {"test": {"id": ids, **{name: column[ids] for name, column in columns.items()}}}
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    (folder / FILE).write_bytes(archive(parts, tensors, held_out))


def table(folder):
    with open(folder / "labels.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def altered(folder, **columns):
    """The statistics with other columns."""
    with np.load(folder / FILE) as stored:
        kept = dict(stored)
    np.savez(folder / FILE, **(kept | columns))


def test_wrong_labels_are_first_and_planted_ones_are_not_listed(run, tmp_path, capsys):
    assert main([str(run), "--json", str(tmp_path / "figures.json")]) == 0
    rows = table(run)
    train = [row for row in rows if row["split"] == "train"]
    listed = {int(row["id"]) for row in train if row["is_label_issue"] == "True"}
    parts = parts_of(read_recipe(run / "recipe.yaml"))
    real = set(WRONG) & set(parts.splits.train.tolist()) - set(parts.planted.ids.tolist())
    assert real
    assert {int(row["id"]) for row in train[: len(real)]} == real
    assert real <= listed
    assert not listed & set(parts.planted.ids.tolist())
    given = {int(row["id"]): row["given_label"] for row in train}
    assert all(given[i] == parts.classes[label] for i, label in zip(*parts.planted, strict=True))
    assert all(row["label_score"] == "" for row in train if row["planted"] == "True")
    found = json.loads((tmp_path / "figures.json").read_text())["train"]
    assert found["planted"] == len(parts.planted.ids) == 11
    assert found["wrong"]["low"] <= len(real) <= found["wrong"]["high"]
    assert "flagged" in capsys.readouterr().out


def test_the_columns_are_cleanlab_s(run):
    main([str(run)])
    row = table(run)[0]
    assert list(row)[3:7] == ["given_label", "predicted_label", "label_score", "is_label_issue"]
    assert row["predicted_label"] == f"class{(int(row['given_label'][-1]) + 1) % CLASSES}"
    assert 0 <= float(row["label_score"]) < 0.2
    assert len(table(run)) == IMAGES * CLASSES


def test_without_planted_labels_no_number_is_given(run, capsys):
    recipe = read_recipe(run / "recipe.yaml", ["run.plant=0"])
    (run / "recipe.yaml").write_text(to_yaml(recipe))
    with np.load(run / FILE) as stored:
        given = stored["given"]
    altered(run, trained=given)
    assert main([str(run)]) == 0
    assert "not estimated: train with run.plant=0.17 to know" in capsys.readouterr().out  # 15 of 90
    assert "run.plant=0.17" in (run / "labels.html").read_text()


@pytest.mark.parametrize(
    ("share", "said"), [(0.05, "4 planted labels are too few"), (0.01, "1 planted label is too few")]
)
def test_too_few_planted_labels_are_told_with_how_many_would_do(run, capsys, share, said):
    (run / "recipe.yaml").write_text(to_yaml(read_recipe(run / "recipe.yaml", [f"run.plant={share}"])))
    write_statistics(run, parts_of(read_recipe(run / "recipe.yaml")))
    assert main([str(run)]) == 0
    assert f"{said}; train with run.plant=0.17" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kept", "few", "silent"),
    [
        (1, "1 image is too few to plant wrong labels", "1 image of train has no statistics"),
        (2, "2 images are too few to plant wrong labels", "2 images of train have no statistics"),
    ],
)
def test_one_image_is_told_as_one(run, kept, few, silent):
    recipe = read_recipe(run / "recipe.yaml")
    parts, first = parts_of(recipe), label_table(read_samples(run), "train", recipe, run).samples
    columns = {name: column[:kept] for name, column in first.columns.items()}
    assert label_table(Samples(columns), "train", recipe, run).not_estimated().startswith(few)
    never = replace(parts, splits=replace(parts.splits, train=parts.splits.train[:kept]))
    columns["visits"] = columns["visits"] * 0
    assert any(
        told.startswith(silent) for told in cautions([label_table(Samples(columns), "train", recipe, run)], never)
    )


def test_what_a_planted_image_looks_like_stands_with_its_own_probability(run):
    main([str(run)])
    planted = [row for row in table(run) if row["planted"] == "True"]
    assert {row["predicted_probability"] for row in planted} == {"0.8"}
    looks = [row for row in planted if row["predicted_label"] == row["given_label"]]
    assert looks


def test_the_page_is_whole(run):
    main([str(run), "--pictures", "5"])
    text = (run / "labels.html").read_text()
    assert text.count("data:image/png;base64,") >= 2
    assert not re.findall(r'(src|href)="(?!data:)', text)
    assert "data.labels=corrected.tsv" in text
    assert "run.plant=0" in text


def test_labels_that_are_next_to_impossible_become_a_file_that_training_reads(run, tmp_path, capsys):
    recipe, earlier, file = read_recipe(run / "recipe.yaml"), tmp_path / "earlier.tsv", tmp_path / "new.tsv"
    earlier.write_text("5\tclass2\n")
    with np.load(run / FILE) as stored:
        kept = dict(stored)
    listed = [i for i in WRONG if i in kept["id"][kept["split"] == 0] and i not in parts_of(recipe).planted.ids]
    sure = np.isin(kept["id"], listed[:1])  # the others score .06 and more
    altered(
        run,
        probability=np.where(sure, 0.01, kept["probability"]),
        given=np.where(kept["id"] == 5, 2, kept["given"]),
        trained=np.where((kept["id"] == 5) & (kept["trained"] == kept["given"]), 2, kept["trained"]),
    )
    trusting = shutil.copytree(run, tmp_path / "trusting")
    (trusting / "recipe.yaml").write_text(to_yaml(read_recipe(run / "recipe.yaml", ["augment.trust=4"])))
    assert main([str(trusting), f"data.labels={earlier}", "--correct", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"{file}: 1 label that scores below 0.05 replaced; train with it" in said
    assert f"data.labels={file}" in said
    parts = parts_of(recipe)
    index = with_labels(parts.index, parts.splits, file)
    changed = np.flatnonzero(index.labels != parts.index.labels)
    assert changed.tolist() == sorted([5, listed[0]])
    assert index.labels[listed[0]] == (parts.index.labels[listed[0]] + 1) % CLASSES
    for below, found in (([], listed), (["--below", "0.02"], listed[:1])):  # the next training may trust, this did not
        assert main([str(run), f"data.labels={earlier}", "augment.trust=4", "--correct", str(file), *below]) == 0
        assert {int(line.split("\t")[0]) for line in file.read_text().splitlines()} == {5, *found}
        said = f"{len(found)} label{'s that score' if len(found) > 1 else ' that scores'} below"
        assert f"{said} {'0.02' if below else '0.3'} replaced, of which" in capsys.readouterr().out


def test_the_labels_trained_with_are_not_written_over(run, tmp_path, capsys):
    trained = tmp_path / "mine.tsv"
    trained.write_text("5\tclass2\n")
    (run / "recipe.yaml").write_text(to_yaml(read_recipe(run / "recipe.yaml", [f"data.labels={trained}"])))
    assert "--correct: " in refused(run, capsys, "--correct", str(tmp_path / "." / "mine.tsv"), code=2)
    (tmp_path / "copy.tsv").write_text(trained.read_text())
    words = ("--correct", str(trained), f"data.labels={tmp_path / 'copy.tsv'}")
    assert "holds the labels that the run was trained with" in refused(run, capsys, *words, code=2)
    assert trained.read_text() == "5\tclass2\n"
    assert not (run / "labels.html").exists()


def test_the_next_training_has_a_folder_and_a_file_of_its_own(run, tmp_path, capsys):
    (tmp_path / "run-corrected").mkdir()
    main([str(run), "--correct", str(tmp_path / "c.tsv")])
    assert f"data.labels={tmp_path}/c.tsv run.dir={run}-corrected-2" in capsys.readouterr().out
    (tmp_path / "corrected-2.tsv").touch()
    main([str(run), f"data.labels={tmp_path / 'corrected-2.tsv'}"])
    page = (run / "labels.html").read_text()
    assert f"data.labels=corrected-3.tsv run.dir={run}-corrected-3" in page
    assert "ticked as corrected-3.tsv" in page


def test_rows_that_an_estimate_takes_for_hard_are_shown_too(run):
    samples = read_samples(run)
    columns = samples.columns
    planted = columns["trained"] != columns["given"]
    doubted = (columns["id"] % 2 == 0) & (columns["split"] == 0) & ~planted
    easy = np.where(planted, 1e-4, np.where(doubted, 0.4, 0.9))  # planted flips are seen at once, the others hardly
    other = np.where(planted, 0.99, np.where(doubted, 0.45, 0.05))
    seen = Samples(columns | {"probability": easy, "other_probability": other, "margin": easy - other})
    table = label_table(seen, "train", read_recipe(run / "recipe.yaml"), run)
    assert table.estimate is not None
    assert table.flagged < table.shown == doubted.sum()
    assert (table.scores[: table.shown] < 0.5).all()


def test_the_only_image_of_a_class_keeps_its_label(run):
    samples, recipe = read_samples(run), read_recipe(run / "recipe.yaml")
    parts, columns = parts_of(recipe), samples.columns
    before, count = corrected(label_table(samples, "train", recipe, run), parts, 0.5)
    sole = int(before.split(b"\t")[0])
    given = np.where(columns["id"] == sole, CLASSES, columns["given"])  # a class of its own
    parts = replace(parts, classes=(*parts.classes, "rare"))
    trained = np.where(columns["id"] == sole, CLASSES, columns["trained"])
    alone = label_table(Samples(columns | {"given": given, "trained": trained}), "train", recipe, run)
    after, fewer = corrected(alone, parts, 0.5)
    assert fewer == count - 1
    assert b"%d\t" % sole not in after.splitlines(keepends=True)


@pytest.mark.parametrize(
    "guard",
    ["augment.trust=4", "augment.trim=0.1", "augment.loss=gce", "meta.learn=[weights] data.meta_fraction=0.1"],
)
def test_training_that_guards_itself_from_wrong_labels_gives_no_number(run, guard):
    """Right labels that it doubts score as low as wrong ones then; on real runs the intervals held in few."""
    recipe = read_recipe(run / "recipe.yaml")
    samples = read_samples(run)
    assert label_table(samples, "train", recipe, run).estimate is not None
    guarded = label_table(samples, "train", read_recipe(run / "recipe.yaml", guard.split()), run)
    assert guarded.estimate is None
    assert guarded.not_estimated().split()[0] in guard
    own = guarded.samples
    assert guarded.flagged == ((own["probability"] < own["other_probability"]) & ~guarded.planted).sum()


def test_statistics_with_an_image_twice_are_refused(run, capsys):
    ids = read_samples(run)["id"].copy()
    ids[1] = ids[0]
    altered(run, id=ids)
    assert main([str(run)]) == 5
    assert "has an image twice, so it was changed; run the training command again" in capsys.readouterr().err


def test_weights_that_a_run_reuses_guard_it_too(run):
    recipe = read_recipe(run / "recipe.yaml")
    recipe = replace(recipe, meta=replace(recipe.meta, reuse="learned"))
    parts = {"softness": {"kind": "softness", "settings": {}, "values": {}, "start": {}, "summary": {}}}
    content = {"fastaug_policy": 1, "version": "0.1.0", "commit": None, "step": 1, "data": {}, "parts": parts}
    (run / "policy.json").write_text(json.dumps(content))
    assert label_table(read_samples(run), "train", recipe, run).estimate is not None  # softness doubts no image
    (run / "policy.json").write_text(json.dumps(content | {"tables": ["weights"]}))
    guarded = label_table(read_samples(run), "train", recipe, run)
    assert guarded.estimate is None
    assert guarded.not_estimated().startswith("meta.reuse with weights keeps what looks wrong")


@pytest.mark.parametrize("below", ["0", "0.51", "nan"])
def test_a_score_that_says_nothing_replaces_no_label(run, tmp_path, capsys, below):
    with pytest.raises(SystemExit):
        main([str(run), "--correct", str(tmp_path / "new.tsv"), "--below", below])
    assert "--below must be above 0, and 0.5 at most" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(run), "--below", "0.2"])
    assert "--below says what --correct replaces; name its file too" in capsys.readouterr().err


def test_a_class_name_does_nothing_to_the_page(run):
    recipe = read_recipe(run / "recipe.yaml")
    Path(recipe.data.root, "class2").rename(Path(recipe.data.root, "class2<script>&\"'"))
    main([str(run)])
    text = (run / "labels.html").read_text()
    assert text.count("<script") == 2
    assert "class2&lt;script&gt;" in text


# ---- what cannot be reported ----


def refused(run, capsys, *arguments, code):
    assert main([str(run), *arguments]) == code
    assert not (run / "labels.html").exists()
    assert not (run / "labels.csv").exists()
    return capsys.readouterr().err


def test_a_run_without_statistics(run, capsys, tmp_path):
    (run / FILE).unlink()
    assert "run.sample_record=true" in refused(run, capsys, code=5)
    assert "no run folder" in refused(tmp_path, capsys, code=5)


def test_a_run_that_had_ended_before_there_were_statistics(run, capsys):
    with np.load(run / FILE) as stored:
        never = np.where(stored["split"] == 0, 0, stored["visits"])
    altered(run, visits=never)
    assert "train anew, in another run.dir" in refused(run, capsys, code=5)


def test_a_broken_file_of_statistics(run, capsys):
    whole = (run / FILE).read_bytes()
    for data in (b"", b"no archive", whole[: len(whole) // 2]):
        (run / FILE).write_bytes(data)
        assert "run the training command again" in refused(run, capsys, code=5)


def test_statistics_of_other_images(run, capsys):
    recipe = read_recipe(run / "recipe.yaml")
    next(Path(recipe.data.root, "class1").iterdir()).unlink()
    assert "put the data back" in refused(run, capsys, code=5)


def test_classes_out_of_range(run, capsys):
    with np.load(run / FILE) as stored:
        other = stored["other"].copy()
    other[7] = 12
    altered(run, other=other)
    assert "other class" in refused(run, capsys, code=5)


def test_flips_cannot_follow_a_run_that_found_nothing(run):
    with np.load(run / FILE) as stored:
        sure = np.full(len(stored["id"]), 0.95, dtype=np.float32)
    (run / "classes.json").write_text(json.dumps({"classes": [f"class{i}" for i in range(CLASSES)]}))
    recipe = read_recipe(run / "recipe.yaml", [f"run.plant_like={run}"])
    assert len(parts_of(recipe).planted.ids)
    altered(run, probability=sure)
    with pytest.raises(RecipeError, match="found no label that looks wrong; leave it out"):
        parts_of(recipe)


def test_a_truth_of_other_data(run, capsys, tmp_path):
    truth = tmp_path / "truth.tsv"
    for line in ("3\tno such class\n", "9999\tclass1\n", "class1\n"):
        truth.write_text(line)
        assert "line 1" in refused(run, capsys, "--truth", str(truth), code=3)
    assert "cannot be read" in refused(run, capsys, "--truth", str(tmp_path / "none"), code=3)
    truth.write_text("5\tclass1\n5\tclass2\n")
    assert "line 2: '5\\tclass2' names an image twice" in refused(run, capsys, "--truth", str(truth), code=3)


def test_a_truth_judges_the_report(run, tmp_path):
    parts = parts_of(read_recipe(run / "recipe.yaml"))
    real = sorted(set(WRONG) & set(parts.splits.train.tolist()) - set(parts.planted.ids.tolist()))
    truth = tmp_path / "truth.tsv"
    truth.write_text("".join(f"{i}\tclass{(parts.folder_labels[i] + 1) % CLASSES}\n" for i in real))
    assert main([str(run), "--truth", str(truth), "--json", str(tmp_path / "f.json")]) == 0
    found = json.loads((tmp_path / "f.json").read_text())["truth"]
    assert found["wrong"] == len(real)
    assert found["score_auroc"] == 1
    assert found["missed"] == 0


def test_a_truth_may_name_a_class_that_ends_in_a_blank(run, tmp_path):
    root = Path(read_recipe(run / "recipe.yaml").data.root)
    (root / "class2").rename(root / "class2 ")
    (tmp_path / "truth.tsv").write_bytes(b"# what is right\r\n3\tclass2 \r\n")
    assert main([str(run), "--truth", str(tmp_path / "truth.tsv")]) == 0


def test_images_without_statistics_and_classes_that_a_browser_cannot_write_are_told(run, capsys):
    with np.load(run / FILE) as stored:
        visits = stored["visits"].copy()
    visits[:2] = 0
    altered(run, visits=visits)
    root = Path(read_recipe(run / "recipe.yaml").data.root)
    (root / "class2").rename(root / "class2\tb")
    assert main([str(run)]) == 0
    said = capsys.readouterr().out
    assert "2 images of train have no statistics" in said
    assert "cannot write the class 'class2" in said


def test_a_class_with_one_image_is_named(run, capsys):
    recipe = read_recipe(run / "recipe.yaml")
    lone = Path(recipe.data.root, "class9")
    lone.mkdir()
    shutil.copy(next(Path(recipe.data.root, "class1").iterdir()), lone / "000.png")
    changed = read_recipe(run / "recipe.yaml", ["data.test_fraction=0.25"])
    write_statistics(run, parts_of(changed), classes=CLASSES + 1)
    assert main([str(run)]) == 0
    assert "single training image nothing can be said: class9" in capsys.readouterr().out


def test_a_class_that_was_not_learned_is_named_and_widens_the_intervals(run, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    assert main([str(run), "--json", str(figures)]) == 0
    before = json.loads(figures.read_text())["train"]["wrong"]
    assert "look like another class. How many" not in capsys.readouterr().out
    with np.load(run / FILE) as stored:
        low = stored["given"] == 1
        columns = {"probability": np.where(low, 0.1, stored["probability"]).astype(np.float32)}
        columns |= {"other_probability": np.where(low, 0.8, stored["other_probability"]).astype(np.float32)}
    altered(run, **columns)
    assert main([str(run), "--json", str(figures)]) == 0
    assert "Most images of class1 look like another class. How many of those are right" in capsys.readouterr().out
    after = json.loads(figures.read_text())["train"]["wrong"]
    assert after["low"] <= before["high"]  # all of class1 may be right
    assert after["high"] > before["high"] + 10  # or wrong


# ---- in a browser ----

TICK = """(() => {
const first = rows.filter(row => !row.hidden)[0];
first.querySelector('input[type=checkbox]').checked = true;
check();
const wanted = lines();
first.querySelector('input.name').value = 'nothing';
check();
return {text: wanted, disabled: pick('save').disabled, shown: pick('shown').textContent};
})()"""


def test_ticked_rows_become_a_file_that_training_reads(run, tmp_path, browser):
    main([str(run)])
    said = browser((run / "labels.html").read_bytes(), TICK).said
    assert said["disabled"]
    first = table(run)[0]
    assert said["text"] == f"{first['id']}\t{first['predicted_label']}\n"
    (tmp_path / "corrected.tsv").write_text(said["text"])
    parts = parts_of(read_recipe(run / "recipe.yaml"))
    corrected = with_labels(load_index(parts.index.root, exif="ignore"), parts.splits, tmp_path / "corrected.tsv")
    assert parts.classes[corrected.labels[int(first["id"])]] == first["predicted_label"]


@pytest.mark.slow
def test_the_page_works_on_a_phone_and_its_script_may_run(run, browser):
    main([str(run)])
    page = (run / "labels.html").read_bytes()
    assert browser(page, "document.scrollingElement.scrollWidth", width=360).said <= 360
    assert browser(page).console == []
