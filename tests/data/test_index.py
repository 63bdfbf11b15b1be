import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastaug.data import header_pass
from fastaug.data import index as index_module
from fastaug.data.image_files import MAX_PIXELS
from fastaug.data.image_headers import Header, Status, screen_all
from fastaug.data.index import Folder, Index, cache_dir, cache_file, load_index
from fastaug.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTAUG_CACHE", str(tmp_path_factory.mktemp("cache")))


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def encoded(kind: str = "JPEG", width: int = 40, height: int = 30, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    noise(width, height, mode).save(out, kind, **options)
    return out.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(exif=exif)


def put(path: Path, content: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded() if content is None else content)
    return path


def two_classes(root: Path) -> Path:
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg"):
        put(root / name)
    return root


def row(index: Index, name: bytes) -> int:
    return list(index.paths).index(name)


# --- table


def test_rows_are_sorted_by_path_bytes_and_labels_by_class_name(tmp_path):
    for name in ("b/2.jpg", "b/10.jpg", "a b/x.png", "a/deep/er/x.JPEG", "a/z.jpg"):
        put(tmp_path / name, encoded("PNG" if name.endswith("png") else "JPEG", 40, 30))
    index = load_index(tmp_path)
    assert list(index.paths) == [b"a b/x.png", b"a/deep/er/x.JPEG", b"a/z.jpg", b"b/10.jpg", b"b/2.jpg"]
    assert index.classes == ("a", "a b", "b")
    assert index.labels.tolist() == [1, 0, 0, 2, 2]
    assert (index.labels.dtype, index.heights.dtype, index.status.dtype) == (np.int64, np.int32, np.uint8)
    assert (set(index.heights), set(index.widths), set(index.folders)) == ({30}, {40}, {Folder.ALL})
    assert index.path(4) == os.fsencode(tmp_path) + b"/b/2.jpg"
    assert len(index) == 5


# --- what is listed


def test_hidden_and_foreign_files_are_not_listed(tmp_path):
    two_classes(tmp_path)
    for name in (
        "cat/._1.jpg",
        ".ipynb_checkpoints/x.jpg",
        "cat/.ipynb_checkpoints/1.jpg",
        "cat/notes.txt",
        "lone.jpg",
    ):
        put(tmp_path / name)
    index = load_index(tmp_path)
    assert list(index.paths) == [b"cat/1.jpg", b"cat/2.jpg", b"dog/1.jpg"]
    assert not index.reasons


def test_names_need_not_be_text(tmp_path):
    two_classes(tmp_path)
    name = os.fsencode(tmp_path) + b"/dog/\xff\xfe.jpg"
    Path(os.fsdecode(name)).write_bytes(encoded())
    put(tmp_path / os.fsdecode(b"\xe9") / "x.jpg")  # a Latin-1 class name
    for _ in ("built", "cached"):
        index = load_index(tmp_path)
        assert b"dog/\xff\xfe.jpg" in index.paths
        assert [os.fsencode(c) for c in index.classes] == [b"cat", b"dog", b"\xe9"]
        with open(index.path(row(index, b"dog/\xff\xfe.jpg")), "rb") as file:
            assert file.read() == encoded()


def test_links_are_followed_but_not_round_and_round(tmp_path):
    root = two_classes(tmp_path / "root")
    put(tmp_path / "elsewhere" / "far.jpg")
    (root / "dog" / "link").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "up").symlink_to(root)
    (root / "dog" / "self").symlink_to(root / "dog")
    (root / "cat" / "loop.jpg").symlink_to(root / "cat" / "loop.jpg")
    (root / "cat" / "gone.jpg").symlink_to(root / "nowhere")
    (root / "dog" / "folder.jpg").mkdir()
    index = load_index(root)
    good = {b"cat/1.jpg", b"cat/2.jpg", b"dog/1.jpg", b"dog/link/far.jpg"}
    assert {path for i, path in enumerate(index.paths) if i not in index.reasons} == good
    assert {index.paths[i] for i in index.reasons} == {b"cat/loop.jpg", b"cat/gone.jpg"}
    assert all("cannot be opened" in reason for reason in index.reasons.values())


