"""The report on a step profile: the stage that limits the step, what to change, a table and a picture."""

from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from fastaug.recipe.schema import Recipe
from fastaug.step_profile.measure import Profile

HIDDEN = 0.02  # of the step: waiting for batches that counts as none
WAITING, STARVED = 0.10, 0.20  # of the step: load that limits; idle time of a GPU that limits
COLOURS = {
    "load": "#d1495b",
    "augment": "#edae49",
    "forward": "#00798c",
    "backward": "#30638e",
    "optimizer": "#6a4c93",
    "meta": "#8f5e99",
    "rest": "#9a9a9a",
    "copy": "#c98c5a",
    "idle": "#d8d8d8",
}
WIDTH, BAR, GAP, LABEL, LETTER = 900, 22, 8, 190, 14  # pixels of the picture
CELLS = 40  # characters of the longest bar in the terminal


def limit(found: Profile) -> str:
    """What limits the step: a stage, or "launch" where a GPU waits for the host, or "cores" shared with the loader."""
    if found.share("load") >= WAITING:
        return "load"
    if found.device == "cuda" and found.idle >= STARVED:
        return "launch"
    if found.device == "cpu" and found.mean("step") > (1 + WAITING) * found.compute_alone:
        return "cores"
    stages = {name: seconds for name, seconds in found.stages().items() if name != "load"}
    return max(stages, key=stages.__getitem__)


def advice(found: Profile, recipe: Recipe) -> list[str]:
    """What to change about the stage that limits, the cheapest change first."""
    return {
        "load": _advice_on_loading(found, recipe),
        "cores": _advice_on_loading(found, recipe),
        "launch": [
            "model.compile=true launches fewer kernels",
            "a larger train.batch_size gives each kernel more to do",
        ],
        "augment": ["compare with augment.reprob=0 and augment.cutout=0"],
        "forward": _advice_on_computing(found, recipe),
        "backward": _advice_on_computing(found, recipe),
        "optimizer": ["a larger train.batch_size: fewer updates for as many images"],
        "meta": [
            f"a larger meta.every (now {recipe.meta.every}) or a smaller meta.fraction (now {recipe.meta.fraction:g})"
        ],
        "rest": ["run.log_ids=false" if recipe.run.log_ids else "--trace FILE shows what happens between the stages"],
    }[limit(found)]


def _advice_on_loading(found: Profile, recipe: Recipe) -> list[str]:
    data, said = recipe.data, []
    threads = data.threads or found.cores
    if threads < found.cores:
        said.append(f"data.threads={found.cores} (now {threads}): as many as there are cores")
    elif found.busy_cores < 0.9 * found.cores:
        said.append(f"data.prefetch={2 * data.prefetch} (now {data.prefetch}): the cores are not all busy")
    said.append("prepared shards with a short side little above data.img_size: fewer pixels to decode")
    if recipe.augment.aa or recipe.augment.color_jitter:
        said.append(f"compare with augment.aa=null (now {recipe.augment.aa}), which works in the loader's threads")
    if data.loader == "dali":
        said.append("data.loader=resident, if the decoded images fit in memory")
    if found.device == "cpu":
        said.append("more cores: loader and network share them")
    return said


def _advice_on_computing(found: Profile, recipe: Recipe) -> list[str]:
    said = []
    if found.device == "cuda" and recipe.train.precision == "no":
        said.append("train.precision=bf16")
    if not recipe.model.channels_last:
        said.append("model.channels_last=true")
    if not recipe.model.compile:
        said.append("model.compile=true")
    return [*said, "a smaller data.img_size or model.name: the network itself is the limit"]


def sentences(found: Profile, recipe: Recipe) -> list[str]:
    """The profile in words."""
    step, wait = found.mean("step"), found.share("load")
    hides = "hides behind" if wait <= HIDDEN else "does not hide behind"
    what = limit(found)
    return [
        f"{found.images / step:.1f} images/s together; the loader alone {found.images / found.loader_alone:.1f}, the "
        f"network alone {found.images / found.compute_alone:.1f}, at best together {found.images / found.bound:.1f}",
        f"the loader {hides} the network: {wait:.1%} of the step waits for a batch",
        _idle(found),
        f"limited by: {what}",
        *(f"  try: {text}" for text in advice(found, recipe)),
    ]


