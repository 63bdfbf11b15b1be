"""Draws a set to learn from out of font files: a class is a letter or digit, an image one face's drawing of it.

Decorative fonts differ from each other far more than handwriting does, so augmentation matters here. A glyph is drawn
large, fitted into 24 of 32 pixels (grey on black, centred) and written to OUT/{train,meta,test}/CLASS/FACE.png. Faces
of one family (files that begin with the same letters) are in one split only, by a hash of the family's name: 40 %
train, 7 % meta, 53 % test. Left out, and counted: faces that lack a character, draw one empty, or draw nearly the same
picture for many. The same fonts give the same files. Downloads nothing: FONTS is any folder of .ttf and .otf files,
searched through; the figures of docs/policies.md are of Debian's packages fonts-aenigma and fonts-dustin:

    apt-get download fonts-aenigma fonts-dustin && for f in fonts-*.deb; do dpkg-deb -x $f fonts; done
    python docs/studies/make_letters.py fonts data/letters
    python docs/studies/make_letters.py fonts data/font_digits --characters 0123456789
    python docs/studies/make_letters.py fonts data/turned_letters --characters MWNZ69
"""

import argparse
import hashlib
import re
import string
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE, INNER = 32, 24  # pixels: of an image, of the longer side of a glyph in it
DRAWN = 96  # height in pixels at which glyphs are drawn before they are fitted
ALIKE = 0.005  # difference of two pictures, as a share of their sum, below which they count as the same
SHARES = {"train": 0.40, "meta": 0.07, "test": 0.53}


def family(file: Path) -> str:
    """The letters with which the name of a font file begins, in lower case and at most six of them."""
    found = re.match(r"[a-z]+", file.stem.lower())
    return found.group()[:6] if found else file.stem.lower()[:6]


def split_of(name: str) -> str:
    """The split of a family: its name's hash as a number in [0, 1) among the shares."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return "test"


def glyph(font: ImageFont.FreeTypeFont, character: str) -> Image.Image | None:
    """The picture [SIDE, SIDE] of a character, None where the face draws nothing for it."""
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top or max(right - left, bottom - top) > 20 * DRAWN:
        return None
    canvas = Image.new("L", (round(right - left) + 2, round(bottom - top) + 2))
    ImageDraw.Draw(canvas).text((1 - left, 1 - top), character, fill=255, font=font)
    box = canvas.getbbox()
    if box is None:
        return None
    drawn = canvas.crop(box)
    scale = INNER / max(drawn.size)
    size = (max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale)))
    picture = Image.new("L", (SIDE, SIDE))
    picture.paste(drawn.resize(size, Image.Resampling.BOX), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return picture


def alphabet(file: Path, characters: str) -> dict[str, Image.Image] | str:
    """The pictures of all characters in a face, or why it is left out."""
    try:
        font = ImageFont.truetype(file, DRAWN)
        blank = glyph(font, "\uffff")  # what the face shows for a character that it lacks
        pictures = {character: glyph(font, character) for character in characters}
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"
    known = {character: picture for character, picture in pictures.items() if picture is not None}
    lacking = [c for c, p in known.items() if blank is not None and p.tobytes() == blank.tobytes()]
    if len(known) < len(characters) or lacking:
        return "lacks a character"
    pixels = np.stack([np.asarray(picture, np.float32) / 255 for picture in known.values()])
    sums = pixels.sum((1, 2))
    apart = np.abs(pixels[:, None] - pixels[None]).sum((2, 3)) / (sums[:, None] + sums) + np.eye(len(pixels))
    return "draws one picture for many" if (apart.min(1) < ALIKE).mean() > 0.25 else known


def faces(fonts: Path) -> Iterator[Path]:
    """All font files under a folder, in the order of their names."""
    return (file for file in sorted(fonts.rglob("*")) if file.suffix.lower() in (".ttf", ".otf"))


def main() -> int:
    """The exit code: 0, or 2 where there is nothing to draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fonts", type=Path, help="folder of font files")
    parser.add_argument("out", type=Path, help="folder to make; must not exist")
    parser.add_argument("--characters", default=string.ascii_uppercase, help="the classes (default: A to Z)")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    written: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    families: dict[str, set[str]] = {split: set() for split in SHARES}
    for file in faces(args.fonts):
        pictures = alphabet(file, args.characters)
        if isinstance(pictures, str):
            left_out[pictures.split(":")[0]] += 1
            continue
        split = split_of(family(file))
        families[split].add(family(file))
        for character, picture in pictures.items():
            folder = args.out / split / character
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{file.stem}.png")
            written[split] += 1
    for reason, count in left_out.items():
        print(f"{count} faces left out: {reason}")
    for split in SHARES:
        print(f"{split}: {written[split]} images of {len(families[split])} families")
    if not written:
        print(f"no face in {args.fonts} has all of {args.characters!r}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
