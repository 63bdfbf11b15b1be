"""Runs passes over odd, damaged and changing files, each in a process of its own, and says what became of the files."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from attacks.loading import Trial
from attacks.odd_files import FILES, OBSTACLES, write_set
from fastaug.data.image_files import FORMATS

GOOD, COPIES = 1000, 5
PATIENCE = 300  # seconds for one pass
# Kinds that Pillow opens and no loader uses, and why.
RULES = {"tiff_int32": "pixels of 32 bits, whose white is not known"}


@dataclass
class Outcome:
    """What became of one pass: `problems` is empty when every file was used, or skipped and named."""

    trial: Trial
    problems: list[str] = field(default_factory=list)


def trials(short: bool) -> Iterator[Trial]:
    """The passes: batch 16 to 512, 1 to 4 threads, every loader, with and without EXIF's turn, with files changing."""
    if short:
        yield from (Trial("dali", 512, 4, changed=5), Trial("resident", 128, 2, "apply"), Trial("jpeg", 256, 3))
        return
    for seed, batch in enumerate((16, 32, 64, 128, 256, 512)):
        for threads in (1, 2, 3, 4):
            yield Trial("dali", batch, threads, ("ignore", "apply")[threads % 2], changed=5, seed=seed)
        for loader in ("resident", "raw", "jpeg"):
            yield Trial(loader, batch, 1 + seed % 4, ("ignore", "apply")[seed % 2], seed=seed)


def attack(trial: Trial, root: Path) -> Outcome:
    """One pass over a set of its own below `root`."""
    kinds = write_set(root / "set", GOOD, COPIES, trial.seed)
    opened = {path for path, kind in kinds.items() if kind in FILES and _opens(root / "set" / path)}
    command = [sys.executable, "-m", "attacks.loading", str(root), json.dumps(asdict(trial))]
    outcome = Outcome(trial)
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        outcome.problems.append(f"no end within {PATIENCE} s")
        return outcome
    if ended.returncode:
        died = (
            f"killed by {signal.Signals(-ended.returncode).name}"
            if ended.returncode < 0
            else ended.stderr.strip()[-300:]
        )
        outcome.problems.append(f"exit {ended.returncode}: {died}")
        return outcome
    found = json.loads(ended.stdout)
    skipped, listed = found["skipped"], set(found["listed"])
    for number, epoch in enumerate(found["epochs"]):
        used = set(epoch["used"])
        # What was changed in the second epoch may have been used before it was damaged.
        lost = listed - used - set(skipped)
        both = used & set(skipped) if number == 0 and not trial.changed else set()
        for text, paths in (("neither used nor skipped", lost), ("used and skipped", both)):
            outcome.problems += [f"{text}: {path} ({kinds.get(path, 'good')})" for path in sorted(paths)]
        if epoch["twice"]:
            outcome.problems.append(f"{epoch['twice']} images twice in an epoch")
    left = {path for path in opened if path in skipped and kinds[path] not in RULES}
    outcome.problems += [f"Pillow opens {path} ({kinds[path]}), skipped: {skipped[path]}" for path in sorted(left)]
    missing = set(kinds) - listed
    outcome.problems += [f"not listed: {path} ({kinds[path]})" for path in sorted(missing)]
    outcome.problems += [f"skipped without a reason: {path}" for path, reason in skipped.items() if not reason.strip()]
    return outcome


def _opens(path: Path) -> bool:
    """Whether Pillow opens and decodes a file."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def counted() -> str:
    """How many files of how many kinds a pass meets."""
    return f"{len(FILES) + len(OBSTACLES)} kinds x {COPIES} among {GOOD:,} good files"