def _idle(found: Profile) -> str:
    if found.device != "cpu":
        return f"the device is idle for {found.idle:.1%} of the step"
    return f"{found.busy_cores:.2f} of {found.cores} cores busy; {found.idle:.1%} of their time idle or others'"


def rows(found: Profile) -> list[tuple[str, float, float]]:
    """(name, milliseconds per step, share of the step) of everything that was measured."""
    shown = [(name, 1e3 * seconds, found.share(name)) for name, seconds in found.stages().items()]
    step = found.mean("step")
    if found.copy is not None:
        shown.append(("copy", 1e3 * found.copy, found.copy / step))
    return [*shown, ("idle", 1e3 * found.idle * step, found.idle)]


def table(found: Profile) -> Table:
    """A bar per stage, for the terminal."""
    step = 1e3 * found.mean("step")
    shown = Table(title=f"one training step: {step:.2f} ms, {found.images} images, {len(found.steps)} steps")
    for title, side in (("stage", "left"), ("ms", "right"), ("share", "right"), ("", "left")):
        shown.add_column(title, justify=side)  # type: ignore[arg-type]
    for name, milliseconds, share in rows(found):
        if name in ("copy", "idle"):
            shown.add_section()  # these run beside the stages above, which add up to the step
        bar = "█" * round(CELLS * share) or "▏"
        shown.add_row(name, f"{milliseconds:.2f}", f"{share:.1%}", f"[{COLOURS[name]}]{bar}[/]")
    for name, reason in found.not_measured.items():
        shown.add_row(name, "-", "-", reason, style="dim")
    return shown


def picture(found: Profile, title: str) -> Image.Image:
    """The same bars, and below them the step beside the loader and the network alone."""
    bars = [(name, ms, COLOURS[name]) for name, ms, _ in rows(found)]
    compared = [
        ("loader alone", 1e3 * found.loader_alone, COLOURS["load"]),
        ("network alone", 1e3 * found.compute_alone, COLOURS["forward"]),
        ("together", 1e3 * found.mean("step"), "#404040"),
        ("best possible", 1e3 * found.bound, "#8fbf8f"),
    ]
    height = (len(bars) + len(compared) + 3) * (BAR + GAP) + 2 * GAP
    page = Image.new("RGB", (WIDTH, height), "white")
    _write(page, 0, title)
    scale = (WIDTH - LABEL - 110) / max(ms for _, ms, _ in (*bars, *compared))
    for line, (name, ms, colour) in enumerate(bars, start=1):
        _bar(page, line, name, ms, scale, colour)
    _write(page, len(bars) + 1, "milliseconds per step")
    for line, (name, ms, colour) in enumerate(compared, start=len(bars) + 2):
        _bar(page, line, name, ms, scale, colour)
    return page


def _write(page: Image.Image, line: int, text: str) -> None:
    font = ImageFont.load_default(LETTER)
    ImageDraw.Draw(page).text((GAP, GAP + line * (BAR + GAP)), text, "black", font)


def _bar(page: Image.Image, line: int, name: str, ms: float, scale: float, colour: str) -> None:
    draw, font, top = ImageDraw.Draw(page), ImageFont.load_default(LETTER), GAP + line * (BAR + GAP)
    draw.text((GAP, top + 2), name, "black", font)
    draw.rectangle((LABEL, top, LABEL + max(1, round(ms * scale)), top + BAR - 1), fill=colour)
    draw.text((LABEL + round(ms * scale) + GAP, top + 2), f"{ms:.2f} ms", "black", font)


def figures(found: Profile) -> dict[str, float]:
    """Flat numbers for a JSON file; only what was measured."""
    step = found.mean("step")
    numbers = {f"{name}_ms": ms for name, ms, _ in rows(found)} | {f"{name}_share": s for name, _, s in rows(found)}
    return numbers | {
        "step_ms": 1e3 * step,
        "images_per_second": found.images / step,
        "loader_images_per_second": found.images / found.loader_alone,
        "compute_images_per_second": found.images / found.compute_alone,
        "share_of_bound": found.bound / step,
        "busy_cores": found.busy_cores,
    }


def as_json(found: Profile, recipe: Recipe) -> dict[str, Any]:
    """Everything that was measured, and what it means."""
    return {
        "steps": found.steps,
        "not_measured": found.not_measured,
        "limited_by": limit(found),
        "advice": advice(found, recipe),
        "gates": {f"waits for a batch <= {HIDDEN:.0%} of the step": found.share("load") <= HIDDEN},
        "figures": figures(found),
    }
