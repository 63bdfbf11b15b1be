"""fastaug export: a folder that is complete or not there."""

from pathlib import Path

import pytest
import timm

from fastaug.commands.export import main
from fastaug.inference import exports


def test_a_folder_of_several_forms_is_written(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "model"
    assert main([str(tiny_run), "--to", "hub", "timm", "--out", str(out), "--weights", "ema"]) == 0
    names = {"README.md", "config.json", "model.safetensors"}
    assert {file.name for file in out.iterdir()} == names | {
        "model_best.pth.tar",
        "args.yaml",
        "summary.csv",
        "class_map.txt",
    }
    assert "hub: read back, outputs differ by" in capsys.readouterr().out
    assert "Not known for these weights (ema)" in (out / "README.md").read_text()
    assert timm.create_model(f"local-dir:{out}", pretrained=True).num_classes == 12
    assert [file.name for file in out.parent.iterdir()] == ["model"]


def test_a_folder_that_holds_something_is_left_alone(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").write_text("")
    assert main([str(tiny_run), "--to", "hub", "--out", str(tmp_path)]) == 2
    assert "is not empty; name a new folder" in capsys.readouterr().err
    assert main([str(tiny_run), "--to", "hub", "--out", str(tmp_path / "mine")]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_a_stem_that_timm_has_not_is_refused_for_timm_alone(
    odd_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(odd_run), "--to", "hub", "timm", "torch", "--out", str(tmp_path / "out")]) == 2
    assert "timm has no test_resnet with model.stem = small" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([str(odd_run), "--to", "torch", "--out", str(tmp_path / "out")]) == 0


def test_what_fails_on_the_way_leaves_nothing(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports, "FORMS", {"hub": exports.FORMS["hub"], "timm": (full, exports.read_timm)})
    assert main([str(tiny_run), "--to", "hub", "timm", "--out", str(tmp_path / "out")]) == 5
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
