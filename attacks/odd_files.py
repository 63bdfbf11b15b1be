"""Image files that are odd or damaged, by kind: what folders from the wild hold."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Draw = np.random.Generator
Maker = Callable[[Draw], bytes]

WIDTH, HEIGHT = 48, 40


def picture(draw: Draw, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture with enough detail that its file is a few kilobytes."""
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(kind: str, mode: str = "RGB", **options: Any) -> Maker:
    """A whole file of a kind that Pillow writes."""

    def make(draw: Draw) -> bytes:
        image, out = picture(draw), io.BytesIO()
        image = image.quantize(16) if mode == "P" else image.convert(mode)
        more = {"append_images": [image.rotate(90)]} if options.get("save_all") else {}
        image.save(out, kind, **options, **more)
        return out.getvalue()

    return make


def of_array(kind: str, dtype: Any, largest: float) -> Maker:
    """A grey file whose pixels are not bytes."""

    def make(draw: Draw) -> bytes:
        out = io.BytesIO()
        Image.fromarray((draw.random((HEIGHT, WIDTH)) * largest).astype(dtype)).save(out, kind)
        return out.getvalue()

    return make


def sized(kind: str, width: int, height: int) -> Maker:
    """A file of unusual extent."""

    def make(draw: Draw) -> bytes:
        out = io.BytesIO()
        picture(draw, width, height).save(out, kind)
        return out.getvalue()

    return make


