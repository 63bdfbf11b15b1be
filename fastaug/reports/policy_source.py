"""policy.py: a learned policy as a short program that needs torch and torchvision only, to be pasted anywhere.

How an operation is written down is in MATRICES and CHANGES, by the name of its function. One whose function is in
neither is left out: the file says so at its top, and its probability goes to doing nothing. Nothing of a policy but
numbers and quoted names gets into the program.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch

from fastaug.augment.differentiable_ops import Transform
from fastaug.augment.local_ops import GREY
from fastaug.augment.policy_settings import entries_of
from fastaug.augment.sequence_policy import SequencePolicy
from fastaug.augment.shared_policy import SharedPolicy
from fastaug.recipe.operation_files import Operation

WIDTH = 120  # columns
MOST_LINES = 80  # of the packaged sets' programs, up to three slots
TOLERANCE = 0.002  # of [0, 1]: how far pixels may be from ours at the same draws, half of a grey value
NEVER = 1e-6  # a probability that needs no line
PADDINGS = {"border": 1, "reflect": 2}  # of torch.grid_sampler; 0 is for a colour
INDENT = " " * 4
PIXELS = " (pixels)"  # behind the name of a function whose values are pixels

# Where an output pixel of an image h x w is looked up, rows of a matrix as `warp` of differentiable_ops.py takes it.
MATRICES: Mapping[str, str] = MappingProxyType(
    {
        "flip_x": "*_: [[-1, 0, 0], [0, 1, 0]]",
        "flip_y": "*_: [[1, 0, 0], [0, -1, 0]]",
        "rotate": "h, w, a: [[cos(a), -sin(a) * h / w, 0], [sin(a) * w / h, cos(a), 0]]",
        "translate_x": "h, w, a: [[1, 0, -2 * a], [0, 1, 0]]",
        "translate_y": "h, w, a: [[1, 0, 0], [0, 1, -2 * a]]",
        "translate_x" + PIXELS: "h, w, a: [[1, 0, -2 * a / w], [0, 1, 0]]",
        "translate_y" + PIXELS: "h, w, a: [[1, 0, 0], [0, 1, -2 * a / h]]",
        "shear_x": "h, w, a: [[1, -a * h / w, 0], [0, 1, 0]]",
        "shear_y": "h, w, a: [[1, 0, 0], [-a * w / h, 1, 0]]",
        "scale": "h, w, a: [[exp(-a), 0, 0], [0, exp(-a), 0]]",
        "scale_x": "h, w, a: [[exp(-a), 0, 0], [0, 1, 0]]",
        "scale_y": "h, w, a: [[1, 0, 0], [0, exp(-a), 0]]",
        "perspective": "h, w, a, b: [[1, 0, 0], [0, 1, 0], [a, b, 1]]",
    }
)
# What becomes of an image x, float [C,H,W] in [0, 1].
CHANGES: Mapping[str, str] = MappingProxyType(
    {
        "brightness": "x, a: F.adjust_brightness(x, 1 + a)",
        "contrast": "x, a: F.adjust_contrast(x, 1 + a)",
        "saturation": "x, a: F.adjust_saturation(x, 1 + a)",
        "sharpness": "x, a: F.adjust_sharpness(x, 1 + a)",
        "hue": "x, a: F.adjust_hue(x, a)",
        "posterize": "x, a: posterize(x, abs(a))",
        "solarize": "x, a: torch.where(x > 1 - abs(a), 1 - x, x)",
        "equalize": "x, a: x + a * (F.equalize(x) - x)",
        "autocontrast": "x, a: x + a * (F.autocontrast(x) - x)",
        "invert": "x, a: x + a * (1 - 2 * x)",
        "cutout": "x, a, b, c: cutout(x, abs(a) * min(x.shape[1:]), b, c)",
        "cutout" + PIXELS: "x, a, b, c: cutout(x, abs(a), b, c)",
        "blur": "x, a: blur(x, abs(a) * min(x.shape[1:]), {most} * min(x.shape[1:]))",
        "blur" + PIXELS: "x, a: blur(x, abs(a), {most})",
        "stroke": "x, a: stroke(x, a)",
        "elastic": "x, *a: elastic(x, torch.tensor(a).float())",
    }
)
# Functions that these call, without empty lines between them: a program has to stay within MOST_LINES.
HELPERS: Mapping[str, str] = MappingProxyType(
    {
        "posterize": """