def layout(root: Path, *names: str) -> Path:
    for name in names:
        two_classes(root / name)
    return root


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (["train", "val"], {"train": Folder.TRAIN, "val": Folder.TEST}),
        (["train", "validation"], {"train": Folder.TRAIN, "validation": Folder.TEST}),
        (["train", "valid"], {"train": Folder.TRAIN, "valid": Folder.TEST}),
        (["train", "test"], {"train": Folder.TRAIN, "test": Folder.TEST}),
        (["train", "val", "test"], {"train": Folder.TRAIN, "val": Folder.SELECT, "test": Folder.TEST}),
        (
            ["train", "meta", "select", "test"],
            {"meta": Folder.META, "select": Folder.SELECT, "test": Folder.TEST},
        ),
        (["train", "meta"], {"train": Folder.TRAIN, "meta": Folder.META}),
    ],
)
def test_layouts(tmp_path, names, roles):
    index = load_index(layout(tmp_path, *names))
    for name, role in roles.items():
        inside = [path.startswith(name.encode() + b"/") for path in index.paths]
        assert sum(inside) == 3
        assert set(index.folders[inside]) == {role}
    labels = {"cat": 0, "dog": 1}
    assert index.labels.tolist() == [labels[path.split(b"/")[1].decode()] for path in index.paths]


# --- header pass and damage


def screened(path: Path, exif: str = "ignore") -> Header:
    return next(screen_all(b"", [os.fsencode(path)], exif, threads=1, progress=""))


def test_healthy_files_of_every_kind(tmp_path):
    kinds = {
        "cmyk.jpg": encoded(mode="CMYK"),
        "grey.jpg": encoded(mode="L"),
        "progressive.jpg": encoded(progressive=True),
        "really_png.jpg": encoded("PNG"),
        "rgba.png": encoded("PNG", mode="RGBA"),
        "b.BMP": encoded("BMP"),
        "w.webp": encoded("WEBP"),
        "t.tiff": encoded("TIFF"),
        "p.ppm": encoded("PPM"),
        "p.pgm": encoded("PPM", mode="L"),
        "padded.jpg": encoded() + b"\0" * 1000,  # no end marker near the end, yet these two decode
        "padded.png": encoded("PNG") + b"\0" * 1000,
    }
    two_classes(tmp_path)
    for name, content in kinds.items():
        put(tmp_path / "cat" / name, content)
    index = load_index(tmp_path)
    assert index.reasons == {}
    assert len(index) == 3 + len(kinds)
    assert (set(index.heights), set(index.widths), set(index.status)) == ({30}, {40}, {Status.OK})


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_damaged(tmp_path, kind, share):
    whole = encoded(kind, 64, 48, "L" if kind == "GIF" else "RGB")
    header = screened(put(tmp_path / "x.jpg", whole[: int(len(whole) * share)]))
    assert header.reason
    if kind in ("JPEG", "PNG") and share >= 0.5:
        assert header == (48, 64, header.reason)
        assert header.reason.startswith("truncated or corrupt: ")