def with_exif(kind: str, orientation: int, broken: bool = False) -> Maker:
    """A file with an EXIF block."""

    def make(draw: Draw) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = saved(kind, exif=exif.tobytes())(draw)
        return content.replace(b"Exif\0\0MM", b"Exif\0\0XX") if broken else content

    return make


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, color: int, rows: list[bytes]) -> bytes:
    """A PNG file of these rows, each without its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png16(color: int, channels: int) -> Maker:
    """A PNG file of 16 bits a channel."""
    return lambda draw: png(WIDTH, HEIGHT, 16, color, [draw.bytes(2 * channels * WIDTH) for _ in range(HEIGHT)])


def damaged(make: Maker, how: Callable[[bytes, Draw], bytes]) -> Maker:
    """A file after damage."""
    return lambda draw: how(make(draw), draw)


def halved(content: bytes, _: Draw) -> bytes:
    return content[: len(content) // 2]


def endless(content: bytes, _: Draw) -> bytes:
    return content[:-12]


def hollow(content: bytes, _: Draw) -> bytes:
    """The end is there, the middle is not."""
    return content[: len(content) // 2] + content[-12:]


def flipped(content: bytes, _: Draw) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 255 for byte in content[middle : middle + 200]) + content[middle + 200 :]


def stray(content: bytes, _: Draw) -> bytes:
    """Bytes between two markers of a JPEG file."""
    return content[:20] + b"\0\1\2" + content[20:]


def trailing(content: bytes, _: Draw) -> bytes:
    return content + b"\r\n--boundary--" + b"x" * 300


def mutated(content: bytes, draw: Draw) -> bytes:
    """A few bytes of the header are others, gone or new."""
    place, how = int(draw.integers(2, min(700, len(content)))), draw.integers(3)
    if how == 0:
        return content[:place] + bytes([int(draw.integers(256))]) + content[place + 1 :]
    if how == 1:
        return content[:place] + content[place + int(draw.integers(1, 20)) :]
    return content[:place] + draw.bytes(int(draw.integers(1, 6))) + content[place:]


def mutated_exif(content: bytes, draw: Draw) -> bytes:
    """A few bytes of the EXIF block are others."""
    start = content.index(b"Exif")
    changed = bytearray(content)
    for place in draw.integers(start, start + 34, 2).tolist():
        changed[place] = int(draw.integers(256))
    return bytes(changed)


JPEG, PNG, WEBP, TIFF = saved("JPEG"), saved("PNG"), saved("WEBP"), saved("TIFF")
BOMB = png(20_000, 10_000, 8, 0, [])

FILES: dict[str, tuple[str, Maker]] = {
    "jpeg_progressive": ("jpg", saved("JPEG", progressive=True)),
    "jpeg_grey": ("jpg", saved("JPEG", "L")),
    "jpeg_cmyk": ("jpg", saved("JPEG", "CMYK")),
    "jpeg_rgb": ("jpg", saved("JPEG", keep_rgb=True)),
    "jpeg_420": ("jpg", saved("JPEG", subsampling=2)),
    "jpeg_turned": ("jpg", with_exif("JPEG", 6)),
    "jpeg_mirrored": ("jpg", with_exif("JPEG", 5)),
    "jpeg_broken_exif": ("jpg", with_exif("JPEG", 6, broken=True)),
    "jpeg_mutated_exif": ("jpg", damaged(with_exif("JPEG", 6), mutated_exif)),
    "jpeg_several_pictures": ("jpg", saved("MPO", save_all=True)),
    "jpeg_trailing_text": ("jpg", damaged(JPEG, trailing)),
    "jpeg_stray_bytes": ("jpg", damaged(JPEG, stray)),
    "png_grey16": ("png", png16(0, 1)),
    "png_rgb16": ("png", png16(2, 3)),
    "png_palette": ("png", saved("PNG", "P")),
    "png_grey_alpha": ("png", saved("PNG", "LA")),
    "png_alpha": ("png", saved("PNG", "RGBA")),
    "png_1bit": ("png", saved("PNG", "1")),
    "png_turned": ("png", with_exif("PNG", 6)),
    "gif": ("gif", saved("GIF", "P")),
    "gif_animated": ("gif", saved("GIF", "P", save_all=True)),
    "webp": ("webp", WEBP),
    "webp_lossless": ("webp", saved("WEBP", lossless=True)),
    "webp_alpha": ("webp", saved("WEBP", "RGBA")),
    "webp_animated": ("webp", saved("WEBP", save_all=True)),
    "webp_turned": ("webp", with_exif("WEBP", 6)),
    "bmp": ("bmp", saved("BMP")),
    "bmp_palette": ("bmp", saved("BMP", "P")),
    "bmp_1bit": ("bmp", saved("BMP", "1")),
    "tiff": ("tif", TIFF),
    "tiff_lzw": ("tif", saved("TIFF", compression="tiff_lzw")),
    "tiff_jpeg": ("tif", saved("TIFF", compression="jpeg")),
    "tiff_group4": ("tif", saved("TIFF", "1", compression="group4")),
    "tiff_grey16": ("tif", of_array("TIFF", np.uint16, 65535)),
    "tiff_float32": ("tif", of_array("TIFF", np.float32, 1)),
    "tiff_int32": ("tif", of_array("TIFF", np.int32, 2**31)),
    "tiff_cmyk": ("tif", saved("TIFF", "CMYK")),
    "tiff_lab": ("tif", saved("TIFF", "LAB")),
    "tiff_pages": ("tif", saved("TIFF", save_all=True)),
    "tiff_turned": ("tif", saved("TIFF", tiffinfo={0x0112: 6})),
    "ppm": ("ppm", saved("PPM")),
    "pgm": ("pgm", saved("PPM", "L")),
    "pgm16": ("pgm", lambda draw: b"P5 48 40 65535\n" + draw.bytes(2 * WIDTH * HEIGHT)),
    "avif_named_jpg": ("jpg", saved("AVIF")),
    "jpeg2000_named_jpg": ("jpg", saved("JPEG2000")),
    "gif_named_jpg": ("jpg", saved("GIF", "P")),
    "tiff_named_png": ("png", TIFF),
    "png_named_jpg": ("jpg", PNG),
    "one_pixel": ("png", sized("PNG", 1, 1)),
    "one_pixel_jpeg": ("jpg", sized("JPEG", 1, 1)),
    "one_column": ("png", sized("PNG", 1, 2000)),
    "one_row": ("jpg", sized("JPEG", 3000, 1)),
    "empty": ("jpg", lambda _: b""),
    "text": ("jpg", lambda _: b"not an image at all\n" * 20),
    "page": ("png", lambda _: b"<!DOCTYPE html><html><body>403 Forbidden</body></html>"),
    "postscript": ("jpg", lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "noise": ("png", lambda draw: draw.bytes(3000)),
    "bomb": ("png", lambda _: BOMB),
    "jpeg_head_only": ("jpg", lambda draw: JPEG(draw)[:3]),
    "jpeg_half": ("jpg", damaged(JPEG, halved)),
    "jpeg_without_end": ("jpg", damaged(JPEG, endless)),
    "jpeg_hollow": ("jpg", damaged(JPEG, hollow)),
    "jpeg_flipped": ("jpg", damaged(JPEG, flipped)),
    "jpeg_mutated": ("jpg", damaged(JPEG, mutated)),
    "png_half": ("png", damaged(PNG, halved)),
    "png_without_end": ("png", damaged(PNG, endless)),
    "png_hollow": ("png", damaged(PNG, hollow)),
    "png_flipped": ("png", damaged(PNG, flipped)),
    "png_mutated": ("png", damaged(PNG, mutated)),
    "webp_half": ("webp", damaged(WEBP, halved)),
    "webp_flipped": ("webp", damaged(WEBP, flipped)),
    "webp_mutated": ("webp", damaged(WEBP, mutated)),
    "gif_half": ("gif", damaged(saved("GIF", "P"), halved)),
    "tiff_half": ("tif", damaged(TIFF, halved)),
    "tiff_flipped": ("tif", damaged(saved("TIFF", compression="tiff_lzw"), flipped)),
    "tiff_mutated": ("tif", damaged(TIFF, mutated)),
    "bmp_half": ("bmp", damaged(saved("BMP"), halved)),
    "bmp_mutated": ("bmp", damaged(saved("BMP"), mutated)),
    "jpeg2000_half": ("jpg", damaged(saved("JPEG2000"), halved)),
}


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


# What stands where a file should: made at a path that is free.
OBSTACLES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "link_to_nothing": lambda path: path.symlink_to(path.with_name("nothing")),
    "link_to_itself": link_to_itself,
    "link_to_a_device": lambda path: path.symlink_to("/dev/zero"),
}


def replaced_by(make: Callable[[Path], object]) -> Callable[[Path, Draw], object]:
    """Something that is no file in the place of a file."""

    def replace(path: Path, _: Draw) -> None:
        path.unlink()
        make(path)

    return replace


# What may happen to a good PNG file while it is in use.
CHANGES: dict[str, Callable[[Path, Draw], object]] = {
    "smaller": lambda path, draw: picture(draw, 9, 7).save(path, "PNG"),
    "larger": lambda path, draw: picture(draw, 200, 300).save(path, "PNG"),
    "other_kind": lambda path, draw: path.write_bytes(TIFF(draw)),
    "halved": lambda path, draw: path.write_bytes(halved(path.read_bytes(), draw)),
    "hollow": lambda path, draw: path.write_bytes(hollow(path.read_bytes(), draw)),
    "flipped": lambda path, draw: path.write_bytes(flipped(path.read_bytes(), draw)),
    "emptied": lambda path, _: path.write_bytes(b""),
    "text": lambda path, _: path.write_bytes(b"text"),
    "deleted": lambda path, _: path.unlink(),
    "folder": replaced_by(Path.mkdir),
    "pipe": replaced_by(os.mkfifo),
    "huge": lambda path, _: path.write_bytes(BOMB),
}


def write_set(root: Path, good: int, copies: int, seed: int) -> dict[str, str]:
    """`good` sound PNG files in two classes and `copies` of each kind of odd one among them; path -> kind of those."""
    draw, kinds = np.random.default_rng(seed), dict[str, str]()
    for split in ("train", "val"):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            (root / split / label / "0.png").write_bytes(PNG(draw))
    for i in range(good):
        (root / "train" / "ab"[i % 2] / f"{i:05}.png").write_bytes(PNG(draw))
    for kind in [*FILES, *OBSTACLES] * copies:
        ending, make = FILES.get(kind, ("jpg", None))
        path = root / "train" / "ab"[len(kinds) % 2] / f"{draw.integers(10**5):05}-{len(kinds)}.{ending}"
        kinds[str(path.relative_to(root))] = kind
        if make is None:
            OBSTACLES[kind](path)
        else:
            path.write_bytes(make(draw))
    return kinds
