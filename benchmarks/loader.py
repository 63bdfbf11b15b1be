"""Times fastaug's loader against other loaders and against libjpeg-turbo decoding the same files.

Every loader gives uint8 batches of 224x224 antialiased random resized crops with labels, from 500x375 JPEGs or from
forms prepared from them. Each has a process of its own, started once; the processes take turns in rounds, in reversed
order every other round. A loader is timed only after one pass with fixed windows gave torchvision's pixels within 3 of
255, the right labels, and every image once. Compare images per core-second of the process tree: other work on the
machine changes them little. What cannot run, or gives other pixels, is a row with its reason.

The data are made here from scikit-learn's photographs. For FFCV in an environment of its own:
--peer-python ffcv=PATH. Best on a quiet machine, with --data on a file system in memory.
"""

import argparse
import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import report
from benchmarks.peers.catalog import ALWAYS, LOADERS
from benchmarks.peers.client import Client, PeerError, checked, environment, own_python, started
from benchmarks.peers.forms import (
    CACHE_FACTOR,
    HEIGHT,
    WIDTH,
    data_folder,
    last_level_cache,
    make_form,
    source,
    write_set,
)
from benchmarks.peers.gate import write_reference
from benchmarks.peers.job import Job

MEAN_BYTES = 55_000  # of a file; to find how many files are more than the cache holds
GATE_IMAGES = 96
COMPARED = {
    "raw_over_ffcv": ("ours raw", "ffcv raw"),
    "shard_jpeg_over_ffcv": ("ours shard jpeg", "ffcv shard jpeg"),
    "standalone_over_ours": ("ours standalone", "ours"),
}
TARGETS = {
    "jpeg_over_best_peer": 1.5,
    "jpeg_share_of_decode_limit": 0.8,
    "raw_over_ffcv": 1.5,
    "shard_jpeg_over_ffcv": 1.5,
    "standalone_over_ours": 0.97,
}
SPEED = "images_per_core_second"


@dataclass
class Bench:
    """Everything found out so far."""

    args: argparse.Namespace
    folder: Path
    gates: dict[str, bool] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # loader -> why it has no figures
    forms: dict[str, dict[str, float]] = field(default_factory=dict)
    loaders: dict[str, dict[str, Any]] = field(default_factory=dict)

    def python(self, name: str) -> str:
        """The interpreter of a loader: the one given for the first word of its name."""
        return str(self.args.peer_python.get(name.split()[0], own_python()))

    def env(self) -> dict[str, str]:
        return environment(1, self.folder / "cache")

    def job(self, name: str, data: Path, batch: int) -> Job:
        return Job(str(source(data, LOADERS[name].form)), batch, self.args.threads)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, metavar="N", help="files (default 512)")
    parser.add_argument("--larger-than-cache", action="store_true", help="files of twice the bytes of the L3 instead")
    parser.add_argument("--batch", type=int, default=64, help="images (default 64)")
    parser.add_argument("--threads", type=int, default=2, help="threads or worker processes of a loader (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a round (default 5)")
    parser.add_argument("--only", nargs="+", choices=LOADERS, default=list(LOADERS), metavar="NAME", help="loaders")
    parser.add_argument("--peer-python", nargs="+", default=[], metavar="NAME=PATH", help="another interpreter")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="where the data are made and kept (default: not kept)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    args = parser.parse_args()
    if min(args.images, args.batch, args.threads, args.rounds) < 1 or args.images < args.batch:
        parser.error("--images, --batch, --threads and --rounds must be at least 1, and --images at least --batch")
    if wrong := [text for text in args.peer_python if "=" not in text]:
        parser.error(f"--peer-python: {wrong[0]} must be NAME=PATH")
    args.peer_python = dict(text.split("=", 1) for text in args.peer_python)
    if args.larger_than_cache:
        args.images = max(args.images, math.ceil(CACHE_FACTOR * last_level_cache() / MEAN_BYTES))
    return args


def prepare(bench: Bench, name: str, sets: list[Path]) -> None:
    """Makes the form of the data that a loader wants, of every set; PeerError with the reason when it cannot."""
    form = LOADERS[name].form
    if form in ("files", "root"):
        return
    try:
        made = [make_form(folder, form, bench.python(name)) for folder in sets]
    except RuntimeError as error:
        raise PeerError(f"no {form}: {error}") from error
    bench.forms.setdefault(form, made[-1])


