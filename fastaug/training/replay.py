"""Updates of a run made again without training: the very pixels, targets and weights that the network got.

Every draw is a function of (seed, epoch, stream, id), so that recipe, data and the number of processes are all that it
takes. What a run learns, or knows of its images, is taken from the nearest checkpoint at or before the update; the loss
of an image needs the network's weights and comes from the same one. `Known` says which of it is exact.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastaug.batch import Batch
from fastaug.console import Console
from fastaug.data.build import build_loader
from fastaug.data.crop_windows import Windows
from fastaug.data.sampler import Request, piece_bounds
from fastaug.distributed import build_accelerator
from fastaug.errors import DataError, RecipeError, StorageError
from fastaug.losses import sample_losses
from fastaug.meta.frozen import FrozenParts
from fastaug.meta.step import MetaStep
from fastaug.ops.crop_mix import CropMixParams
from fastaug.recipe.reading import as_override, read_stored, read_untrained
from fastaug.recipe.schema import RESUMABLE, Recipe
from fastaug.reports.batch_grid import is_mixed
from fastaug.seeding import Key, Stream, parts_of
from fastaug.targets import SoftTarget, confidence, dense, rest
from fastaug.training import checkpoint
from fastaug.training.build import Trainer, assemble
from fastaug.training.build_data import build_crop, build_loading, fixed_policy
from fastaug.training.class_balance import build_adjustment
from fastaug.training.run_folder import RunFolder
from fastaug.training.starts import read_starts, start_of
from fastaug.training.trainer_state import check_classes, load_into

# What a replay needs none of: weights come from a checkpoint, a teacher has no part in inputs and targets.
UNNEEDED = (
    *("run.trackers=[]", "model.initial_checkpoint=null", "model.compile=false"),
    *("distill.teacher=null", "distill.checkpoint=null", "distill.pretrained=false"),
)
NAMED = 5  # classes of a learned label row, or of an image of several, that are named


class Place(NamedTuple):
    """The micro-batch `micro` of update `step`, both from 0, on the process `rank`."""

    step: int
    rank: int
    micro: int


class Known(NamedTuple):
    """What a replay of update `step` (from 0) rests on: `checkpoint`, in updates done, None where none is that old.

    `inputs`, `losses`: "exact", or why not; losses are None where there are no weights to take them with.
    """

    step: int
    checkpoint: int | None
    inputs: str
    losses: str
    has_losses: bool


@dataclass(frozen=True)
class Piece:
    """A micro-batch of N samples as a process trained on it.

    `batch`: as the loader gave it, damaged images left out; `params` [N] of the fused op; `inputs` [M, C, S, S] and
    `target` [M]: what the network got, M > N where blank images stand in. `windows` [N]: of the crop; None for random
    pixels. `policy` [N]: values of the fixed policy, None where none acts. `mixed` [N] bool: whether a sample takes
    something of its partner. `losses` [N], None where they are not known;
    `total`: the micro-batch's part of the update's loss as the log has it.
    """

    place: Place
    epoch: int
    batch: Batch
    params: CropMixParams
    inputs: Tensor
    target: SoftTarget
    windows: Windows | None
    policy: Sequence[Any] | None
    mixed: Tensor
    losses: Tensor | None
    total: float | None


def replayed_recipe(run: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run folder as a replay builds it; RecipeError for overrides of what was trained."""
    path = run / "recipe.yaml"
    if not path.is_file():
        raise StorageError(f"{run}: is no run folder, it has no recipe.yaml; name the run.dir of a training")
    if other := [text for text in overrides if text.partition("=")[0] not in RESUMABLE]:
        remedy = f"a replay may change {', '.join(sorted(key for key in RESUMABLE if key.startswith('data.')))}"
        raise RecipeError([f"{text}: is part of what was trained; {remedy}" for text in other])
    stored, _ = read_stored(path)
    words = [*overrides, *UNNEEDED]
    if stored.data.loader == "resident":
        words.append("data.loader=dali")  # the same pixels, of a batch alone
    if stored.meta.reuse is not None:
        words.append(as_override("meta.reuse", str(run)))
    if stored.train.precision == "fp16" and not torch.cuda.is_available():
        words.append("train.precision=no")
    return read_untrained(path, words)


