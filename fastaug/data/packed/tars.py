"""WebDataset tars: samples of members that share a name up to its first dot; an image and its label.

A sample's image is its member .jpg, .png or another of an image, or the one that data.input_key names (`jpg;png`: the
first that is there). Its label is the content of .cls, text or a whole number, else a field of its .json;
data.target_key names a field (`label`) or a member (`cls`). Ids follow the tars in the order of their paths, each in
its own.
"""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, NamedTuple

from fastaug.data.class_names import shown
from fastaug.data.folders import EXTENSIONS
from fastaug.data.packed.places import files_of
from fastaug.data.packed.records import Container, Contents, Found, Keys, Record, number_or_text, refuse
from fastaug.errors import DataError

AGAIN = "download or copy it again"
LABELS = ("label", "labels", "cls", "class", "class_name", "target")  # fields of a .json, the first that is there
_IMAGES = tuple(ending.decode()[1:] for ending in EXTENSIONS)
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)")  # key and kinds, "a/b.seg.png" -> "a/b", "seg.png"
_LONGEST = 2**20  # bytes of a label
_INFO = ("_info.json", "info.json")


class Member(NamedTuple):
    """A file in a tar: its name, and where its bytes lie."""

    name: str
    offset: int
    length: int


def find(place: str) -> Found:
    """The tars that `place` names, and the list of them that some writers put beside."""
    found = files_of(place, "wds", lambda name: name.lower().endswith((".tar", ".tar.gz", ".tgz")))
    if packed := next((file for file in found.files if not file.path.name.lower().endswith(".tar")), None):
        text = f"data.root: {packed.path} is compressed, and no image in it can be read alone"
        raise DataError(f"{text}; unpack it to a .tar with gunzip (the images in it are compressed anyway)")
    folders = sorted({file.path.parent for file in found.files})
    return replace(
        found, beside=tuple(path for folder in folders for name in _INFO if (path := folder / name).is_file())
    )


def read(found: Found, keys: Keys) -> Contents:
    """The samples of all tars; DataError for a truncated tar, or one that holds other numbers than the list says."""
    records: list[Record] = []
    counts: dict[Path, int] = {}
    for number, file in enumerate(found.files):
        rows = list(_samples(file, number, keys))
        counts[file.path] = len(rows)
        records += rows
    for path in found.beside:
        _refuse_other_counts(path, counts)
    field = f"the field {keys.label} of a .json or a member .{keys.label}" if keys.label else ""
    return Contents(records, None, field or f".cls, or .json with one of the fields {', '.join(LABELS)}")


def members(path: Path, begin: int = 0, end: int | None = None) -> Iterator[Member]:
    """The files in a tar that lies in `path` from byte `begin` to `end`, in order; DataError where it is cut short."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            end = size if end is None else end
            file.seek(begin)
            if file.read(2) == b"\x1f\x8b":
                raise DataError(f"data.root: {path} is compressed; unpack it to a .tar with gunzip")
            file.seek(begin)
            behind = begin
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
                    behind = member.offset_data + -(-member.size // 512) * 512
                    if behind > end:
                        raise DataError(f"data.root: {path} ends within {shown(member.name)}: cut short; {AGAIN}")
                    if member.isreg():
                        yield Member(member.name, member.offset_data, member.size)
                    elif member.issym() or member.islnk():
                        text = f"data.root: {path}: {shown(member.name)} is a link"
                        raise DataError(f"{text}; pack the files that links lead to (tar --dereference)")
            _check_end(file, path, behind, end)
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise DataError(f"data.root: {path}: truncated or no tar file ({error}); {AGAIN}") from error


def _check_end(file: IO[bytes], path: Path, behind: int, end: int) -> None:
    """DataError unless blocks of zeros follow the last member, and nothing else: writers put two."""
    file.seek(behind)
    rest = file.read(min(end - behind, 64 * 512))
    if len(rest) < 512:
        raise DataError(f"data.root: {path} has no end, as a tar file has: cut short at byte {end}; {AGAIN}")
    if rest.strip(b"\0"):
        raise DataError(f"data.root: {path}: another archive, or other bytes, behind byte {behind}; pack it again")


def _samples(file: Container, number: int, keys: Keys) -> Iterator[Record]:
    """The records of one tar, in the order of their images in it."""
    samples: dict[str, dict[str, Member]] = {}
    for member in members(file.path):
        if (found := _NAME.fullmatch(member.name)) is None or found[1].startswith("__"):
            continue  # no sample: a readme, or what writers note for themselves
        kinds = samples.setdefault(found[1], {})
        if kinds.setdefault(found[2].lower(), member) is not member:
            text = f"data.root: {file.path} holds {shown(member.name)} twice"
            raise DataError(f"{text}; give every sample a name of its own")
    wanted = keys.image.lower().split(";") if keys.image else _IMAGES
    images = {key: next((kind for kind in wanted if kind in kinds), None) for key, kinds in samples.items()}
    bare = (key for key, kind in images.items() if kind is None)
    what = f"no member .{keys.image}" if keys.image else "no member of an image (.jpg, .png, ...)"
    refuse(file.path, bare, f"samples with {what}", "name its ending in data.input_key, or pack them again without")
    with open(file.path, "rb") as opened:
        for key, kinds in samples.items():
            image = kinds[images[key] or ""]
            try:
                label = _label(opened.fileno(), kinds, keys.label) if keys.labelled else None
            except (ValueError, RecursionError) as error:
                text = f"data.root: {file.path}: the label of {shown(key)} cannot be read ({error})"
                raise DataError(f"{text}; write text or a whole number") from error
            yield Record(f"{file.name}/{image.name}", label, file.split, number, image.offset, image.length)


def _label(file: int, kinds: dict[str, Member], key: str | None) -> str | None:
    """The label of a sample; ValueError for what is none."""
    if (key or "cls") in kinds:
        return number_or_text(_bytes(file, kinds[key or "cls"]).decode())
    if "json" not in kinds:
        return None
    fields = json.loads(_bytes(file, kinds["json"]))
    if not isinstance(fields, dict):
        raise ValueError("its .json holds no object")
    return number_or_text(next((fields[name] for name in ((key,) if key else LABELS) if name in fields), None))


def _bytes(file: int, member: Member) -> bytes:
    if member.length > _LONGEST:
        raise ValueError(f"{member.length} bytes")
    return os.pread(file, member.length, member.offset)


def _refuse_other_counts(info: Path, counts: dict[Path, int]) -> None:
    """DataError where a list of tars names one that is not read, or other numbers of samples."""
    try:
        splits = json.loads(info.read_bytes())["splits"].values()
        said = {info.parent / name: int(n) for s in splits for name, n in zip(s["filenames"], s["shard_lengths"])}  # noqa: B905
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # another file of that name
    folder = {path: count for path, count in counts.items() if path.parent == info.parent}
    wrong = [
        f"{path.name} ({folder.get(path, 'not there')}, not {count})"
        for path, count in said.items()
        if folder.get(path) != count
    ]
    refuse(info, wrong, "tars with other numbers of samples than it says", "download them again")
