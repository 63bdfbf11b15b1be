"""policy.py: a learned policy as a short program that needs torch and torchvision only, to be pasted anywhere.

How an operation is written down is in MATRICES and CHANGES, by the name of its function. One whose function is in
neither is left out: the file says so at its top, and its probability goes to doing nothing. Nothing of a policy but
numbers and quoted names gets into the program.
"""

import json
import math
from collections.abc import Mapping, Sequence
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
TOLERANCE = 0.002  # of [0, 1]: how far pixels may be from ours at the same draws, half of a grey value
NEVER = 1e-6  # a probability that needs no line
PADDINGS = {"border": 1, "reflect": 2}  # of torch.grid_sampler; 0 is for a colour
PIXELS = " (pixels)"  # behind the name of a function whose values are pixels

# Where an output pixel of an image h x w is looked up, rows of a matrix as `warp` of differentiable_ops.py takes it.
MATRICES: Mapping[str, str] = MappingProxyType(
    {
        "flip_x": "h, w, a: [[-1, 0, 0], [0, 1, 0]]",
        "flip_y": "h, w, a: [[1, 0, 0], [0, -1, 0]]",
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
        "posterize": "x, a: torch.lerp(coarse(x, abs(a) // 1), coarse(x, abs(a) // 1 + 1), abs(a) % 1)",
        "solarize": "x, a: torch.where(x > 1 - abs(a), 1 - x, x)",
        "equalize": "x, a: x + a * (F.equalize(x) - x)",
        "autocontrast": "x, a: x + a * (F.autocontrast(x) - x)",
        "invert": "x, a: x + a * (1 - 2 * x)",
        "cutout": "x, a, b, c: cutout(x, abs(a) * min(x.shape[1:]), b, c)",
        "cutout" + PIXELS: "x, a, b, c: cutout(x, abs(a), b, c)",
        "blur": "x, a: blur(x, abs(a) * min(x.shape[1:]), {most} * min(x.shape[1:]))",
        "blur" + PIXELS: "x, a: blur(x, abs(a), {most})",
        "stroke": "x, a: stroke(x, a)",
        "elastic": "x, *a: elastic(x, a)",
    }
)
# Functions that these call.
HELPERS: Mapping[str, str] = MappingProxyType(
    {
        "posterize": """
def coarse(x, bits):
    return x if bits == 0 else ((x * 255 + 1e-3) / 2**bits).floor() * 2**bits / 255
""",
        "cutout": """
def cutout(x, side, across, down):
    covers = []
    for place, count in ((down, x.shape[1]), (across, x.shape[2])):
        edges, middle = torch.arange(count, device=x.device), (place + 1) * count / 2
        covers.append(((edges + 1).clamp(max=middle + side / 2) - edges.clamp(min=middle - side / 2)).clamp(0, 1))
    return x + covers[0][:, None] * covers[1] * (fill_of(x) - x)
""",
        "blur": """
def blur(x, sigma, largest):
    radius = min(max(1, ceil(3 * largest)), min(x.shape[1:]) - 1)
    return F.gaussian_blur(x, [2 * radius + 1] * 2, [max(sigma, 5e-4**0.5)] * 2)
""",
        "stroke": """
def stroke(x, a):
    sign = 1 if a > 0 else -1
    for step in range(ceil(abs(a))):
        wider = sign * torch.nn.functional.max_pool2d(sign * x, 3, stride=1, padding=1)
        x = x + min(abs(a) - step, 1) * (wider - x)
    return x
""",
        "elastic": """
def elastic(x, a):
    knots = torch.tensor(a).view(1, 2, 4, 4)
    moved = 2 * torch.nn.functional.interpolate(knots, x.shape[1:], mode="bicubic", align_corners=True)
    return look_up(x, places(*x.shape[1:])[..., :2] + moved[0].permute(1, 2, 0))
""",
    }
)

