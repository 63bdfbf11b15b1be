"""Times training end to end on a CPU against timm's, and loaders in front of a stand-in for an accelerator.

End to end: fastaug's training step, and timm's training loop (written here from timm's functions, for
its wheel holds no train.py; --timm-train PATH adds the repository's), on the same files, network, threads, settings.
Each process also runs its loader alone and its step on one batch alone, in turn with training: no training on the same
cores can be faster than 1 / (1 / loader + 1 / compute). timm's normalising counts as loader, fastaug's as compute.

Stand-in: a consumer that holds each batch for t milliseconds without using the CPU, as a host does that waits for an
accelerator; t is swept, at 224x224 uint8, fastaug's loader against timm's. Idle is the share of time that the consumer
waits for a batch.
"""

import argparse
import shutil
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.peers import report
from benchmarks.peers.catalog import LOADERS, TRAINERS
from benchmarks.peers.client import Client, PeerError, environment, own_python, started
from benchmarks.peers.forms import data_folder, source, write_set
from benchmarks.peers.job import Job
from benchmarks.peers.repository_train import command, long_folder, rate

PEERS = ("ours", "timm")
MODES = ("load", "compute", "train")
REPOSITORY = "timm train.py"
LOADER_BOUND = 0.25  # share of time a consumer idles from which its loader is called the limit: 1.33 x could be gained
SLACK = 1.1  # a hold this much longer than the loader needs for a batch leaves the loader behind it
Rounds = list[dict[str, Any]]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["resnet18", "test_resnet"], metavar="NAME", help="timm's names")
    parser.add_argument("--side", type=int, default=160, help="pixels in training (default 160)")
    parser.add_argument("--batch", type=int, default=64, help="images (default 64)")
    parser.add_argument("--threads", type=int, default=2, help="of the loader and of torch (default 2)")
    parser.add_argument("--images", type=int, default=512, metavar="N", help="files (default 512)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a round (default 5)")
    holds = (0, 20, 40, 60, 80, 120, 160)
    parser.add_argument("--hold-ms", nargs="*", type=float, default=holds, metavar="T", help=f"default {holds}")
    parser.add_argument("--timm-train", type=Path, metavar="PATH", help="train.py of a copy of timm's repository")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="where the data are made and kept (default: not kept)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    if min(args.images, args.batch, args.threads, args.rounds, args.side) < 1 or args.images < args.batch:
        parser.error("all numbers must be at least 1, and --images at least --batch")
    if args.timm_train is not None and not args.timm_train.is_file():
        parser.error(f"--timm-train: no file {args.timm_train}")
    if args.hold_ms and 0 not in args.hold_ms:
        args.hold_ms = [0, *args.hold_ms]
    return args


def opened(kind: str, job: dict[str, Any], data: Path, env: dict[str, str], processes: ExitStack) -> dict[str, Client]:
    """Processes of ours and timm's that have delivered a batch."""
    found = {}
    for name in PEERS:
        peer = (LOADERS if kind == "loader" else TRAINERS)[name]
        client, _ = started(kind, name, Job(str(source(data, peer.form)), **job), own_python(), env)
        found[name] = processes.enter_context(client)
    return found


def train_rounds(args: argparse.Namespace, model: str, data: Path, cache: Path) -> Rounds:
    """Every round of one network: peer, mode and figures."""
    env = environment(args.threads, cache)
    job = {"batch": args.batch, "threads": args.threads, "side": args.side, "model": model}
    found: Rounds = []
    with ExitStack() as processes:
        clients = opened("trainer", job, data, env, processes)
        turns = [(name, mode) for name in PEERS for mode in MODES]
        for turn in range(args.rounds):
            for name, mode in turns[:: -1 if turn % 2 else 1]:
                figures = clients[name].round(args.seconds, mode)
                found.append({"model": model, "peer": name, "mode": mode, "round": turn, **figures})
            print(f"{model}: round {turn + 1} of {args.rounds} done", flush=True)
    return found


