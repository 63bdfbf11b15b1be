"""The set of letters: drawn from matplotlib's own fonts."""

import hashlib
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "studies" / "make_letters.py"
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def draw(out, *words, code=0, fonts=FONTS):
    command = [sys.executable, str(SCRIPT), str(fonts), str(out), *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    out = tmp_path_factory.mktemp("set") / "letters"
    return out, draw(out, "--characters", "ABM")


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.png")
    }


def test_every_face_that_is_kept_has_every_class_in_one_split(letters):
    out, said = letters
    faces = {}
    for path in out.rglob("*.png"):
        faces.setdefault(path.stem, set()).add(path.parent.parent.name)
        assert path.parent.name in "ABM"
    assert faces
    assert all(len(splits) == 1 for splits in faces.values())
    families = {stem[:6].lower(): splits for stem, splits in faces.items()}
    assert all(families[stem[:6].lower()] == splits for stem, splits in faces.items())
    assert len(list(out.rglob("*.png"))) == 3 * len(faces)
    assert "images of" in said


def test_a_glyph_is_fitted_and_centred(letters):
    for path in letters[0].rglob("DejaVuSans.png"):
        pixels = np.asarray(Image.open(path))
        assert pixels.shape == (32, 32)
        lines, columns = np.flatnonzero(pixels.max(1)), np.flatnonzero(pixels.max(0))
        assert max(lines[-1] - lines[0], columns[-1] - columns[0]) + 1 == 24
        for first, last in ((lines[0], lines[-1]), (columns[0], columns[-1])):
            assert abs(first - (31 - last)) <= 1


def test_faces_that_lack_a_character_are_left_out(letters):
    """The fonts of mathematical signs have no letters."""
    assert not list(letters[0].rglob("STIXSiz*"))
    assert "faces left out" in letters[1]


def test_the_same_fonts_give_the_same_files(letters, tmp_path):
    draw(tmp_path / "again", "--characters", "ABM")
    assert digests(tmp_path / "again") == digests(letters[0])


def test_no_face_at_all_is_an_error(tmp_path):
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts" / "broken.ttf").write_bytes(b"no font")
    said = draw(tmp_path / "none", code=2, fonts=tmp_path / "fonts")
    assert "1 faces left out: cannot be read" in said
    assert "no face in" in said