HEAD = '''"""A learned augmentation policy for torchvision, written by fastaug; needs torch and torchvision only.

    image = LearnedPolicy()(image)      # a PIL image or a tensor [C,H,W], uint8 or float in [0, 1], one at a time

Learned on cropped images of {height} x {width} pixels; flips, crops and mixing beside it are not in it.
"""
'''
IMPORTS = """from math import ceil, cos, exp, sin
import torch
from torchvision.transforms.v2 import functional as F

"""
PLACES = """
def places(h, w):
    down, across = ((2 * torch.arange(n) + 1) / n - 1 for n in (h, w))
    return torch.stack([across.expand(h, w), down[:, None].expand(h, w), torch.ones(h, w)], -1)

def fill_of(x):
    return torch.tensor(FILL[: len(x)], device=x.device)[:, None, None]

def look_up(x, grid):
    return {look_up}
"""
FILLED = "torch.grid_sampler((x - fill_of(x))[None], grid.to(x)[None], 0, 0, False)[0] + fill_of(x)  # bilinear"
PADDED = "torch.grid_sampler(x[None], grid.to(x)[None], 0, {padding}, False)[0]  # bilinear; 1: border, 2: reflection"
BODY = """
class LearnedPolicy(torch.nn.Module):
    def draw(self):  # for each slot the number of an operation, or none, and its amounts
        picked = torch.multinomial(torch.tensor(PROBABILITIES), 1)[:, 0].tolist()
{unravel}        uniform = lambda low, high: low + (high - low) * torch.rand(()).item()
        return [(k - 1, [uniform(*each) for each in OPERATIONS[k - 1][1]]) for k in picked if k > 0]

    def forward(self, image, draws=None):
        x = image if isinstance(image, torch.Tensor) else F.to_image(image.convert("RGB"))
        kind, x = x.dtype, F.to_dtype(x, torch.float32, scale=True)
        drawn = [(*OPERATIONS[k][2:], amounts) for k, amounts in (self.draw() if draws is None else draws)]
        whole = torch.eye(3)
        for matrix, _, amounts in drawn:  # what moves pixels acts first, and once
            if matrix:
                whole = whole @ torch.tensor([*matrix(*x.shape[1:], *amounts), [0, 0, 1]][:3]).float()
        if not whole.equal(torch.eye(3)):
            at = places(*x.shape[1:]) @ whole.T
            x = look_up(x, at[..., :2] / at[..., 2:])
        for _, change, amounts in drawn:
            x = change(x, *amounts).clamp(0, 1) if change else x
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
    functions = {entries[number].function for number in kept}
    padding = PADDINGS[policy.fill] if isinstance(policy.fill, str) else 0
    text = [
        HEAD.format(height=size[0], width=size[1]),
        *(f"# LEFT OUT, its probability goes to doing nothing: {name!a}\n" for name in left),
        IMPORTS,
        f"FILL = {_numbers(GREY if isinstance(policy.fill, str) else policy.fill)}\n",
        "OPERATIONS = [  # name, ranges of its amounts, matrix, change\n",
        *(_line(policy.transforms[number], magnitudes[number], entries[number]) for number in kept),
        "]\nPROBABILITIES = [  # of doing nothing and of each operation, a list for each slot\n"
        if not isinstance(policy, SequencePolicy)
        else "]\nPROBABILITIES = [  # of each sequence: nothing or an operation in each slot, the last slot fastest\n",
        *(_row(row) for row in _probabilities(policy, kept)),
        "]\n",
        *(helper for function, helper in HELPERS.items() if function in functions),
        PLACES.format(look_up=FILLED if padding == 0 else PADDED.format(padding=padding)),
        BODY.replace("{unravel}", _unravelled(policy, 1 + len(kept))),
    ]
    return Source("".join(text), left)


def _label(entry: Operation) -> str:
    return entry.function + (PIXELS if entry.absolute else "")


def _line(transform: Transform, magnitude: float, entry: Operation) -> str:
    """The line of an operation."""
    scaled = len(transform.reach) - transform.free
    low, high = transform.noise
    unit = math.pi / 180 if entry.function == "rotate" else 1.0  # what the program's matrix takes
    ranges = [
        (each * magnitude * low * unit, each * magnitude * high * unit) if place < scaled else (-each, each)
        for place, each in enumerate(transform.reach)
    ]
    same = len(ranges) > 3 and len(set(ranges)) == 1  # as of elastic distortion
    shown = ", ".join(f"({least:.4g}, {most:.4g})" for least, most in (ranges[:1] if same else ranges))
    amounts, label = f"[{shown}] * {len(ranges)}" if same else f"[{shown}]", _label(entry)
    matrix = f"lambda {MATRICES[label]}" if label in MATRICES else "None"
    change = f"lambda {CHANGES[label]}".replace("{most}", f"{transform.reach[0]:.6g}") if label in CHANGES else "None"
    start = f"    ({json.dumps(transform.name)}, {amounts}, "
    whole = f"{start}{matrix}, {change}),\n"
    return whole if len(whole) <= WIDTH + 1 else f"{start.rstrip()}\n     {matrix}, {change}),\n"


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


def _row(numbers: Sequence[float]) -> str:
    """A list of numbers, in lines of WIDTH columns."""
    lines, line = [], "    ["
    for number in numbers:
        piece = f"{number:.4g}, "
        if len(line) + len(piece) > WIDTH:
            lines.append(line.rstrip())
            line = "     "
        line += piece
    return "\n".join([*lines, line.removesuffix(", ") + "],"]) + "\n"


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"