def bomb() -> bytes:
    def block(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    extent = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", extent) + block(b"IDAT", zlib.compress(b"")) + block(b"IEND", b"")


def test_every_damage_is_listed_with_its_reason(tmp_path):
    two_classes(tmp_path)
    put(tmp_path / "cat/empty.jpg", b"")
    put(tmp_path / "cat/text.jpg", b"this is no picture\n" * 9)
    put(tmp_path / "cat/page.png", b"<html></html>")
    put(tmp_path / "cat/bomb.png", bomb())
    put(tmp_path / "cat/postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    for _ in ("built", "cached"):
        index = load_index(tmp_path)
        found = {index.paths[i]: reason for i, reason in index.reasons.items()}
        header = "no image header that can be read"
        assert found == {
            b"cat/empty.jpg": "empty file",
            b"cat/text.jpg": header,
            b"cat/page.png": header,
            b"cat/postscript.jpg": header,
            b"cat/bomb.png": f"more than {MAX_PIXELS} pixels (decompression bomb)",
            b"cat/pipe.jpg": "not a regular file",
        }
        damaged = np.flatnonzero(index.status == Status.DAMAGED)
        assert damaged.tolist() == sorted(index.reasons)
        assert not index.heights[damaged].any()
        assert not index.widths[damaged].any()


def test_the_bomb_limit_does_not_hang_on_a_setting_of_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "bomb" in screened(put(tmp_path / "x.png", bomb())).reason


def test_a_large_picture_below_the_limit_raises_no_warning(tmp_path):
    two_classes(tmp_path)
    large = bomb().replace(struct.pack(">II", 20_000, 10_000), struct.pack(">II", 10_000, 10_000))
    start = large.index(b"IHDR")
    large = large[: start + 17] + struct.pack(">I", zlib.crc32(large[start : start + 17])) + large[start + 21 :]
    put(tmp_path / "cat/large.png", large)
    index = load_index(tmp_path)
    assert index.heights[row(index, b"cat/large.png")] == 10_000


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_swaps_the_extent_only_when_applied(tmp_path, orientation):
    two_classes(tmp_path)
    put(tmp_path / "cat/1.jpg", turned(orientation))
    stored, applied = load_index(tmp_path, exif="ignore"), load_index(tmp_path, exif="apply")
    assert (stored.heights[0], stored.widths[0]) == (30, 40)
    assert (applied.heights[0], applied.widths[0]) == ((40, 30) if orientation >= 5 else (30, 40))


def test_broken_exif_is_no_damage(tmp_path):
    content = turned(6).replace(b"Exif\0\0MM", b"Exif\0\0XX")
    assert screened(put(tmp_path / "x.jpg", content), "apply") == (30, 40, "")


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"]),
    places=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=8),
    keep=st.integers(20, 2000),
)
def test_no_broken_bytes_stop_the_pass(tmp_path_factory, kind, places, keep):
    content = bytearray(encoded(kind, 20, 16, "L")[:keep])
    for place, value in places:
        content[place % len(content)] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.jpg"
    header = screened(put(path, bytes(content)), "apply")
    assert header.reason or min(header.height, header.width) > 0


# --- cache


def test_a_hit_opens_no_image(tmp_path, monkeypatch):
    two_classes(tmp_path)
    first = load_index(tmp_path)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    second = load_index(tmp_path)
    for name in ("labels", "heights", "widths", "status", "folders", "stamps"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one.dtype, one.tolist()) == (other.dtype, other.tolist())
    assert (list(second.paths), second.classes, second.root) == (list(first.paths), first.classes, first.root)


@pytest.mark.parametrize("same_length", [False, True])
def test_a_file_saved_again_in_place_is_read_again_and_named(tmp_path, same_length):
    two_classes(tmp_path)
    put(tmp_path / "cat/1.jpg", encoded("BMP", 40, 30))
    load_index(tmp_path)
    file = tmp_path / "cat/1.jpg"
    file.write_bytes(encoded("BMP", 30, 40) if same_length else encoded(width=7, height=5))  # no folder changes
    with pytest.warns(UserWarning, match=r"changed since the index of .* was made, read again: cat/1\.jpg$"):
        index = load_index(tmp_path)
    assert (index.heights[0], index.widths[0]) == ((40, 30) if same_length else (5, 7))
    again = load_index(tmp_path)  # named once
    assert (again.heights[0], again.widths[0]) == (index.heights[0], index.widths[0])


def test_only_what_is_new_or_changed_is_read_when_a_folder_has_changed(tmp_path, monkeypatch):
    two_classes(tmp_path)
    put(tmp_path / "cat/0.jpg", b"broken")
    put(tmp_path / "cat/5.jpg")
    load_index(tmp_path)
    put(tmp_path / "cat/3.jpg", encoded(width=9, height=8))  # moves the ids of what is behind it
    (tmp_path / "cat/5.jpg").write_bytes(encoded(width=7, height=5))
    read = []
    screen = header_pass.screen_all
    with monkeypatch.context() as patch:
        patch.setattr(header_pass, "screen_all", lambda top, paths, *a: read.extend(paths) or screen(top, paths, *a))
        with pytest.warns(UserWarning, match=r"read again: cat/5\.jpg$"):
            index = load_index(tmp_path)
    assert read == [b"cat/3.jpg", b"cat/5.jpg"]
    cache_file(tmp_path, "ignore").unlink()
    whole = load_index(tmp_path)
    for name in ("labels", "heights", "widths", "status", "folders", "stamps"):
        assert getattr(index, name).tolist() == getattr(whole, name).tolist(), name
    assert index.reasons == whole.reasons == {0: "no image header that can be read"}


