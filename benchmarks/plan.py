"""Calculates how long a recipe would train on several GPUs, and what limits it, from figures measured on one.

    fastaug profile-step RECIPE --json step.json                       # on one GPU of the kind, with its cores
    python -m benchmarks.plan RECIPE --profile step.json --gpus 8 --nodes 2 --images 1281167

A calculation, not a measurement: rates of one GPU are taken to hold on every one, decoding to grow with the cores
(with a fixed policy Python's lock is in the way of that, docs/gpu.md), a gradient's all-reduce to hide behind the
backward pass. Every line names where its figure comes from.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastaug.errors import RecipeError, told
from fastaug.recipe.reading import read_recipe
from fastaug.recipe.schema import Recipe

GRADIENT_BYTES = 4  # float32 weights have float32 gradients, under autocast too


@dataclass(frozen=True)
class Cluster:
    """The machines: `nodes` of `gpus` each; rates are those of a node."""

    nodes: int
    gpus: int
    cores: int  # of a node
    disk: float  # bytes/s that a node reads
    network: float  # bytes/s between nodes, each way

    @property
    def world(self) -> int:
        """Processes, one a GPU."""
        return self.nodes * self.gpus


@dataclass(frozen=True)
class Measured:
    """Figures of one GPU, from `fastaug profile-step --json`; rates in images/s, times in seconds a step."""

    compute: float
    loading: float
    loading_cores: int
    backward: float
    batch: float


def read_measured(file: Path, cores: int | None) -> Measured:
    """The figures of a profile; ValueError names what it lacks."""
    profile = json.loads(file.read_bytes())
    cores = cores or profile.get("cores")
    figures = profile.get("figures", {})
    wanted = ("compute_images_per_second", "loader_images_per_second", "backward_ms", "step_ms", "images_per_second")
    if missing := [name for name in wanted if name not in figures]:
        raise ValueError(f"has no {', '.join(missing)}; give the file that `fastaug profile-step --json` writes")
    if not cores:
        raise ValueError("does not say how many cores loaded; give --profile-cores")
    batch = figures["images_per_second"] * figures["step_ms"] / 1000
    compute, loading = figures["compute_images_per_second"], figures["loader_images_per_second"]
    return Measured(compute, loading, int(cores), figures["backward_ms"] / 1000, batch)


def all_reduce_seconds(size: float, cluster: Cluster) -> float:
    """Time of a ring all-reduce of `size` bytes over the nodes: each sends and gets 2 (n - 1) / n of them."""
    return 2 * (cluster.nodes - 1) / cluster.nodes * size / cluster.network


def plan(recipe: Recipe, one: Measured, cluster: Cluster, data: tuple[int, float], parameters: int) -> dict[str, float]:
    """Rates of all GPUs together (images/s), and the hours of the training; `data`: images, mean bytes of a file."""
    images, image_bytes = data
    world, batch = cluster.world, recipe.train.batch_size
    step = batch / world / one.compute  # seconds that the network takes
    reduced = all_reduce_seconds(GRADIENT_BYTES * parameters, cluster)
    waits = max(0.0, reduced - one.backward * batch / world / one.batch)
    if recipe.meta.learn:  # v and the tangents' sums, which nothing hides
        waits += reduced / recipe.meta.every
    limits = {
        "network_and_gpu": batch / (step + waits),
        "decoding": one.loading / one.loading_cores * cluster.cores * cluster.nodes,
        "disk": cluster.disk * cluster.nodes / image_bytes,
    }
    rate = min(limits.values())
    hours = recipe.train.epochs * images / rate / 3600
    return {
        **limits,
        "images_per_second": rate,
        "hours": hours,
        "all_reduce_ms": 1000 * reduced,
        "waits_ms": 1000 * waits,
        "cores_per_gpu_needed": limits["network_and_gpu"] / world * one.loading_cores / one.loading,
    }


def parameters_of(recipe: Recipe) -> int:
    """The number of the network's parameters; its weights are not made."""
    import timm
    import torch

    with torch.device("meta"):
        network = timm.create_model(recipe.model.name, **recipe.model.kwargs)
    return sum(parameter.numel() for parameter in network.parameters())


def lines(found: dict[str, float], cluster: Cluster, price: float | None, source: Path) -> list[str]:
    """The plan in words: each figure with where it comes from."""
    limits = {name: found[name] for name in ("network_and_gpu", "decoding", "disk")}
    slowest = min(limits, key=lambda name: limits[name])
    texts = {
        "network_and_gpu": f"compute_images_per_second of {source} x {cluster.world}, less waiting for all-reduces",
        "decoding": f"loader_images_per_second of {source} by its cores x {cluster.cores} x {cluster.nodes}",
        "disk": "--disk x --nodes / --image-bytes",
    }
    told_limits = [f"{name:16} {rate:12,.0f} images/s   {texts[name]}" for name, rate in limits.items()]
    spent = found["hours"] * cluster.world * (price or 0.0)
    cost = [] if price is None else [f"cost             {spent:12,.0f}   at {price} a GPU-hour"]
    waits = f"ms an update, of which {found['waits_ms']:.1f} ms are waited for (calculated)"
    return [
        "A calculation from figures of one GPU; not measured.",
        *told_limits,
        f"{slowest} limits: {found['images_per_second']:,.0f} images/s, {found['hours']:.1f} hours",
        *cost,
        f"all-reduce       {found['all_reduce_ms']:12.1f} {waits}",
        f"cores            {found['cores_per_gpu_needed']:12.1f} a GPU, for decoding to keep up with the network",
    ]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML file, or the name of one that `fastaug recipes` lists")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces one value of the recipe")
    parser.add_argument("--profile", type=Path, required=True, metavar="FILE", help="of `fastaug profile-step --json`")
    parser.add_argument("--profile-cores", type=int, metavar="N", help="cores of the machine that it ran on")
    parser.add_argument("--images", type=int, required=True, help="of the training split")
    parser.add_argument("--image-bytes", type=float, default=110e3, help="mean size of a file (110e3, ImageNet's)")
    parser.add_argument("--gpus", type=int, default=8, help="of a node (default 8)")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--cores", type=int, default=96, help="of a node (default 96)")
    parser.add_argument("--disk", type=float, default=2e9, help="bytes/s that a node reads (default 2e9)")
    parser.add_argument("--network", type=float, default=12.5e9, help="bytes/s between nodes (default 12.5e9)")
    parser.add_argument("--price", type=float, help="of a GPU-hour")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    arguments = parser.parse_intermixed_args(argv)
    counted = ("images", "image_bytes", "gpus", "nodes", "cores", "disk", "network")
    wrong = [name for name in counted if not getattr(arguments, name) > 0]
    if wrong:
        parser.error(f"--{wrong[0].replace('_', '-')} must be above 0, found {getattr(arguments, wrong[0])}")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    """Calculates, prints, writes what is asked for."""
    recipe = read_recipe(arguments.recipe, arguments.overrides)
    try:
        one = read_measured(arguments.profile, arguments.profile_cores)
    except (OSError, ValueError) as error:
        raise RecipeError([f"--profile: {arguments.profile}: {error}"]) from error
    cluster = Cluster(arguments.nodes, arguments.gpus, arguments.cores, arguments.disk, arguments.network)
    found = plan(recipe, one, cluster, (arguments.images, arguments.image_bytes), parameters_of(recipe))
    print("\n".join(lines(found, cluster, arguments.price, arguments.profile)))
    if arguments.json is not None:
        report: dict[str, Any] = {"calculation": True, "gates": {}, "figures": found}
        arguments.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(told(lambda: run(parse(None))))
