#!/usr/bin/env python3
"""Makes a set of uneven, hand-filed classes out of a tree of clip art: a class is a folder at the top of the tree.

OUT/CLASS/ gets links to the PNG files below that folder, at most MOST, those with the smallest hashes of their names;
symbolic links (a picture filed twice) and the folders of --leave-out are left out. With --halves OUT/train and OUT/test
get every other one instead, as RGB on white, 256 pixels at most, of classes with 16 or more. Downloads nothing. The
figures of docs/fine_tuning.md are of Debian's package openclipart-png:

    apt-get download openclipart-png && dpkg-deb -x openclipart-png_*.deb clip
    python docs/studies/make_clip_art.py clip/usr/share/openclipart/png data/clip_art --most 120
    python docs/studies/make_clip_art.py clip/usr/share/openclipart/png data/clip_halves --most 160 --halves
"""

import argparse
import hashlib
import os
from pathlib import Path

from PIL import Image

SIDE, LEAST, LARGEST = 256, 16, 8_000_000  # of --halves: pixels a side, images of a class, pixels of an image


def on_white(file: Path, out: Path) -> None:
    """A smaller copy, what is transparent white."""
    image = Image.open(file)
    if image.width * image.height > LARGEST:
        return
    image = image.convert("RGBA")
    image.thumbnail((SIDE, SIDE))
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    out.parent.mkdir(parents=True, exist_ok=True)
    white.convert("RGB").save(out)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, help="folder of folders of PNG files, nested as they are")
    parser.add_argument("out", type=Path, help="folder to make; must not exist")
    parser.add_argument("--most", type=int, default=120, help="images of a class (default 120)")
    parser.add_argument("--leave-out", nargs="*", default=["unsorted"], metavar="FOLDER", help="(default: unsorted)")
    parser.add_argument("--halves", action="store_true", help="see above")
    arguments = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # they are left out by LARGEST
    arguments.out.mkdir(parents=True)
    for top in sorted(folder for folder in arguments.tree.iterdir() if folder.is_dir()):
        if top.name in arguments.leave_out:
            continue
        found = {"_".join(file.relative_to(top).parts): file for file in top.rglob("*.png") if not file.is_symlink()}
        chosen = sorted(found, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[: arguments.most]
        if arguments.halves and len(found) >= LEAST:
            for place, name in enumerate(chosen):
                on_white(found[name], arguments.out / ("train", "test")[place % 2] / top.name / name)
        elif not arguments.halves:
            (arguments.out / top.name).mkdir()
            for name in chosen:
                os.link(found[name], arguments.out / top.name / name)
        print(f"{top.name}: {len(chosen)} of {len(found)}")


if __name__ == "__main__":
    main()