def test_a_file_damaged_in_place_is_noticed(tmp_path):
    two_classes(tmp_path)
    load_index(tmp_path)
    (tmp_path / "cat/1.jpg").write_bytes(b"gone")
    with pytest.warns(UserWarning, match=r"read again: cat/1\.jpg$"):
        index = load_index(tmp_path)
    assert index.reasons == {0: "no image header that can be read"}
    assert index.status[0] == Status.DAMAGED


@pytest.mark.parametrize("change", ["add", "remove", "rename", "deep", "class", "evaluation"])
def test_a_changed_folder_is_noticed(tmp_path, change):
    root = two_classes(tmp_path / "root")
    put(root / "cat/deep/er/1.jpg")
    before = list(load_index(root).paths)
    if change == "add":
        put(root / "dog/2.jpg")
    elif change == "remove":
        (root / "cat/1.jpg").unlink()
    elif change == "rename":
        (root / "cat/1.jpg").rename(root / "cat/3.jpg")
    elif change == "deep":
        put(root / "cat/deep/er/2.jpg")
    elif change == "class":
        put(root / "emu/1.jpg")
    else:  # a role beside `train` changes what every folder means
        (root / "cat").rename(root / "train")
        (root / "dog").rename(root / "val")
        for name in ("train", "val"):
            layout(root, name)
            for file in (root / name).glob("*.jpg"):
                file.unlink()
        put(root / "val/deep/1.jpg")
    assert list(load_index(root).paths) != before


def test_a_repaired_file_is_noticed(tmp_path):
    two_classes(tmp_path)
    put(tmp_path / "cat/1.jpg", b"")
    assert load_index(tmp_path).reasons == {0: "empty file"}
    assert load_index(tmp_path).reasons == {0: "empty file"}
    put(tmp_path / "cat/1.jpg")  # written in place: the folder's time stays
    with pytest.warns(UserWarning, match="read again"):
        assert load_index(tmp_path).reasons == {}