coarse = lambda x, bits: x if bits == 0 else ((x * 255 + 1e-3) / 2**bits).floor() * 2**bits / 255
posterize = lambda x, bits: torch.lerp(coarse(x, bits // 1), coarse(x, bits // 1 + 1), bits % 1)
""",
        "cutout": """
def cutout(x, side, across, down):
    at = [torch.arange(n, device=x.device) - (place + 1) * n / 2 for place, n in zip((down, across), x.shape[1:])]
    down, across = (((edge + 1).clamp(max=side / 2) - edge.clamp(min=-side / 2)).clamp(0, 1) for edge in at)
    return x + down[:, None] * across * (fill_of(x) - x)
""",
        "blur": """
def blur(x, sigma, largest):
    radius = min(max(1, ceil(3 * largest)), min(x.shape[1:]) - 1)
    return F.gaussian_blur(x, [2 * radius + 1] * 2, [max(sigma, 5e-4**0.5)] * 2)
""",
        "stroke": """
def stroke(x, a):
    for step in range(ceil(abs(a))):
        x = torch.lerp(x, copysign(1, a) * torch.max_pool2d(copysign(1, a) * x, 3, 1, 1), min(abs(a) - step, 1))
    return x
""",
        "elastic": """
def elastic(x, knots):
    moved = torch.nn.functional.interpolate(knots.view(1, 2, 4, 4), x.shape[1:], mode="bicubic", align_corners=True)
    return look_up(x, places(x) + 2 * moved[0].permute(1, 2, 0))
""",
    }
)

HEAD = '''"""A learned augmentation policy for torchvision, written by fastaug; needs torch and torchvision only.

image = LearnedPolicy()(image)  # a PIL image, which comes out as RGB, or a tensor [C,H,W], uint8 or float in [0, 1]
Learned on cropped images of {height} x {width} pixels; flips, crops and mixing beside it are not in it."""
'''
IMPORTS = """from math import ceil, copysign, cos, exp, sin
import torch
from torchvision.transforms.v2 import functional as F

"""
PLACES = """def places(x):  # of the pixels of x, [H,W,2], from -1 to 1; the values look_up gives are bilinear
    return torch.nn.functional.affine_grid(torch.eye(2, 3).float()[None], (1, *x.shape), align_corners=False)[0]
fill_of = lambda x: torch.tensor(FILL[: len(x)]).to(x)[:, None, None]
look_up = lambda x, grid: {look_up}
"""
FILLED = "torch.grid_sampler((x - fill_of(x))[None], grid.to(x)[None], 0, 0, False)[0] + fill_of(x)"
PADDED = "torch.grid_sampler(x[None], grid.to(x)[None], 0, {padding}, False)[0]  # 1: border, 2: reflection"
BODY = """
class LearnedPolicy(torch.nn.Module):
    def draw(self):  # for each slot the number of an operation, or none, and its amounts
        picked = torch.multinomial(torch.tensor(PROBABILITIES), 1)[:, 0].tolist()
{unravel}\
        return [(k - 1, [a + (b - a) * torch.rand(()).item() for a, b in OPERATIONS[k - 1][1]]) for k in picked if k]
    def forward(self, image, draws=None):
        assert isinstance(image, torch.Tensor) or image.mode[0] not in "IF", f"{image.mode}: not 8 bits; give a tensor"
        x = image if isinstance(image, torch.Tensor) else F.to_image(image.convert("RGB"))
        kind, x = x.dtype, F.to_dtype(x, torch.float32, scale=True)
        drawn = [(*OPERATIONS[k][2:], amounts) for k, amounts in (self.draw() if draws is None else draws)]
        whole = torch.eye(3).float()
        for matrix in [matrix(*x.shape[1:], *amounts) for matrix, *_, amounts in drawn if matrix]:
            whole = whole @ torch.tensor([*matrix, [0, 0, 1]][:3]).float()  # what moves pixels acts first, and once
        if not whole.equal(torch.eye(3).float()):
            at = torch.nn.functional.pad(places(x), (0, 1), value=1) @ whole.T
            x = look_up(x, at[..., :2] / at[..., 2:])
        for _, *change, amounts in drawn:
            x = change[0](x, *amounts).clamp(0, 1) if change else x
        x = F.to_dtype(x, kind, scale=True)
        return x if isinstance(image, torch.Tensor) else F.to_pil_image(x)
"""


class Source(NamedTuple):
    """A policy as a program, and the names of the operations that it had to leave out."""

    text: str
    left_out: list[str]


def policy_source(policy: SharedPolicy, size: tuple[int, int]) -> Source:
    """The program of a policy that was learned on images of `size` (height, width)."""
    entries, magnitudes = entries_of(policy), policy.magnitudes().detach().tolist()
    left = [entry.name for entry in entries if _label(entry) not in {*MATRICES, *CHANGES}]
    drawn = policy.probabilities().detach().max(0).values.tolist()
    kept = [k for k, entry in enumerate(entries) if entry.name not in left and drawn[k + 1] > NEVER]
    padding = PADDINGS[policy.fill] if isinstance(policy.fill, str) else 0
    functions = {entries[number].function for number in kept}
    before = [
        HEAD.format(height=size[0], width=size[1]),
        *(f"# LEFT OUT, its probability goes to doing nothing: {name!a}\n" for name in left),
        IMPORTS,
        f"FILL = {_numbers(GREY if isinstance(policy.fill, str) else policy.fill)}\n",
        "OPERATIONS = [  # name, ranges of its amounts, matrix of what moves pixels, or None and what changes them\n",
        _operations(_entry(policy.transforms[k], magnitudes[k], entries[k]) for k in kept),
    ]
    after = [
        "\n",
        *(helper.lstrip("\n") for function, helper in HELPERS.items() if function in functions),
        PLACES.format(look_up=FILLED if padding == 0 else PADDED.format(padding=padding)),
        BODY.replace("{unravel}", _unravelled(policy, 1 + len(kept))),
    ]
    room = MOST_LINES - "".join([*before, *after]).count("\n")
    return Source("".join([*before, _table(policy, kept, room), *after]), left)


def _label(entry: Operation) -> str:
    return entry.function + (PIXELS if entry.absolute else "")


def _operations(entries: Iterable[tuple[str, str]]) -> str:
    """The rest of the list of operations: several short ones in a line, and two lines for one that is too long."""
    lines, line = [], INDENT
    for start, rest in entries:
        whole = f"{start} {rest}, "
        if line != INDENT and len(line) + len(whole) > WIDTH + 1:
            lines.append(line.rstrip())
            line = INDENT
        line += whole if len(INDENT + whole) <= WIDTH + 1 else f"{start}\n{INDENT} {rest}, "
    return "\n".join([*lines, line.removesuffix(", ") + "]\n"])


def _entry(transform: Transform, magnitude: float, entry: Operation) -> tuple[str, str]:
    """The entry of an operation, in two pieces."""
    scaled = len(transform.reach) - transform.free
    low, high = transform.noise
    unit = math.pi / 180 if entry.function == "rotate" else 1.0  # what the program's matrix takes
    ranges = [
        (each * magnitude * low * unit, each * magnitude * high * unit) if place < scaled else (-each, each)
        for place, each in enumerate(transform.reach)
    ]
    same = len(ranges) > 1 and len(set(ranges)) == 1  # as of perspective
    shown = ", ".join(f"({least:.4g}, {most:.4g})" for least, most in (ranges[:1] if same else ranges))
    amounts, label = f"[{shown}] * {len(ranges)}" if same else f"[{shown}]", _label(entry)
    start = f"({json.dumps(transform.name)}, {amounts},"
    if label in MATRICES:
        return start, f"lambda {MATRICES[label]})"
    return start, f"None, lambda {CHANGES[label]})".replace("{most}", f"{transform.reach[0]:.6g}")


def _probabilities(policy: SharedPolicy, kept: Sequence[int]) -> list[list[float]]:
    """Of doing nothing and of each kept operation, by slot; of a SequencePolicy those of all sequences of them."""
    table = policy.scores().detach().double().softmax(1)
    sequences = isinstance(policy, SequencePolicy)
    if sequences:
        table = table.view([policy.kinds] * policy.slots)
    own = torch.tensor([number + 1 for number in kept], dtype=torch.int64)
    left = torch.tensor([k for k in range(policy.kinds) if k not in own.tolist()])  # 0, nothing, among them
    for slot in range(policy.slots) if sequences else [1]:
        nothing = table.index_select(slot, left).sum(slot, keepdim=True)
        table = torch.cat([nothing, table.index_select(slot, own)], slot)
    rows: list[list[float]] = (table.flatten()[None] if sequences else table).tolist()
    return rows


def _unravelled(policy: SharedPolicy, kinds: int) -> str:
    """The line that makes an operation for each slot of the number of a sequence."""
    if not isinstance(policy, SequencePolicy):
        return ""
    return f"        picked = [picked[0] // {kinds}**s % {kinds} for s in reversed(range({policy.slots}))]\n"


def _table(policy: SharedPolicy, kept: Sequence[int], room: int) -> str:
    """The probabilities, in `room` lines if they can be: long ones where thousands of sequences stand in them."""
    what = "of doing nothing and of each operation, a list for each slot"
    if isinstance(policy, SequencePolicy):
        what = "of each sequence: nothing or an operation in each slot, the last slot fastest"
    rows = [[f"{number:.4g}, " for number in row] for row in _probabilities(policy, kept)]
    room -= 1  # the first line
    fits, width = len(rows) <= room, WIDTH
    if fits:
        width = max(WIDTH, sum(len(piece) for row in rows for piece in row) // room)
    lines = _rows(rows, width)
    while fits and len(lines) > room:
        width += width // 20
        lines = _rows(rows, width)
    return "\n".join([f"PROBABILITIES = [  # {what}", *lines]).removesuffix(",") + "]\n"


def _rows(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lists of pieces, in lines of `width` columns."""
    lines = []
    for pieces in rows:
        line = f"{INDENT}["
        for piece in pieces:
            if len(line) + len(piece) > width:
                lines.append(line.rstrip())
                line = f"{INDENT} "
            line += piece
        lines.append(line.removesuffix(", ") + "],")
    return lines


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"