def gate(bench: Bench, name: str, data: Path, reference: Path) -> None:
    """Compares one pass of a loader with the reference; PeerError when it is not to be timed."""
    if LOADERS[name].group == "limit":
        return  # decodes without a result
    job = bench.job(name, data, GATE_IMAGES // 3).whole(WIDTH / HEIGHT)
    found = checked(name, job, reference, bench.python(name), bench.env())
    bench.gates |= {f"{name} {gate}": held for gate, held in found["gates"].items()}
    bench.loaders[name] = {"check": found}
    if not all(found["gates"].values()):
        raise PeerError(f"does other work, not timed: {found}")


def start(bench: Bench, name: str, sets: list[Path], reference: Path, processes: ExitStack) -> Client | None:
    """A loader that passed its gates and has delivered a batch; None, and the reason kept, otherwise."""
    try:
        prepare(bench, name, sets)
        gate(bench, name, sets[0], reference)
        job = bench.job(name, sets[1], bench.args.batch)
        client, hello = started("loader", name, job, bench.python(name), bench.env())
    except PeerError as error:
        bench.absent[name] = str(error)
        print(f"{name}: {error}", flush=True)
        return None
    about = {"form": LOADERS[name].form, "lacks": LOADERS[name].lacks, "rounds": []}
    bench.loaders[name] = {**bench.loaders.get(name, {}), **about, **hello}
    print(f"{name}: ready", flush=True)
    return processes.enter_context(client)


def measure(bench: Bench, clients: dict[str, Client]) -> None:
    """An untimed round each for the memory, then the timed rounds."""
    names = list(clients)
    for turn in range(bench.args.rounds + 1):
        for name in names[:: 1 if turn % 2 else -1]:
            if name in bench.absent:
                continue
            try:
                if turn == 0:
                    bench.loaders[name]["peak_pss_mib"] = clients[name].peak_mib(bench.args.seconds)
                else:
                    bench.loaders[name]["rounds"].append(clients[name].round(bench.args.seconds))
            except PeerError as error:
                bench.absent[name] = f"gave up in round {turn}: {error}"
        print(f"round {turn} of {bench.args.rounds} done", flush=True)


def figures(bench: Bench) -> dict[str, float]:
    """Medians of every loader that ran, and the ratios between them."""
    speed = {name: report.median(bench.loaders[name]["rounds"], SPEED) for name in ran(bench)}
    found: dict[str, float] = {}
    peers = [name for name in speed if LOADERS[name].group == "files" and name != "ours"]
    if "ours" in speed and peers:
        found["jpeg_over_best_peer"] = speed["ours"] / max(speed[name] for name in peers)
    if "ours" in speed and "libjpeg-turbo" in speed:
        found["jpeg_share_of_decode_limit"] = speed["ours"] / speed["libjpeg-turbo"]
    for figure, (ours, theirs) in COMPARED.items():
        if ours in speed and theirs in speed:
            found[figure] = speed[ours] / speed[theirs]
    if "ours" in speed and "torchvision" in speed:
        ours, theirs = (bench.loaders[name]["peak_pss_mib"] for name in ("ours", "torchvision"))
        found["peak_pss_over_torchvision"] = ours / theirs
    for name in speed:
        loader = bench.loaders[name]
        for part in (SPEED, "images_per_second", "busy_cores"):
            found[report.key(name, part)] = report.median(loader["rounds"], part)
        for part in ("peak_pss_mib", "first_batch_seconds"):
            found[report.key(name, part)] = loader[part]
        if "libjpeg-turbo" in speed and LOADERS[name].group == "files":  # the others read smaller images
            found[report.key(name, "share_of_decode_limit")] = speed[name] / speed["libjpeg-turbo"]
    return found


def ran(bench: Bench) -> list[str]:
    """The loaders with figures."""
    return [name for name in bench.args.only if name not in bench.absent]


def print_loaders(bench: Bench, found: dict[str, float]) -> None:
    """A row for every loader, those without figures too."""
    columns = ("loader", "images/core-s", "images/s", "cores", "PSS MiB", "first batch s", "of limit", "lacks")
    for group in dict.fromkeys(LOADERS[name].group for name in bench.args.only):
        rows = []
        for name in (n for n in bench.args.only if LOADERS[n].group == group):
            if name in bench.absent:
                rows.append((name, "-", "-", "-", "-", "-", "-", bench.absent[name]))
                continue
            parts = ("busy_cores", "peak_pss_mib", "first_batch_seconds", "share_of_decode_limit")
            cores, memory, first, share = (found.get(report.key(name, part), math.nan) for part in parts)
            speeds = (report.spread(bench.loaders[name]["rounds"], part) for part in (SPEED, "images_per_second"))
            numbers = (f"{cores:.2f}", f"{memory:.0f}", f"{first:.1f}", "-" if math.isnan(share) else f"{share:.0%}")
            rows.append((name, *speeds, *numbers, LOADERS[name].lacks))
        report.print_table(f"{group}: median [range] of {bench.args.rounds} rounds", columns, rows)


def finish(bench: Bench, about: dict[str, Any]) -> int:
    """Prints and writes the result; the exit code: 0 when ours and the peers that always run have figures."""
    found = figures(bench)
    wanted = [name for name in (*ALWAYS, "ours") if name in bench.args.only]
    bench.gates |= {f"{name} ran": name not in bench.absent for name in wanted}
    complete = all(bench.gates[f"{name} ran"] for name in wanted)
    bench.gates |= {f"{name} >= {least}": found[name] >= least for name, least in TARGETS.items() if name in found}
    if "peak_pss_over_torchvision" in found:
        bench.gates["peak_pss_over_torchvision <= 1"] = found["peak_pss_over_torchvision"] <= 1
    print_loaders(bench, found)
    report.print_flat(bench.gates, found)
    missing = [name for name in TARGETS if name not in found]
    print("".join(f"  {name}: not measured, a loader is missing above\n" for name in missing), end="")
    if bench.args.json:
        settings = report.settings(bench.args) | {"peer_python": sorted(bench.args.peer_python)}
        parts = {"settings": settings, "data": about, "forms": bench.forms, "loaders": bench.loaders}
        report.write_json(bench.args.json, {**parts, "absent": bench.absent, "gates": bench.gates, "figures": found})
    return 0 if complete else 1


def main() -> int:
    args = parse()
    with data_folder(args.data) as folder, ExitStack() as processes:
        bench = Bench(args, folder)
        sets = [folder / "gate", folder / f"images-{args.images}"]
        about = [write_set(data, count) for data, count in zip(sets, (GATE_IMAGES, args.images), strict=True)][1]
        reference = folder / "reference.npz"
        write_reference(sets[0] / "files" / "train", Job.side, reference)
        print(f"{args.images} files of {about['mean_bytes'] / 1000:.1f} KB on average", flush=True)
        started_ones = {name: start(bench, name, sets, reference, processes) for name in args.only}
        measure(bench, {name: client for name, client in started_ones.items() if client is not None})
        return finish(bench, about)


if __name__ == "__main__":
    raise SystemExit(main())