def test_a_broken_cache_file_is_made_anew(tmp_path):
    two_classes(tmp_path)
    want = load_index(tmp_path)
    file = cache_file(tmp_path, "ignore")
    whole = file.read_bytes()
    broken = [b"", b"text", whole[:100], whole[: len(whole) // 2], whole[:-1]]
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        broken.append(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
    for number, content in enumerate(broken):
        file.write_bytes(content)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            index = load_index(tmp_path)
        told = [f"{file} cannot be read and is made anew" in str(one.message) for one in said]
        assert told == [True] or (told == [] and number >= 5)  # a flipped bit may be one that nothing reads
        assert list(index.paths) == list(want.paths)
        assert (index.classes, index.heights.tolist()) == (want.classes, want.heights.tolist())


def test_another_version_is_made_anew(tmp_path, monkeypatch):
    two_classes(tmp_path)
    load_index(tmp_path)
    (tmp_path / "cat/1.jpg").write_bytes(encoded(width=7, height=5))
    monkeypatch.setattr(index_module, "VERSION", index_module.VERSION + 1)
    assert load_index(tmp_path).heights[0] == 5


def test_a_cache_that_cannot_be_written_is_said_and_survived(tmp_path):
    root = two_classes(tmp_path / "root")
    with pytest.warns(UserWarning, match="FASTAUG_CACHE"):
        index = load_index(root, cache=put(tmp_path / "file") / "below")
    assert len(index) == 3


def test_racing_processes_leave_one_whole_cache_file(tmp_path):
    root = two_classes(tmp_path / "root")
    code = f"from fastaug.data.index import load_index; print(len(load_index({str(root)!r})))"
    command = [sys.executable, "-W", "error", "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate()[0].strip() for process in running] == ["3"] * 4
    assert os.listdir(cache_dir() / "index") == [cache_file(root, "ignore").name]


def test_the_cache_folder(monkeypatch):
    monkeypatch.setenv("FASTAUG_CACHE", "/a")
    assert cache_dir() == Path("/a")
    monkeypatch.delenv("FASTAUG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_dir() == Path("/b/fastaug")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "fastaug"


def test_importing_is_light():
    code = "import sys, fastaug.data.index, fastaug.data.splits, fastaug.data.sources.embedded as _\n"
    code += "print([name for name in sys.argv[1:] if name in sys.modules])"
    heavy = ["torch", "nvidia.dali", "PIL", "rich", "mlxtend", "pandas"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_progress_is_shown_on_request_only(tmp_path, capsys):
    two_classes(tmp_path)
    load_index(tmp_path)
    assert capsys.readouterr() == ("", "")
    put(tmp_path / "dog/2.jpg")
    load_index(tmp_path, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading 1 of 4 images" in err


# --- bad input


def refused(root: Path, *parts: str) -> str:
    with pytest.raises(DataError) as caught:
        load_index(root)
    text = str(caught.value)
    for part in (str(root), *parts):
        assert part in text
    return text


def test_a_missing_root(tmp_path):
    refused(tmp_path / "none", "does not exist", "data.root")


def test_a_root_that_is_a_file(tmp_path):
    refused(put(tmp_path / "x.jpg"), "is a file", "data.root")


def test_no_classes(tmp_path):
    put(tmp_path / "1.jpg")
    refused(tmp_path, "no class folders")


def test_one_class(tmp_path):
    put(tmp_path / "cat/1.jpg")
    refused(tmp_path, "one class only (cat)")


def test_a_lone_train_folder(tmp_path):
    refused(layout(tmp_path, "train"), "one class only (train)", "data.root")


def test_evaluation_images_outside_class_folders(tmp_path):
    layout(tmp_path, "train")
    put(tmp_path / "val/1.jpg")
    refused(tmp_path, str(tmp_path / "val"), "lacks cat, dog")


def test_classes_without_images_are_all_named(tmp_path):
    two_classes(tmp_path)
    for number in range(12):
        put(tmp_path / f"void{number:02}" / "notes.txt")
    text = refused(tmp_path, ", ".join(f"void{number:02}" for number in range(10)), "and 2 more")
    assert "void10" not in text


def test_classes_that_differ_are_named(tmp_path):
    layout(tmp_path, "train", "val")
    put(tmp_path / "train/emu/1.jpg")
    for number in range(11):
        put(tmp_path / f"val/new{number:02}/1.jpg")
    text = refused(tmp_path, "lacks emu", "has new00, new01", "and 1 more")
    assert "new10" not in text


def test_a_meta_folder_may_lack_a_class_but_not_add_one(tmp_path):
    layout(tmp_path, "train", "val")
    put(tmp_path / "meta/dog/1.jpg")
    assert load_index(tmp_path).labels[0] == 1
    put(tmp_path / "meta/emu/1.jpg")
    refused(tmp_path, "meta", "has emu")


def test_two_folders_for_one_role(tmp_path):
    refused(layout(tmp_path, "train", "val", "valid"), "val and valid")
    refused(layout(tmp_path, "select", "test"), "select")


def test_one_folder_for_two_roles(tmp_path):
    layout(tmp_path, "train", "val")
    (tmp_path / "test").symlink_to(tmp_path / "val")
    refused(tmp_path, "val and test", "same folder")


def test_an_unknown_exif_setting(tmp_path):
    with pytest.raises(ValueError, match="'turn'"):
        load_index(two_classes(tmp_path), exif="turn")


@pytest.mark.parametrize("kind", ["GIF", "AVIF", "TIFF", "JPEG2000", "WEBP", "BMP", "PPM"])
def test_every_kind_that_pillow_reads_is_an_image(tmp_path, kind):
    two_classes(tmp_path)
    put(tmp_path / "cat" / "g.jpg", encoded(kind, width=9, height=7))
    index = load_index(tmp_path)
    place = row(index, b"cat/g.jpg")
    assert (index.heights[place], index.widths[place], index.reasons) == (7, 9, {})
