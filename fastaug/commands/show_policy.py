"""Shows what a run has learned: policy.html, one page, and its pictures as PNG files beside it.

    fastaug show-policy runs/learned

Probabilities and magnitudes over time, how the numbers it draws are distributed, and training images of the run, as its
loader gives them, before and after, with what was drawn for them. They are written into the run folder, or to --out.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastaug.errors import FastaugError, StorageError
from fastaug.recipe.policy_file import read_policy_file
from fastaug.recipe.reading import UNTRAINED, as_override, read_untrained

if TYPE_CHECKING:
    from torch import Tensor

    from fastaug.training.build import Trainer

QUIET = [*UNTRAINED, "data.prefetch=1"]
DRAWN = 2000  # samples of the distributions


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="fastaug show-policy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a run that learned something, or reused it")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="replaces one value of its recipe")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default the run folder)")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="rows of the grid (default 8)")
    parser.add_argument("--draws", type=int, default=4, metavar="N", help="columns of the grid (default 4)")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.images < 1 or arguments.draws < 1:
        parser.error("--images and --draws must be at least 1")
    if arguments.out is not None and not arguments.out.is_dir():
        parser.error(f"--out: there is no folder {arguments.out}")
    return arguments


def learned_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl about what is learned; a last one that a kill cut off does not count."""
    from fastaug.training.run_folder import read_log

    log = run / "metrics.jsonl"
    try:
        return [line for line in read_log(log) if line["event"] == "learned"]
    except OSError as error:
        raise StorageError(f"{log}: cannot be read: {error}; name a run folder") from error
    except (ValueError, TypeError, LookupError) as error:
        raise StorageError(f"{log}: is no log of a run: {error!r:.200}; name a run folder") from error


def frozen_trainer(arguments: argparse.Namespace) -> "Trainer":
    """The run as it would go on with what it has learned, frozen."""
    kinds = [piece.kind for piece in read_policy_file(arguments.run).pieces.values()]
    own = [] if any(":" in kind for kind in kinds) else ["meta.learn=[]"]  # one from outside is named by the recipe
    settings = [*QUIET, *own, as_override("meta.reuse", str(arguments.run)), *arguments.overrides]
    recipe = read_untrained(arguments.run / "recipe.yaml", settings)
    from fastaug.console import Console
    from fastaug.distributed import build_accelerator
    from fastaug.training.build import assemble
    from fastaug.training.run_folder import RunFolder

    folder = RunFolder(recipe.run.dir or "")  # named only: nothing is written there
    return assemble(recipe, build_accelerator(recipe), folder, Console(False))


def pictures_of_draws(trainer: "Trainer", images: int, draws: int) -> dict[str, bytes]:
    """Distributions of what is drawn, and the grid of images; none where nothing acts on images."""
    import torch

    from fastaug.reports import policy_page, thumbnails

    learned = trainer.meta.learned
    assert learned is not None
    if not learned.acts_on_images:
        return {}
    found = {}
    with torch.no_grad():
        batch = next(trainer.loader.batches(trainer.order.requests(0, 1)))
        every: dict[str, list[Tensor]] = {}
        epochs = -(-DRAWN // len(batch.ids))
        after, texts = [], []
        for epoch in range(max(epochs, draws)):
            view = _view(trainer, batch, epoch)
            loaded = batch.images.permute(0, 3, 1, 2) / 255
            each = [part.drawn(loaded, view) for part in learned.each().values()]
            drawn = {name: values for own in each for name, values in own.items()}
            for name, values in drawn.items():
                every.setdefault(name, []).append(values.flatten())
            if epoch < draws:
                changed = learned.images(loaded, view)
                after.append(policy_page.as_bytes(changed)[:images])
                texts.append([policy_page.sample_texts(drawn, i) for i in range(min(images, len(batch.ids)))])
        chart = policy_page.parameters({name: torch.cat(values) for name, values in every.items()})
    if chart is not None:
        found["parameters"] = thumbnails.png(chart)
    found["images"] = thumbnails.png(policy_page.before_and_after(batch.images.cpu()[:images], after, texts))
    return found


def _view(trainer: "Trainer", batch: Any, epoch: int) -> Any:
    """What the learned parts see of a batch in an epoch."""
    from fastaug.augment.learned_effects import View
    from fastaug.seeding import Key, Stream

    learned = trainer.meta.learned
    assert learned is not None
    key = Key(trainer.recipe.run.seed, epoch, Stream.LEARNED)
    return View(batch, trainer.augment.sample(batch, epoch), key, learned.rows(batch.ids))


def show(arguments: argparse.Namespace) -> list[Path]:
    """Writes pictures and page; their paths."""
    lines = learned_lines(arguments.run)
    trainer = frozen_trainer(arguments)
    from fastaug.atomic_files import write_atomically
    from fastaug.reports import policy_page, thumbnails

    learned = trainer.meta.learned
    assert learned is not None
    pictures = {name: thumbnails.png(chart) for name, chart in policy_page.history(lines).items()}
    pictures |= pictures_of_draws(trainer, arguments.images, arguments.draws)
    notes = [] if lines else ["Nothing was learned in this run, its parts were frozen: there is no history."]
    notes += _left_out(arguments.run)
    page = policy_page.page(f"What {arguments.run.name} has learned", learned.summaries(), pictures, notes)
    out = arguments.out or arguments.run
    written = {out / f"policy-{name}.png": content for name, content in pictures.items()}
    written[out / "policy.html"] = page
    for path, content in written.items():
        write_atomically(path, content)
    return list(written)


def _left_out(run: Path) -> list[str]:
    """What policy.py says that it is without."""
    path = run / "policy.py"
    lines = path.read_text().splitlines() if path.exists() else []
    return [f"policy.py: {line.removeprefix('# ')}" for line in lines if line.startswith("# LEFT OUT")]


def main(argv: list[str] | None = None) -> int:
    """The exit code, as that of `fastaug train`."""
    arguments = parse(argv)
    try:
        written = show(arguments)
    except FastaugError as error:
        print(error, file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"--out: the page cannot be written: {error}", file=sys.stderr)
        return 5
    print(*written, sep="\n")
    return 0