def repository_rounds(args: argparse.Namespace, model: str, data: Path, cache: Path) -> Rounds:
    """The same for the repository's train.py, after the others: it cannot be stopped between rounds."""
    job = Job("", args.batch, args.threads, args.side, model=model)
    folder = long_folder(data / "files", data / "files-long")
    words, found = command(args.timm_train, job, folder, cache / "output"), []
    for turn in range(args.rounds):
        speed = rate(words, job, args.seconds, environment(args.threads, cache))
        found.append({"model": model, "peer": REPOSITORY, "mode": "train", "round": turn, "images_per_second": speed})
        shutil.rmtree(cache / "output", ignore_errors=True)
    return found


def stand_in_rounds(args: argparse.Namespace, data: Path, cache: Path) -> Rounds:
    """Every round of the stand-in: loader, hold and figures."""
    found: Rounds = []
    with ExitStack() as processes:
        job = {"batch": args.batch, "threads": args.threads}
        clients = opened("loader", job, data, environment(1, cache), processes)
        turns = [(name, hold) for hold in args.hold_ms for name in clients]
        for turn in range(args.rounds):
            for name, hold in turns[:: -1 if turn % 2 else 1]:
                figures = clients[name].round(args.seconds, hold=hold / 1000)
                found.append({"peer": name, "hold_ms": hold, "round": turn, **figures})
            print(f"stand-in: round {turn + 1} of {args.rounds} done", flush=True)
    return found


def chosen(rounds: Rounds, **which: Any) -> Rounds:
    """The rounds with these values."""
    return [r for r in rounds if all(r[name] == value for name, value in which.items())]


def share_of_bound(rounds: Rounds, speed: str) -> float:
    """Median over the rounds of training speed as a share of 1 / (1 / loader + 1 / compute)."""
    by_mode = [[r[speed] for r in chosen(rounds, mode=mode)] for mode in MODES]
    return statistics.median(train * (1 / load + 1 / compute) for load, compute, train in zip(*by_mode, strict=True))


def train_figures(rounds: Rounds) -> dict[str, float]:
    """Medians of every network and peer; the share of the bound, and the smallest of all networks."""
    found: dict[str, float] = {}
    for model in dict.fromkeys(r["model"] for r in rounds):
        own = chosen(rounds, model=model)
        for peer in dict.fromkeys(r["peer"] for r in own):
            for mode in dict.fromkeys(r["mode"] for r in chosen(own, peer=peer)):
                speeds = chosen(own, peer=peer, mode=mode)
                found[report.key(model, peer, mode, "images_per_second")] = report.median(speeds, "images_per_second")
            if peer in PEERS:
                mine = chosen(own, peer=peer)
                found[report.key(model, peer, "share_of_bound")] = share_of_bound(mine, "images_per_second")
                found[report.key(model, peer, "share_of_bound_cpu")] = share_of_bound(mine, "images_per_core_second")
            if peer != "ours":
                ours = found[report.key(model, "ours", "train", "images_per_second")]
                theirs = found[report.key(model, peer, "train", "images_per_second")]
                found[report.key(model, "train_over", peer)] = ours / theirs
    shares = [value for name, value in found.items() if name.endswith("_ours_share_of_bound")]
    return found | ({"train_share_of_bound": min(shares)} if shares else {})


def stand_in_figures(rounds: Rounds) -> dict[str, float]:
    """Speeds, ratio and idle shares at every hold; the smallest ratio where timm's loader is the limit."""
    found: dict[str, float] = {}
    ratios, idle = [], []
    period = report.median(chosen(rounds, peer="ours", hold_ms=0), "wall") / report.median(
        chosen(rounds, peer="ours", hold_ms=0), "batches"
    )
    for hold in dict.fromkeys(r["hold_ms"] for r in rounds):
        ours, timm = (chosen(rounds, peer=peer, hold_ms=hold) for peer in PEERS)
        ratio = report.median(ours, "images_per_second") / report.median(timm, "images_per_second")
        idles = {"ours": report.median(ours, "idle_share"), "timm": report.median(timm, "idle_share")}
        found[report.key("hold", f"{hold:g}ms", "over_timm")] = ratio
        found |= {report.key("hold", f"{hold:g}ms", peer, "idle"): value for peer, value in idles.items()}
        if hold and idles["timm"] >= LOADER_BOUND:
            ratios.append(ratio)
        if hold / 1000 >= SLACK * period:
            idle.append(idles["ours"])
    found |= {"stall_over_timm": min(ratios)} if ratios else {}
    return found | ({"idle_where_not_loader_bound": max(idle)} if idle else {})


