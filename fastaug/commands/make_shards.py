"""Makes prepared shards of an image folder (docs/shards.md), or checks those that are there.

    fastaug make-shards /data/images /fast/images-256 --short-side 256 --format jpeg

The same command given again after a kill goes on where it was; finished shards are verified and kept.
"""

import argparse
import os
import sys
from pathlib import Path

from fastaug.data.image_files import Colour, colour_of
from fastaug.data.shards.layout import Settings
from fastaug.errors import DataError, FastaugError
from fastaug.recipe.schema import COLOURS

STOPPED = 75  # as `fastaug train`


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug make-shards", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", metavar="ROOT", help="what data.root would name: a folder, embedded:mnist5k")
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT", help="the folder of shards; data.root from then on")
    parser.add_argument("--verify", type=Path, metavar="OUT", help="instead: read every byte of OUT and compare hashes")
    parser.add_argument("--short-side", type=int, default=256, metavar="PIXELS", help="larger images are made smaller")
    parser.add_argument("--format", default="jpeg", choices=("jpeg", "raw"), help="raw: about 8 times the space")
    parser.add_argument("--quality", type=int, metavar="Q", help="of JPEGs that are written (default 90)")
    parser.add_argument("--shard-size", type=int, metavar="IMAGES", help="in a tar file (default 4096, or 500 files)")
    parser.add_argument("--exif", default="ignore", choices=("ignore", "apply"), help="as data.exif (default ignore)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="as data.table: paths, labels and splits of images")
    parser.add_argument("--class-level", default="top", choices=("top", "leaf"), help="as data.class_level")
    parser.add_argument("--class-map", type=Path, metavar="FILE", help="as data.class_map")
    parser.add_argument("--background", metavar="COLOUR", help="as data.background: white, black or R,G,B")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="threads")
    arguments = parser.parse_args(argv)
    if (arguments.verify is None) == (arguments.out is None):
        parser.error("give ROOT and OUT, or --verify OUT")
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1, found {arguments.workers}")
    if arguments.format == "jpeg" and arguments.quality is None:
        arguments.quality = 90
    try:
        arguments.settings = Settings(
            arguments.format,
            arguments.short_side,
            arguments.quality,
            arguments.shard_size,
            arguments.exif,
            background_of(arguments.background),
        )
    except ValueError as error:
        parser.error(str(error))
    return arguments


def background_of(text: str | None) -> Colour | None:
    """The colour that --background names; ValueError where it is none."""
    try:
        return colour_of(None if text is None else COLOURS.get(text) or [int(word) for word in text.split(",")])
    except ValueError:
        raise ValueError(f"--background {text}: must be white, black or three numbers of 0 to 255, as 9,9,9") from None


def check(arguments: argparse.Namespace) -> None:
    """Reads every byte of a shard folder; DataError when one is wrong."""
    from fastaug.console import Console
    from fastaug.data.shards.writer import verify

    problems = verify(arguments.verify, workers=arguments.workers, console=Console(True))
    if problems:
        listed = "\n".join(f"  {name}: {problem}" for name, problem in problems.items())
        raise DataError(f"{arguments.verify}:\n{listed}\nthe command that made it writes these again")
    print(f"{arguments.verify}: every shard is as it was written")


def make(arguments: argparse.Namespace) -> None:
    """Makes the shards and prints what became of every image."""
    from fastaug.console import Console, warnings_as_lines
    from fastaug.data.build import find_index, find_root
    from fastaug.data.class_names import shown
    from fastaug.data.listing import Listing
    from fastaug.data.shards.layout import is_shard_folder, open_shards
    from fastaug.data.shards.writer import counts, make_shards

    console, root = Console(True), find_root(arguments.root, progress=True, table=arguments.table)
    if isinstance(root, Path) and is_shard_folder(root):
        raise DataError(f"{root} holds shards already; give the folder of the original images")
    listing = Listing(arguments.table, arguments.class_level, arguments.class_map)
    with warnings_as_lines(speaks=True):
        index = find_index(root, arguments.exif, True, listing)
    make_shards(index, arguments.out, arguments.settings, workers=arguments.workers, console=console)
    shards = open_shards(arguments.out)
    for id, reason in shards.reasons.items():
        console.print(f"damaged: {shown(os.fsdecode(index.path(id)))}: {reason}")
    console.summary(str(arguments.out), counts(shards))


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    arguments = parse(argv)
    try:
        if arguments.verify:
            check(arguments)
        else:
            make(arguments)
    except FastaugError as error:
        print(error, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return STOPPED
    return 0
