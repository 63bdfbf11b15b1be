"""What the meta step costs and how good it is: by engine and against other libraries, over K and f, and per sample.

Sections (--only to choose): `engines`: one hypergradient step by every engine and by other libraries, whole steps in
units of a plain step, memory, agreement with float64. `overhead`: whole training steps with a meta step every K, next
to the same training without, taking turns. `frontier`: over K, f and meta batch, the cosine of the mean of 20
hypergradients with the mean exact one on real digits, with the overhead of its measured parts; table and picture.
`samples`: a loss weight for every sample at every step: price, memory, and how well wrong labels are found.
`estimators`: probabilities of operations by score function and by Gumbel-softmax. `evidence`: the price of gathering
evidence on operations, at K = 10 and its own K, from meta steps timed after every update. Best on a quiet machine.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.meta import estimators, samples
from benchmarks.meta.frontier import Point, picture, quality
from benchmarks.meta.measure import HEADER, NAMES, measure, table
from benchmarks.meta.overhead import (
    EVIDENCE_EVERY,
    cost_of_parts,
    evidence_arms,
    point_name,
    ratios,
    rows,
    shared_arms,
    timed_blocks,
)
from benchmarks.meta.scene import Size, new_scene
from benchmarks.meta.task import PARTS, Setting
from benchmarks.peers import report

SECTIONS = ("engines", "overhead", "frontier", "samples", "estimators", "evidence")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=SECTIONS, help="sections (default: all)")
    parser.add_argument("--methods", nargs="*", default=NAMES, help="engines and libraries (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    parser.add_argument("--model", default="resnet18", help="timm's name (default resnet18)")
    parser.add_argument("--side", type=int, default=64, help="pixels (default 64)")
    parser.add_argument("--batch", type=int, default=64, help="images (default 64)")
    parser.add_argument("--images", type=int, default=1600, help="training, meta and test (default 1600)")
    parser.add_argument("--classes", type=int, default=100, help="(default 100)")
    parser.add_argument("--rounds", type=int, default=6, help="timed rounds of 40 steps, or of the engines (default 6)")
    parser.add_argument("--count", type=int, default=20, help="hypergradients that are averaged (default 20)")
    parser.add_argument("--cadences", nargs="*", type=int, default=[5, 10, 20, 40], help="K, of the frontier")
    parser.add_argument("--fractions", nargs="*", type=float, default=[0.125, 0.25, 0.5], help="f, of the frontier")
    parser.add_argument("--meta-images", nargs="*", type=int, default=[64, 256], help="m, of the frontier")
    parser.add_argument("--half-life", type=float, default=20, help="updates, of the averaged v on the frontier")
    parser.add_argument("--keys", nargs="*", default=[], help="of the recipe, for all that the frontier trains")
    parser.add_argument("--redraws", type=int, default=0, help="sets of other draws of the exact ones, even, up to 8")
    parser.add_argument("--point", default="40,0.25,64", metavar="K,f,m", help="timed end to end and reported")
    parser.add_argument("--seeds", type=int, default=3, help="of the study of wrong labels")
    parser.add_argument("--draws", type=int, default=320, help="batches of the estimators (default 320)")
    parser.add_argument("--operations", default="broad", help="of the estimators (default broad)")
    parser.add_argument("--slots", type=int, default=1, help="of the estimators (default 1)")
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.1, 0.25, 0.5], help="of Gumbel-softmax")
    parser.add_argument("--magnitude", type=float, default=0.98, help="of their operations (default .98)")
    parser.add_argument(
        "--peer-python", action="append", default=[], metavar="NAME=PATH", help="of a library's own venv"
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="picture of the frontier")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    if "estimators" in args.only and args.draws <= estimators.SEEN:
        parser.error(f"--draws: {args.draws} are too few for controls; set it to {estimators.SEEN + 1} or more")
    return args


def point_of(text: str) -> Point:
    """K, f and meta images from "K,f,m"."""
    every, fraction, images = text.split(",")
    return int(every), float(fraction), int(images)


def overhead_section(args: argparse.Namespace, size: Size, found: dict[str, Any]) -> None:
    """Whole training steps, end to end."""
    point = point_of(args.point)
    with new_scene(size) as scene:
        blocks = timed_blocks(scene, shared_arms([point]), block=40, rounds=args.rounds, warm=11)
    report.print_table("training with a meta step", ("arm", "ms/step", "of plain", "of plain, CPU"), rows(blocks))
    found["overhead"] = blocks
    wall = ratios(blocks, "plain")
    found["figures"] |= {
        "overhead_k10_all": wall["K=10 f=1/4 all"] - 1,
        "overhead_k10_forward": wall["K=10 f=1/4 forward-only"] - 1,
        "shared_overhead": wall[point_name(*point)] - 1,
    }


def frontier_section(args: argparse.Namespace, size: Size, found: dict[str, Any]) -> None:
    """Cosine and overhead of every point."""
    grid = args.cadences, args.fractions, args.meta_images
    with new_scene(size, digits=True, keys=args.keys) as scene:
        cosines = quality(scene, *grid, half_life=args.half_life, count=args.count, redraws=args.redraws)
        costs = cost_of_parts(scene, args.fractions, args.meta_images)
    overhead = {point: 100 * costs[point[1], point[2]] / point[0] for point in itertools.product(*grid)}
    price = {point_name(*point): percent for point, percent in overhead.items()}
    found["frontier"] = [{"point": n, "overhead_percent": price.get(n), "cosine": row} for n, row in cosines.items()]
    rows = [(name, draws, row) for name, by_draws in cosines.items() for draws, row in by_draws.items()]
    header = ("point", "of a plain step", "with exact of", *rows[0][2])
    table = [
        (n, f"{price[n]:.1f} %" if n in price else "", draws, *map("{:.3f}".format, row.values()))
        for n, draws, row in rows
    ]
    report.print_table("frontier (overhead from measured meta steps)", header, table)
    chosen = point_name(*point_of(args.point))
    if chosen in cosines:
        found["figures"]["shared_cosine"] = cosines[chosen]["this draw"]["all"]
    if args.png is not None:
        picture([(p, overhead[p], cosines[point_name(*p)]["this draw"]["all"]) for p in overhead], str(args.png))


def evidence_section(args: argparse.Namespace, size: Size, found: dict[str, Any]) -> None:
    """What evidence costs at K = 10 and at its own K."""
    with new_scene(size) as scene:
        blocks = timed_blocks(scene, evidence_arms(), block=12, rounds=args.rounds, warm=3)
    cadences, more = (10, EVIDENCE_EVERY), {clock: ratios(blocks, "plain", clock) for clock in ("wall", "cpu")}
    shares = {name: [100 * (r[name] - 1) / k for k in cadences for r in more.values()] for name in blocks}
    table = [(name, *(f"{share:.1f} %" for share in each)) for name, each in shares.items()]
    heads = [f"over plain at K = {k}{clock}" for k in cadences for clock in ("", ", CPU")]
    report.print_table("evidence", ("arm", *heads), table)
    found["evidence"] = blocks


def engines_section(args: argparse.Namespace, size: Size, found: dict[str, Any]) -> None:
    """One step by every engine and library."""
    peer_python = dict(pair.split("=", 1) for pair in args.peer_python)
    setting = Setting(size.model, size.side, size.batch, size.classes)
    found["engines"], gates = measure(args.methods, list(PARTS), args.rounds, args.threads, peer_python, setting)
    report.print_table("one step with its hypergradient", HEADER, table(found["engines"]))
    found["gates"] |= gates


def main() -> int:
    """The exit code."""
    args = parse()
    torch.set_num_threads(args.threads)
    size = Size(args.model, args.side, args.batch, args.classes, args.images)
    found: dict[str, Any] = {"arguments": {k: str(v) for k, v in vars(args).items()}, "gates": {}, "figures": {}}
    parts = {
        "engines": engines_section,
        "overhead": overhead_section,
        "frontier": frontier_section,
        "samples": samples.section,
        "estimators": estimators.section,
        "evidence": evidence_section,
    }
    for name in args.only:
        parts[name](args, size, found)
    report.print_flat(found["gates"], found["figures"])
    if args.json is not None:
        report.write_json(args.json, found)
    return 0 if all(found["gates"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
