"""What predicts what an operation does for a network? Trainings with each operation alone, and signals of one training.

    python docs/studies/policy_signals.py responses data/letters --out responses.jsonl
    python docs/studies/policy_signals.py shares data/letters --out shares.jsonl --only rotate scale stroke flip_x
    python docs/studies/policy_signals.py signals data/letters --out signals-0.npz
    python docs/studies/policy_signals.py compare responses.jsonl signals-0.npz

`responses` trains a small network once for each operation of a set, applied to half of the images, and once without:
its test error is the truth that a learner of policies should find; with `--reaches` at shares of each one's reach.
`shares` trains it under a policy of all the operations, drawn equally often, and again with each of them half and twice
as often.
`signals` trains it once under the uniform policy of all operations and notes of every sample in every third update what
one step shows: its term of the hypergradient, <u, grad l_i>, for several directions u of the validation loss, in all
weights or the last layer; and its loss.
`compare` prints the errors that `responses` or `shares` found, and the rank correlation of each signal's mean by
operation with the response at full reach, over the training and its thirds. A plain loop of its own, for it has to look
at more than a training does; operations and data are the project's.
One core: a minute for a training of 20 epochs on letters.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call, jvp

from fastaug.augment.differentiable_ops import Transform
from fastaug.augment.operation_sets import read_operations
from fastaug.augment.shared_policy import Draws, SharedPolicy

Set = tuple[Tensor, Tensor]  # images [N,1,S,S] in [0, 1], labels [N]
Hook = Callable[[nn.Module, torch.optim.Optimizer, int, float, Tensor, Tensor, Draws, Tensor], None]
PEAK, DECAY, BATCH = 3e-3, 0.05, 64  # of the learning rate, of the weights, images
Asked = tuple[dict[str, Any], SharedPolicy | None]  # what a training is, the policy of its images
MEAN, STD = 0.179, 0.356
WINDOWS = {"whole": (0.0, 1.0), "first third": (0.0, 1 / 3), "second": (1 / 3, 2 / 3), "last": (2 / 3, 1.0)}


def read_split(folder: Path) -> Set:
    """All images of a split of class folders."""
    images, labels = [], []
    for label, name in enumerate(sorted(path.name for path in folder.iterdir())):
        for file in sorted((folder / name).glob("*.png")):
            images.append(np.asarray(Image.open(file).convert("L")))
            labels.append(label)
    return torch.from_numpy(np.stack(images)).float()[:, None] / 255, torch.tensor(labels)


def as_input(images: Tensor) -> Tensor:
    """Normalised images of three channels."""
    return ((images.expand(-1, 3, -1, -1) - MEAN) / STD).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def figures(network: nn.Module, split: Set) -> dict[str, float]:
    """Error and mean loss."""
    network.eval()
    logits = torch.cat([network(as_input(images)) for images in split[0].split(512)])
    network.train()
    wrong = (logits.argmax(1) != split[1]).float().mean().item()
    return {"error": wrong, "nll": F.cross_entropy(logits, split[1]).item()}


def policy_of(names: list[str] | None, operations: str, reach: float = 1) -> SharedPolicy:
    """All operations equally often, nothing as often as each; or the ones named, to half of the images."""
    found, magnitude = read_operations(operations), 0.98 * reach
    if names is None:
        return SharedPolicy(found, 1, magnitude=magnitude, identity=1 / (len(found) + 1))
    return SharedPolicy([t for t in found if t.name in names] or found[:1], 1, magnitude=magnitude, identity=0.5)


def uneven(transforms: list[Transform], name: str = "", times: float = 1) -> SharedPolicy:
    """Nothing and each operation equally often, but the one named `times` as often."""
    policy = SharedPolicy(transforms, 1, magnitude=0.98, identity=1 / (len(transforms) + 1))
    names = [t.name for t in transforms]
    if name in names:
        policy.logits.data[0, 1 + names.index(name)] += math.log(times)
    return policy


def drawn(policy: SharedPolicy, count: int, draw: np.random.Generator) -> Draws:
    """Draws of a policy from a generator, not by id."""
    chances = policy.probabilities().detach().double().numpy()[0]
    op = draw.choice(len(chances), size=(count, 1), p=chances / chances.sum())
    noise = draw.uniform(-1, 1, (count, 1, policy.numbers))
    return Draws(torch.from_numpy(op), torch.from_numpy(noise).float())


def train(splits: dict[str, Set], policy: SharedPolicy | None, epochs: int, seed: int, hook: Hook | None) -> nn.Module:
    """A network trained with AdamW, a warm-up epoch and a cosine; `hook` sees every update before it is made."""
    images, labels = splits["train"]
    torch.manual_seed(seed)
    network = timm.create_model("test_resnet", num_classes=int(labels.max()) + 1).to(memory_format=torch.channels_last)
    groups = [[p for p in network.parameters() if (p.ndim > 1) == decays] for decays in (True, False)]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": DECAY}, {"params": groups[1], "weight_decay": 0.0}], lr=PEAK
    )
    order, draw = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    updates = math.ceil(len(images) / BATCH)
    step = 0
    for _ in range(epochs):
        for rows in np.array_split(order.permutation(len(images)), updates):
            done = (step - updates) / (updates * (epochs - 1)) if epochs > 1 else 1.0
            rate = PEAK * (step / updates if step < updates else 0.5 * (1 + math.cos(math.pi * done)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            shown, draws = images[rows].expand(-1, 3, -1, -1).contiguous(), None
            if policy is not None:
                draws = drawn(policy, len(rows), draw)
                with torch.no_grad():
                    shown = policy.apply(shown, draws)
            inputs = as_input(shown)
            logits = network(inputs)
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            if hook is not None and draws is not None:
                hook(network, optimizer, step, step / (updates * epochs), inputs, labels[rows], draws, logits.detach())
            optimizer.step()
            step += 1
    return network


# ---- the truth ----


def responses(splits: dict[str, Set], arguments: argparse.Namespace) -> None:
    """Trainings with nothing and with each operation alone at shares of its reach."""
    transforms = chosen(arguments)
    asked: list[Asked] = [({"operation": "none", "reach": 1}, None)]
    for reach in arguments.reaches:
        for t in transforms:
            if reach == 1 or not t.fixed:
                policy = policy_of([t.name], arguments.operations, reach)
                asked.append(({"operation": t.name, "reach": reach}, policy))
    train_each(splits, asked, arguments)


def shares(splits: dict[str, Set], arguments: argparse.Namespace) -> None:
    """Trainings with all operations equally often, and with each of them in turn `times` as often."""
    transforms = chosen(arguments)
    asked: list[Asked] = [({"operation": "none", "times": 1}, uneven(transforms))]
    for times in arguments.times:
        asked += [({"operation": t.name, "times": times}, uneven(transforms, t.name, times)) for t in transforms]
    train_each(splits, asked, arguments)


def chosen(arguments: argparse.Namespace) -> list[Transform]:
    """The operations asked for."""
    return [t for t in read_operations(arguments.operations) if arguments.only is None or t.name in arguments.only]


def train_each(splits: dict[str, Set], asked: list[Asked], arguments: argparse.Namespace) -> None:
    """Adds a line for each training that the file lacks: what it was, its seed, figures on meta and test split."""
    lines = read_responses(arguments.out) if arguments.out.exists() else []
    for seed in arguments.seeds:
        for what, policy in asked[arguments.part :: arguments.parts]:
            line = what | {"seed": seed, "epochs": arguments.epochs}
            if any(line.items() <= old.items() for old in lines):
                continue
            network = train(splits, policy, arguments.epochs, seed, None)
            found = {split: figures(network, splits[split]) for split in ("meta", "test")}
            with arguments.out.open("a") as file:
                file.write(json.dumps(line | found) + "\n")
            print(
                *(f"{key} {value}" for key, value in line.items()),
                f"test error {found['test']['error']:.4f}",
                flush=True,
            )


def read_responses(file: Path) -> list[dict[str, Any]]:
    """The lines that `responses` or `shares` wrote, each with its `amount`: of the reach, or times as often."""
    lines = [{"reach": 1} | json.loads(line) for line in file.read_text().splitlines()]
    return [line | {"amount": line.get("times", line["reach"])} for line in lines]


# ---- what one step shows ----


class Notes:
    """The signals of every sample in every third update."""

    def __init__(self, meta: Set, seed: int, every: int = 3) -> None:
        self.meta, self.every, self.draw = meta, every, np.random.default_rng(seed + 77)
        self.average: dict[str, Tensor] | None = None  # of v, over about ten of them
        self.kept: dict[str, list[npt.NDArray[Any]]] = {}

    def __call__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: int,
        done: float,
        inputs: Tensor,
        labels: Tensor,
        draws: Draws,
        logits: Tensor,
    ) -> None:
        """Notes an update."""
        if step % self.every or step < self.every:
            return
        weights = {name: p.detach() for name, p in network.named_parameters()}
        v = self.validation_gradient(network, weights)
        self.average = v if self.average is None else {n: 0.9 * a + 0.1 * v[n] for n, a in self.average.items()}
        steep = logits.softmax(1) - F.one_hot(labels, logits.shape[1])
        roots = {n: self.root(optimizer, p) for n, p in network.named_parameters()}
        directions = {
            "one step, v": v,
            "one step, v averaged": self.average,
            "one step through Adam, v": {n: g / roots[n] for n, g in v.items()},
            "one step through Adam, v averaged": {n: g / roots[n] for n, g in self.average.items()},
            "last layer, v": {n: g if n.startswith("fc.") else torch.zeros_like(g) for n, g in v.items()},
            "last layer, v averaged": {n: g if n.startswith("fc.") else g * 0 for n, g in self.average.items()},
        }
        for name, direction in directions.items():
            terms = (steep * self.tangent(network, weights, direction, inputs)).sum(1)
            self.note(name, terms / (steep.norm(dim=1) + 0.05))
        self.note("training loss", F.cross_entropy(logits, labels, reduction="none"))
        self.note("op", draws.op[:, 0])
        self.note("done", torch.full((len(labels),), done, dtype=torch.float64))

    def note(self, name: str, values: Tensor) -> None:
        """Keeps values [n] of a signal."""
        self.kept.setdefault(name, []).append(values.detach().numpy())

    def validation_gradient(self, network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """v on 256 meta images (all, if they are fewer), in training mode."""
        rows = self.draw.choice(len(self.meta[0]), min(256, len(self.meta[0])), replace=False)
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        logits = functional_call(network, {**leaves, **buffers(network)}, (as_input(self.meta[0][rows]),))
        loss = F.cross_entropy(logits, self.meta[1][rows])
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    @staticmethod
    def root(optimizer: torch.optim.Optimizer, weight: Tensor) -> Tensor:
        """What Adam divides a weight's gradient by."""
        state = optimizer.state[weight]
        return (state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))).sqrt() + 1e-8

    @staticmethod
    def tangent(network: nn.Module, weights: dict[str, Tensor], direction: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """The derivative of the logits [n, C] along the direction, taken to length 1."""
        length = math.sqrt(sum(float(d.square().sum()) for d in direction.values())) or 1.0
        unit = {name: d / length for name, d in direction.items()}

        def logits_at(moved: dict[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(network, {**moved, **buffers(network)}, (inputs,))
            return found

        with torch.no_grad():
            tangent: Tensor = jvp(logits_at, (weights,), (unit,))[1]
        return tangent


def buffers(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers, for passes that are not to move them."""
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def signals(splits: dict[str, Set], arguments: argparse.Namespace) -> None:
    """One training under the uniform policy, its samples' signals in a file."""
    notes, policy = Notes(splits["meta"], arguments.seeds[0]), policy_of(None, arguments.operations)
    network = train(splits, policy, arguments.epochs, arguments.seeds[0], notes)
    print(f"test error {figures(network, splits['test'])['error']:.4f} under the uniform policy")
    names = ["none", *(t.name for t in policy.transforms)]
    np.savez(arguments.out, names=names, **{name: np.concatenate(rows) for name, rows in notes.kept.items()})


# ---- side by side ----


def compare(arguments: argparse.Namespace) -> None:
    """Rank correlations of each signal with the responses at full reach, by operation."""
    lines = read_responses(arguments.files[0])
    errors = {name: found for name in _names(lines) if (found := errors_of(lines, name, 1))}
    for name in _names(lines):
        amounts = sorted({line["amount"] for line in lines if line["operation"] == name})
        print(f"{name:14}", "   ".join(f"x {amount:g}: {_told(errors_of(lines, name, amount))}" for amount in amounts))
    for file in arguments.files[1:]:
        kept = np.load(file)
        names = [str(name) for name in kept["names"]]
        shared = [name for name in names if name in errors]
        truth = [-float(np.mean(errors[name])) for name in shared]
        print(f"{file}: rank correlation with the responses of {len(shared)} operations, {', '.join(WINDOWS)}")
        for signal in kept.files:
            if signal in ("names", "op", "done"):
                continue
            row = []
            for low, high in WINDOWS.values():
                inside = (kept["done"] >= low) & (kept["done"] < high)
                means = [kept[signal][inside & (kept["op"] == names.index(name))].mean() for name in shared]
                row.append(f"{spearmanr(means, truth).statistic:+.2f}")
            print(f"  {signal:36} {'  '.join(row)}   (harm by z: {_harmful(kept, names, signal)})")


def errors_of(lines: list[dict[str, Any]], name: str, amount: float) -> list[float]:
    """The test error of every training with so much of an operation."""
    return [line["test"]["error"] for line in lines if (line["operation"], line["amount"]) == (name, amount)]


def _told(errors: list[float]) -> str:
    spread = f" ({100 * np.std(errors, ddof=1):.1f})" if len(errors) > 1 else ""
    return f"{100 * np.mean(errors):.1f}{spread} % of {len(errors)} runs"


def _names(lines: list[dict[str, Any]]) -> list[str]:
    """The operations, the best first."""
    errors: dict[str, list[float]] = {}
    for line in lines:
        errors.setdefault(line["operation"], []).append(line["test"]["error"])
    return sorted(errors, key=lambda name: np.mean(errors[name]))


def _harmful(kept: Any, names: list[str], signal: str) -> str:
    """The three operations whose mean is furthest below that of all, in standard errors."""
    values, op = kept[signal], kept["op"]
    found = {}
    for k, name in enumerate(names):
        mine = values[op == k]
        found[name] = (mine.mean() - values.mean()) / (values.std() / math.sqrt(len(mine)))
    return ", ".join(f"{name} {found[name]:.1f}" for name in sorted(found, key=found.__getitem__)[:3])


def main() -> int:
    """The exit code: 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("responses", "shares", "signals"):
        command = commands.add_parser(name)
        command.add_argument("root", type=Path, help="folder with train, meta and test of class folders")
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--operations", default="broad", help="packaged set or file (default broad)")
        command.add_argument("--epochs", type=int, default=20)
        command.add_argument("--seeds", type=int, nargs="+", default=[0])
        if name == "signals":
            continue
        command.add_argument("--only", nargs="+", metavar="NAME", help="these operations (default all)")
        command.add_argument("--part", type=int, default=0, help="which share of the trainings, from 0")
        command.add_argument("--parts", type=int, default=1, help="of so many shares")
        if name == "responses":
            command.add_argument("--reaches", type=float, nargs="+", default=[1.0], help="shares of it (default 1)")
        else:
            command.add_argument("--times", type=float, nargs="+", default=[0.5, 2.0], help="default .5 2")
    commands.add_parser("compare").add_argument("files", type=Path, nargs="+", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.command == "compare":
        compare(arguments)
        return 0
    torch.set_num_threads(1)
    splits = {split: read_split(arguments.root / split) for split in ("train", "meta", "test")}
    {"responses": responses, "shares": shares, "signals": signals}[arguments.command](splits, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
