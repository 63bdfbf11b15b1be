"""fastaug predict: images by name, on screen and in files; what cannot be is refused before anything is written."""

import csv
import io
import json
import re
import tarfile
from pathlib import Path

import pytest

from fastaug.commands.predict import main


def held_out(run: Path) -> Path:
    return run.parent / "images" / "val"


def test_a_file_is_told_by_name(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = held_out(tiny_run) / "class0" / "000.jpg"
    assert main([str(tiny_run), str(file), "--top-k", "2"]) == 0
    told = capsys.readouterr().out.strip()
    assert told.startswith(f"{file}: class")
    assert told.count("class") == 1 + 2


def test_a_folder_is_written_in_every_form(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "broken.png").write_text("no image")
    files = {form: tmp_path / f"out.{form}" for form in ("csv", "json", "parquet")}
    words = [word for form, file in files.items() for word in (f"--{form}", str(file))]
    assert main([str(tiny_run), str(held_out(tiny_run)), str(tmp_path / "broken.png"), *words]) == 0
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert len(rows) == len(json.loads(files["json"].read_text())["predictions"]) == 49
    assert rows[-1]["path"].endswith("broken.png")
    assert rows[-1]["error"]
    said = capsys.readouterr()
    assert "48 images classified, 1 damaged" in said.out
    assert "skipped: damaged image" in said.err


def packed(files: list[Path], folder: Path) -> tuple[str, str]:
    """The files as a tar of WebDataset without a label, and as parquet; in reverse order."""
    parquet = pytest.importorskip("pyarrow.parquet")
    with tarfile.open(folder / "some.tar", "w") as archive:
        for number, file in enumerate(reversed(files)):
            archive.add(file, f"{number:03d}.jpg")
    content = [file.read_bytes() for file in reversed(files)]
    table = pytest.importorskip("pyarrow").table({"pixels": content, "other": content})
    parquet.write_table(table, folder / "some.parquet")
    return f"wds:{folder}/some.tar", f"parquet:{folder}/some.parquet"


def test_packed_sets_are_classified_as_their_files_are(tiny_run: Path, tmp_path: Path) -> None:
    files = sorted(held_out(tiny_run).rglob("*.jpg"))[:9]
    out = tmp_path / "out.json"

    def tops(*words: object) -> list[list[dict[str, object]]]:
        assert main([str(tiny_run), *map(str, words), "--json", str(out)]) == 0
        return [row["top"] for row in json.loads(out.read_text())["predictions"]]

    expected = tops(*reversed(files))
    tar, parquet = packed(files, tmp_path)
    assert tops(tar) == expected
    assert json.loads(out.read_text())["predictions"][0]["path"] == f"{tmp_path}/some.tar/000.jpg"
    assert tops(parquet, "--input-key", "pixels") == expected
    assert json.loads(out.read_text())["predictions"][8]["path"] == f"{tmp_path}/some.parquet:8"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["RUN", "IMAGES", "--top-k", "13"], 2, "13 is not between 1 and 12, the classes of"),
        (["RUN", "GONE"], 3, "no such file or folder"),
        (["RUN", "RUN"], 3, "no image below this folder"),
        (["IMAGES", "IMAGES"], 5, "neither a run folder nor a checkpoint"),
        (["RUN", "IMAGES", "--tta", "2"], 2, "--tta: 2 copies would all be the image itself; leave it out$"),
        (["RUN", "wds:GONE"], 3, "^wds:.*gone does not exist or cannot be reached"),
        (["RUN", "wds:GONE", "IMAGES"], 2, "a packed set is classified alone"),
        (["RUN", "IMAGES", "--input-key", "jpg"], 2, "--input-key: names a part of the records of a packed set"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_written(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    places = {"RUN": tiny_run, "IMAGES": held_out(tiny_run), "GONE": tmp_path / "gone"}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    assert main([*words, "--csv", str(tmp_path / "out.csv")]) == code
    assert re.search(said, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, said in ((tmp_path / "gone" / "a.json", "--json: there is no folder"), (tmp_path, "is a folder")):
        with pytest.raises(SystemExit) as end:
            main(["run", "images", "--json", str(place)])
        assert end.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--top-k", "0"], ["--batch-size", "0"], ["--tta", "-1"]])
def test_numbers_that_mean_nothing_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", "images", *words])
    assert end.value.code == 2
    assert "must be at least" in capsys.readouterr().err
