"""The command that puts runs onto one page, with real runs and their data."""

import json
import shutil

import pytest

from fastaug.commands.report import main


def copied(run, folder):
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints"))
    return folder


@pytest.fixture
def run(tiny_run, tmp_path):
    return copied(tiny_run, tmp_path / "one-0")


def test_a_run_beside_its_data(run, capsys):
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert main([str(run), "--images", "2"]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    text = (run / "report.html").read_text()
    result = json.loads((run / "result.json").read_text())
    assert f"{100 * result['test']['top1']:.2f} %" in text
    assert f"ECE {100 * result['test']['ece']:.2f} %" in text  # of the statistics, as of the evaluation
    assert text.count('<div class="quad') == 2
    assert "1.00 class" in text
    assert text.count("data:image/") > 10
    assert "No pictures" not in text
    assert {path: path.read_bytes() for path in run.iterdir() if path.name != "report.html"} == before


def test_several_and_one_unfinished_whose_data_are_gone(run, tiny_run, tmp_path, monkeypatch, capsys):
    other = copied(tiny_run, tmp_path / "one-1")
    recipe = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(recipe.replace(str(tiny_run.parent / "images"), "/nowhere"))
    (other / "result.json").unlink()
    (other / "policy.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    assert main([str(run), str(other), "--images", "0"]) == 0
    assert capsys.readouterr().out == "report.html\n"
    text = (tmp_path / "report.html").read_text()
    assert "No pictures: data.root: /nowhere does not exist" in text
    assert "Left out by --images 0." in text
    assert "in no mean: one-1" in text


def test_what_cannot_be_made_is_told(run, tmp_path, capsys):
    def refused(*words, code):
        assert main([*map(str, words)]) == code
        return capsys.readouterr().err

    assert "no recipe.yaml; name the run.dir" in refused(run, tmp_path, code=5)
    assert "named twice" in refused(run, run, code=5)
    for words in (["--images", "-1"], ["--out", str(tmp_path / "none" / "x.html")]):
        with pytest.raises(SystemExit):
            main([str(run), *words])
    assert "--out: there is no folder" in capsys.readouterr().err
    assert not (run / "report.html").exists()
    (run / "report.html").mkdir()
    assert "choose another one" in refused(run, "--images", "0", code=5)


def test_weights_that_the_run_began_with_are_not_asked_for(run, tmp_path):
    recipe = (run / "recipe.yaml").read_text()
    begun = recipe.replace("initial_checkpoint: null", f"initial_checkpoint: {tmp_path}/gone.pth")
    (run / "recipe.yaml").write_text(begun.replace("checkpoint_fit: 0.9", "checkpoint_fit: 0.5"))
    assert main([str(run), "--images", "1"]) == 0
    assert '<div class="quad' in (run / "report.html").read_text()