def print_training(rounds: Rounds, figures: dict[str, float]) -> None:
    """A row for every network and peer."""
    rows = []
    for model, peer in dict.fromkeys((r["model"], r["peer"]) for r in rounds):
        by_mode = [chosen(rounds, model=model, peer=peer, mode=mode) for mode in MODES]
        cells = [report.spread(found, "images_per_second") if found else "-" for found in by_mode]
        share = figures.get(report.key(model, peer, "share_of_bound"))
        rows.append((model, peer, *cells, "-" if share is None else f"{share:.1%}"))
    columns = ("network", "by", "loader alone", "compute alone", "training", "share of bound")
    report.print_table("images per second: median [range]", columns, rows)


def print_stand_in(rounds: Rounds, figures: dict[str, float]) -> None:
    """A row for every hold."""
    rows = []
    for hold in dict.fromkeys(r["hold_ms"] for r in rounds):
        pair = [chosen(rounds, peer=peer, hold_ms=hold) for peer in PEERS]
        speeds = [report.spread(found, "images_per_second") for found in pair]
        idles = [f"{report.median(found, 'idle_share'):.1%}" for found in pair]
        ratio = figures[report.key("hold", f"{hold:g}ms", "over_timm")]
        rows.append((f"{hold:g} ms", *speeds, *idles, f"{ratio:.2f}"))
    columns = ("batch held", "ours images/s", "timm images/s", "ours idle", "timm idle", "ours / timm")
    report.print_table("stand-in for an accelerator: median [range]", columns, rows)


def gates_of(figures: dict[str, float]) -> dict[str, bool]:
    """Which targets are met; those without a figure are left out."""
    least = {"train_share_of_bound": 0.95, "stall_over_timm": 1.3}
    gates = {f"{name} >= {value}": figures[name] >= value for name, value in least.items() if name in figures}
    idle = figures.get("idle_where_not_loader_bound")
    return gates | ({} if idle is None else {"idle_where_not_loader_bound <= 0.02": idle <= 0.02})


def main() -> int:
    args = parse()
    train: Rounds = []
    stand_in: Rounds = []
    absent: dict[str, str] = {}
    if args.timm_train is None:
        absent[REPOSITORY] = "not asked for; --timm-train PATH runs the repository's train.py"
    with data_folder(args.data) as folder:
        data, cache = folder / f"images-{args.images}", folder / "cache"
        about = write_set(data, args.images)
        try:
            for model in args.models:
                train += train_rounds(args, model, data, cache)
            if args.hold_ms:
                stand_in = stand_in_rounds(args, data, cache)
        except PeerError as error:
            print(f"a process ended: {error}", file=sys.stderr)
            return 1
        for model in args.models if args.timm_train is not None else ():
            try:
                train += repository_rounds(args, model, data, cache)
            except PeerError as error:
                absent[f"{model} {REPOSITORY}"] = str(error)
    figures = train_figures(train) | (stand_in_figures(stand_in) if stand_in else {})
    gates = gates_of(figures)
    print_training(train, figures)
    print_stand_in(stand_in, figures)
    print("".join(f"{name}: {reason}\n" for name, reason in absent.items()), end="")
    report.print_flat(gates, figures)
    if args.json:
        parts = {
            "settings": report.settings(args),
            "data": about,
            "train": train,
            "stand_in": stand_in,
            "absent": absent,
        }
        report.write_json(args.json, {**parts, "gates": gates, "figures": figures})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