def processes_of(run: Path) -> tuple[int, str | None]:
    """Processes of a run that noted no starts, and what to say where that is not sure."""
    if (run / "result.json").is_file():
        try:
            return int(json.loads((run / "result.json").read_bytes())["processes"]), None
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{run / 'result.json'}: cannot be read: {error}; give --processes") from error
    logs = len(list(run.glob("ids-*.jsonl")))
    text = "the run does not say of how many processes it was (an earlier version); give --processes if of others"
    return max(logs, 1), None if logs else f"taken to be of one process: {text}"


class Replay:
    """A run put back to any of its updates, one after the other in rising order.

    `notes`: what a reader has to know. Errors are those of a start of the run: RecipeError, DataError where the data
    are not those that were trained on, StorageError.
    """

    def __init__(self, run: Path, overrides: Sequence[str] = (), processes: int | None = None) -> None:
        """`processes`: of the training, where the run does not know it."""
        self.run, self._processes, self.notes = run, processes, list[str]()
        self.recipe = replayed_recipe(run, overrides)
        self._stored, _ = read_stored(run / "recipe.yaml")
        self._starts = read_starts(run)
        self.trainer: Trainer = assemble(self.recipe, build_accelerator(self.recipe), RunFolder(run), Console(False))
        self._order = self.trainer.order
        self._loaded: int | None = None
        if self._stored.distill.teacher is not None:
            self._note("losses are those against the target, without the teacher's (distill.teacher)")
        self._check_data()

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _check_data(self) -> None:
        """DataError where images, labels or classes are not those of the run's checkpoints."""
        path, _ = checkpoint.latest(self.run / "checkpoints")
        if path is None:
            self._note("no checkpoint is kept: whether the data are those of the run is not known")
            return
        state, parts = checkpoint.load(path, whole=False).state, self.trainer.parts
        check_classes(self.trainer, state, str(path))
        if not parts.trains_as(state["data"], learns=self.trainer.meta.learned is not None):
            raise DataError(
                f"data.root: the images of {self.recipe.data.root or self.recipe.data.table}, their labels or their "
                f"numbers are not those that {path} was trained on; put them back, or name a copy: data.root=PATH"
            )

    # ---- where an image was ----

    @property
    def steps_per_epoch(self) -> int:
        """Updates of an epoch."""
        return self._order.steps_per_epoch

    def check_epoch(self, epoch: int) -> None:
        """RecipeError for an epoch, from 0, that the run has not."""
        if not 0 <= epoch < self.recipe.train.epochs:
            raise RecipeError([f"--epoch: {epoch} is none of the run's, 0 to {self.recipe.train.epochs - 1}"])

    def check_step(self, step: int) -> None:
        """RecipeError for an update, from 0, that the run has not."""
        last = self.recipe.train.epochs * self.steps_per_epoch
        if not 0 <= step < last:
            raise RecipeError([f"--step: {step + 1} is none of the run's updates, 1 to {last}"])

    def check_image(self, sample: int) -> None:
        """DataError for an id that is not in the training split, or that cannot be decoded."""
        parts = self.trainer.parts
        if sample in parts.splits.train:
            if parts.index is not None and parts.index.status[sample]:
                reason = parts.index.reasons.get(sample, "damaged")
                raise DataError(f"--id: {sample} ({parts.name_of(sample)}) was left out as damaged: {reason}")
            return
        split = [role for role in ("meta", "select", "test") if sample in parts.splits.of(role)]
        images = len(parts.splits.train) if parts.index is None else len(parts.index)
        found = f"is in the split {split[0]}" if split else f"is in no split of the {images} images (ids from 0)"
        trained = f"the training split has {len(parts.splits.train)} images, {parts.splits.train[0]} for one"
        raise DataError(f"--id: {sample} {found}; {trained}")

    def places(self, sample: int, epoch: int) -> list[Place]:
        """Where image `sample` was trained on in `epoch`: once, or not (train.drop_last), or several times."""
        first, found = epoch * self.steps_per_epoch, list[Place]()
        for step in range(first, first + self.steps_per_epoch):
            ids = self._order.update(step).ids
            rows = np.flatnonzero(ids == sample)
            bounds, world = self._bounds(step, len(ids))
            pieces = np.searchsorted(bounds, rows, side="right") - 1
            found += [Place(step, int(piece) % world, int(piece) // world) for piece in np.unique(pieces)]
        return found

    def _bounds(self, step: int, size: int) -> tuple[np.ndarray[Any, Any], int]:
        world = self.processes(step)
        return piece_bounds(size, world * self._order.accumulate, self._order.group), world

    def processes(self, step: int) -> int:
        """Processes that trained update `step` (from 0)."""
        if self._processes is not None:
            return self._processes
        if (start := start_of(self._starts, step)) is not None:
            return int(start["processes"])
        found, caution = processes_of(self.run)
        if caution:
            self._note(caution)
        return found

    def update(self, step: int) -> list[Place]:
        """The micro-batches of update `step` (from 0), in the order of the global batch."""
        world = self.processes(step)
        return [Place(step, rank, micro) for micro in range(self._order.accumulate) for rank in range(world)]

    # ---- to where the run was ----

    def go_to(self, step: int) -> Known:
        """Takes what was learned, and the weights, from the nearest checkpoint at or before update `step` (from 0)."""
        if self._loaded is not None and step < self._loaded:
            raise ValueError(f"update {step} lies before checkpoint {self._loaded}, which is loaded; make a new Replay")
        for path in checkpoint.newest_first(self.run / "checkpoints"):
            at = int(path.name.removeprefix("step-"))
            if at == self._loaded:
                break
            if at <= step and self._load(path):
                self._loaded = at
                break
        return self._known(step)

    def _load(self, path: Path) -> bool:
        if problem := checkpoint.verify(path):
            self._note(f"{path} is passed over: {problem}")
            return False
        load_into(self.trainer, str(path))
        return True

    def _known(self, step: int) -> Known:
        at, meta, stored = self._loaded, self.trainer.meta, self._stored
        since = "the start of the run" if at is None else f"update {at}"
        here = (0 if at is None else at) == step
        inputs = "exact"
        if meta.learned is not None and not isinstance(meta, FrozenParts):
            moves = not isinstance(meta, MetaStep) or step > meta.first_step
            if any(part.instant for part in meta.learned.each().values()):
                inputs = "weights and labels as they were before the pass set them (instant parts)"
            elif moves and not here:
                inputs = f"what is learned is as of {since}, no checkpoint is nearer"
        if stored.augment.trust and not here and inputs == "exact":
            inputs = f"weights by augment.trust are as of {since}, no checkpoint is nearer"
        known_start = not (stored.model.pretrained or stored.model.initial_checkpoint)
        if at is None and (step > 0 or not known_start):
            return Known(
                step,
                at,
                inputs,
                "not known: no checkpoint is kept that is as old (run.checkpoint_every and run.keep keep more)",
                False,
            )
        return Known(step, at, inputs, "exact" if here else f"by the weights of {since}", True)

    # ---- what the network got ----

    def pieces(self, step: int) -> Iterator[Piece]:
        """Every micro-batch of update `step` (from 0), after `go_to` it."""
        known = self.go_to(step)
        return (self.piece(place, losses=known.has_losses) for place in self.update(step))

    def piece(self, place: Place, *, losses: bool = True) -> Piece:
        """A micro-batch as its process trained on it; what is learned, and the weights, are those of `go_to`."""
        trainer, world = self.trainer, self.processes(place.step)
        trainer.order = order = replace(self._order, world=world, rank=place.rank)
        epoch = place.step // order.steps_per_epoch
        request = list(order.requests(place.step, place.step + 1))[place.micro]
        batch = next(trainer.loader.batches([request]))
        self._check_log(place, batch.ids)
        self._check_files(batch.ids)
        if trainer.record is not None:
            trainer.record.begin(epoch)
        trainer.meta.begin(place.step)
        inputs, target = trainer.augment.training(batch, epoch)
        each, total = self._losses(place, inputs, target) if losses else (None, None)
        params = trainer.augment.sample(batch, epoch)
        real = SoftTarget(*(None if part is None else part[: len(params)] for part in target))  # type: ignore[arg-type]
        return Piece(
            place=place,
            epoch=epoch,
            batch=batch,
            params=params,
            inputs=inputs,
            target=target,
            windows=self._windows(batch, epoch),
            policy=self._policy(batch, epoch),
            mixed=is_mixed(params, real._replace(mass=real.mass.cpu(), classes=real.classes.cpu())),
            losses=None if each is None else each[: len(batch.ids)],
            total=total,
        )

    def _losses(self, place: Place, inputs: Tensor, target: SoftTarget) -> tuple[Tensor, float]:
        """The loss of each sample [M], and their part of the update's, in the pass that training takes."""
        trainer = self.trainer
        trainer.freezing.begin(place.step)
        torch.manual_seed(trainer.pass_seed(place.step, place.micro))
        with torch.no_grad():
            logits = trainer.model(inputs)
            total = trainer.objective(logits, target) / trainer.order.size(place.step)
            return self._each(logits, target), float(total)

    @cached_property
    def _each(self) -> Any:
        trainer = self.trainer
        return sample_losses(
            self.recipe.augment, build_adjustment(self.recipe, trainer.parts, trainer.accelerator.device)
        )

    def _request(self, batch: Batch, epoch: int) -> Request:
        return Request(epoch, batch.ids.numpy(), parts_of(batch.draws.numpy())[1])

    def _windows(self, batch: Batch, epoch: int) -> Windows | None:
        index = self.trainer.parts.index
        if index is None:
            return None
        crop = build_crop(self.recipe, self.recipe.data.crop, self.recipe.side(epoch))
        ids = batch.ids.numpy()
        return crop.windows(self._request(batch, epoch), index.heights[ids], index.widths[ids])

    def _policy(self, batch: Batch, epoch: int) -> Sequence[Any] | None:
        side = self.recipe.side(epoch)
        policy = fixed_policy(replace(self.recipe, data=replace(self.recipe.data, img_size=side)))
        if policy is None or epoch < self.recipe.augment.start_epochs:
            return None
        values = policy.sample(Key(self.recipe.run.seed, epoch, Stream.POLICY), batch.draws)
        spared = self.trainer.augment.spared(batch)
        return [None] * spared + list(values[spared:])

    def _check_log(self, place: Place, ids: Tensor) -> None:
        """DataError where run.log_ids has noted other images than are trained on now."""
        noted = self._noted.get(place.rank, {}).get(place.step + 1)
        if noted is None:
            return
        asked = [one.ids.tolist() for one in self.trainer.order.requests(place.step, place.step + 1)]
        # Damaged images are not in the line; those of other micro-batches are not known here.
        found, others = ids.tolist(), set(noted) - {sample for piece in asked for sample in piece}
        starts = [i for i in range(len(noted) - len(found) + 1) if noted[i : i + len(found)] == found]
        if others or not starts:
            raise DataError(
                f"{self.run}/ids-{place.rank}.jsonl: update {place.step + 1} was of other images ({noted[:4]}...) than "
                f"now ({found[:4]}...); was it of {self.processes(place.step)} processes (--processes)?"
            )

    def _check_files(self, ids: Tensor) -> None:
        """A note of files whose bytes changed after the run began: the fingerprint is of names and labels alone."""
        index, starts = self.trainer.parts.index, self._starts
        if index is None or index.stamps is None or not starts:
            return
        began = int(starts[0]["time"]) + 1  # whole seconds: a file written in the very one is not told
        for sample in ids[torch.from_numpy(index.stamps)[ids, 1] > began * 10**9].tolist():
            name = self.trainer.parts.name_of(sample)
            self._note(f"id {sample} ({name}) was written after the run began: its pixels may have been others")

    @cached_property
    def _noted(self) -> dict[int, dict[int, list[int]]]:
        """The ids of run.log_ids by process and update (from 1)."""
        found: dict[int, dict[int, list[int]]] = {}
        for path in self.run.glob("ids-*.jsonl"):
            try:
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                found[int(path.stem[4:])] = {line["step"]: line["ids"] for line in lines}
            except (ValueError, KeyError, TypeError) as error:
                raise StorageError(f"{path}: cannot be read: {error}; remove it") from error
        return found

    # ---- in words and numbers ----

    def facts(self, piece: Piece, row: int) -> dict[str, Any]:
        """All that is known of sample `row` of a micro-batch, in plain numbers; pixels by their digest."""
        parts, batch, params = self.trainer.parts, piece.batch, piece.params
        sample, partner = int(batch.ids[row]), int(params.partner[row])
        blend = float(params.own_share()[row])
        pasted = bool(params.pasted()[row])
        return {
            "id": sample,
            "copy": int(parts_of(batch.draws.numpy()[row : row + 1])[1][0]),
            "file": parts.name_of(sample),
            "class": parts.classes[int(batch.labels[row])],
            "size": None
            if parts.index is None
            else [int(parts.index.heights[sample]), int(parts.index.widths[sample])],
            "window": None if piece.windows is None else piece.windows.window[row].tolist(),
            "policy": None if piece.policy is None or not piece.policy[row] else repr(piece.policy[row]),
            "loaded": digest(batch.images[row]),
            "shift": [int(params.dy[row]), int(params.dx[row])],
            "flip": bool(params.flip[row]),
            "box": params.box[row].tolist() if pasted else None,
            "blend": blend if blend < 1 else None,
            "mixed": bool(piece.mixed[row]),
            "partner": {
                "row": partner,
                "id": int(batch.ids[partner]),
                "class": parts.classes[int(batch.labels[partner])],
            },
            "input": digest(piece.inputs[row]),
            **self.target_facts(piece.target, row),
            "loss": None if piece.losses is None else float(piece.losses[row]),
        }

    def source(self, sample: int, side: int) -> Tensor | None:
        """Image `sample` as its file has it, uint8 [side, side, C], squeezed to a square; None for random pixels."""
        trainer = self.trainer
        if trainer.parts.index is None:
            return None
        crop, ids = build_crop(self.recipe, "whole", side), np.array([sample])
        loader = build_loader(trainer.parts, ids, crop, build_loading(self.recipe, trainer.accelerator, 1))
        return next(loader.batches([Request(0, ids)])).images[0].cpu()

    def target_facts(self, target: SoftTarget, row: int) -> dict[str, Any]:
        """Masses by class, what is left for all, confidence and loss weight of sample `row`."""
        outputs, names = self.trainer.augment.outputs, self.names()
        one = SoftTarget(*(None if part is None else part[row : row + 1] for part in target))  # type: ignore[arg-type]
        if one.rows is None:
            pairs = list(zip(one.classes[0].tolist(), one.mass[0].tolist(), strict=True))
        else:
            top = dense(one, outputs)[0].topk(min(NAMED, outputs))
            pairs = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        masses: dict[str, float] = {}
        for label, mass in pairs:
            if mass:
                masses[names[label]] = masses.get(names[label], 0) + mass
        return {
            "target": masses,
            "rest": float(rest(one)[0]),
            "confidence": float(confidence(one, outputs)[0]),
            "weight": float(one.weight[0]),
        }

    def names(self) -> list[str]:
        """Names of the network's outputs."""
        classes = list(self.trainer.parts.classes)
        return classes + ["(other)"] * (self.trainer.augment.outputs - len(classes))


def digest(pixels: Tensor) -> str:
    """The first 16 digits of the SHA-256 of a tensor's type, shape and bytes."""
    held = pixels.detach().cpu().contiguous()
    content = held.reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{held.dtype} {list(held.shape)}".encode() + content).hexdigest()[:16]
