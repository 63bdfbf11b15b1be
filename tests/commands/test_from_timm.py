"""`fastaug from-timm`: a recipe and a table, or an error and nothing written."""

import io
import json
import re
from pathlib import Path

import pytest

from fastaug.commands.from_timm import main
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.timm_script.recipe_text import arguments_page

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "./distributed_train.sh 2 --data-dir /data --model test_resnet -b 64 --lr 0.5 --vflip .5 --epochs 20"


def test_a_command_becomes_a_recipe_on_standard_output(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([COMMAND]) == 0
    told = capsys.readouterr()
    (tmp_path / "r.yaml").write_text(told.out)
    recipe = read_recipe(tmp_path / "r.yaml", [])
    assert (recipe.train.batch_size, recipe.optim.lr, recipe.train.epochs) == (128, 0.5, 20)
    assert re.search(r"^--vflip 0\.5 +no counterpart: no vertical flips", told.err, re.M)
    assert re.search(r"^--batch-size 64 +train\.batch_size: 128", told.err, re.M)
    assert re.search(r"^\d+ more are not given and without effect", told.err, re.M)


def test_a_recipe_has_the_head_that_all_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.yaml"
    assert main([COMMAND, "--out", str(out), "--json", str(tmp_path / "t.json")]) == 0
    lines = out.read_text().splitlines()
    assert re.fullmatch(r"# .{40,}", lines[0])
    assert f"# Command:   accelerate launch --num_processes 2 fastaug/train.py {out}" in lines
    said = set(re.findall(r"^# ([A-Z][a-z]+): ", "\n".join(lines), re.M))
    assert said == {"Command", "Hardware", "Result", "From", "Differs"}
    assert max(len(line) for line in lines if str(out) not in line) <= 120
    assert "--vflip 0.5" in capsys.readouterr().out
    kept = json.loads((tmp_path / "t.json").read_text())
    assert kept["processes"] == 2
    assert kept["recipe"]["train.batch_size"] == 128
    assert kept["arguments"]["vflip"]["outcome"] == "lacks"


def test_a_file_of_arguments_and_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "args.yaml").write_text("data_dir: /data\nmodel: test_resnet\nlr: null\nlr_base: 0.2\nbatch_size: 64\n")
    assert main([str(tmp_path / "args.yaml"), "--processes", "4"]) == 0
    assert "lr: 0.2" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("train.py \\\n /data --model test_resnet\n"))
    assert main(["-"]) == 0
    assert "root: /data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{COMMAND} --mixupp 1", "--mixupp: unknown to timm's train.py"),
        (f"{COMMAND} --warmup-epochs 20", "optim.warmup_epochs: 20.0 leaves nothing of train.epochs = 20 (after"),
        (f"{COMMAND} --aa cutout", "augment.aa: unknown policy 'cutout'"),
        ("gone.yaml", "gone.yaml: cannot be read"),
        (
            f"{COMMAND} --model hf-hub:timm/a --mean 0 0 0",
            "to true (after conversion; change timm's --model)",
        ),
        (f"{COMMAND} --model wrn_40_2 --mean 0 0 0", "--model: wrn_40_2 is no network of timm's, and timm's train.py"),
        (f"{COMMAND} --kd-model-name nothing", "--kd-model-name: nothing is no network of timm's"),
    ],
)
def test_what_makes_no_recipe_is_told_and_nothing_is_written(
    command: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--out", str(tmp_path / "r.yaml"), "--json", str(tmp_path / "r.json")]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("x")
    with pytest.raises(SystemExit) as end:
        main([COMMAND, "--out", str(tmp_path / "r.yaml")])
    assert end.value.code == 2
    assert (tmp_path / "r.yaml").read_text() == "x"


def test_the_table_of_the_page_is_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--table"]) == 0
    assert capsys.readouterr().out == arguments_page()
    page = (ROOT / "docs" / "from_timm.md").read_text()
    assert arguments_page() in page, "run `fastaug from-timm --table` and put it into docs/from_timm.md"
