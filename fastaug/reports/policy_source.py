"""policy.py: a learned policy as a short program that needs torch and torchvision only, to be pasted anywhere.

What of an operation is written down is in MATRICES and CHANGES, by the function's name: an operation of another function
is left out, the file says so at its top, and its probability goes to doing nothing.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from fastaug.augment.differentiable_ops import Transform
from fastaug.augment.policy_settings import function_of
from fastaug.augment.shared_policy import SharedPolicy

WIDTH = 118  # columns
TOLERANCE = 0.003  # of [0, 1]: how far pixels may be from ours at the same draws, three quarters of a grey value

# Where an output pixel is looked up, [[xx, xy, x], [yx, yy, y]] from amounts a, as in differentiable_ops.warp.
MATRICES: Mapping[str, str] = MappingProxyType(
    {
        "rotate": "[[math.cos(math.radians(a)), -math.sin(math.radians(a)), 0], "
        "[math.sin(math.radians(a)), math.cos(math.radians(a)), 0]]",
        "translate_x": "[[1, 0, -2 * a], [0, 1, 0]]",
        "translate_y": "[[1, 0, 0], [0, 1, -2 * a]]",
        "shear_x": "[[1, -a, 0], [0, 1, 0]]",
    }
)
# What becomes of an image x, float [C,H,W] in [0, 1].
CHANGES: Mapping[str, str] = MappingProxyType(
    {
        "brightness": "F.adjust_brightness(x, 1 + a)",
        "contrast": "F.adjust_contrast(x, 1 + a)",
        "saturation": "F.adjust_saturation(x, 1 + a)",
        "sharpness": "F.adjust_sharpness(x, 1 + a)",
    }
)
_FACTORS = ("brightness", "contrast", "saturation", "sharpness")  # torchvision has no factors below 0

HEAD = '''"""A learned augmentation policy for torchvision. Needs torch and torchvision only; written by fastaug{of}.

    augment = LearnedPolicy()
    image = augment(image)      # a PIL image, or one tensor [C,H,W], uint8 or float in [0, 1]; as in any Compose

It was learned on square images of {side} pixels, after they were cropped; flips, crops and mixing are not in it.
{left}
"""

import math

import torch
from torchvision.transforms.v2 import functional as F

'''
BODY = '''

class LearnedPolicy(torch.nn.Module):
    """Draws an operation, or none, for each slot, and how strongly it acts; moves pixels first, once, then colours."""

    def forward(self, image):
        return self.apply(image, self.draw())

    def draw(self):
        """[(number of an operation, its amounts), ...], from torch's generator."""
        picked = torch.multinomial(torch.tensor(PROBABILITIES), 1)[:, 0].tolist()
        drawn = [(k - 1, OPERATIONS[k - 1]) for k in picked if k > 0]
        return [(k, [r * (low + (high - low) * float(torch.rand(()))) for r in reach])
                for k, (_, _, reach, (low, high)) in drawn]

    def apply(self, image, draws):
        x = image if isinstance(image, torch.Tensor) else F.to_image(image.convert("RGB"))
        kind, x = x.dtype, F.to_dtype(x, torch.float32, scale=True)
        named = [(OPERATIONS[k][1], amounts) for k, amounts in draws]
        x = self.moved(x, [MATRICES[name](*a) for name, a in named if name in MATRICES])
        for name, a in named:
            if name in CHANGES:
                x = CHANGES[name](x, *a)
        x = F.to_dtype(x.clamp(0, 1), kind, scale=True)
        return x if isinstance(image, torch.Tensor) else F.to_pil_image(x)

    @staticmethod
    def moved(x, matrices):
        """x resampled once; what is uncovered has the colour FILL."""
        if not matrices:
            return x
        whole = torch.eye(3)
        for matrix in matrices:
            whole = whole @ torch.tensor([*matrix, [0, 0, 1]], dtype=torch.float32)
        height, width = x.shape[-2:]
        whole[0, 1], whole[1, 0] = whole[0, 1] * height / width, whole[1, 0] * width / height
        grid = torch.nn.functional.affine_grid(whole[None, :2], [1, 1, height, width], align_corners=False)
        fill = torch.tensor(FILL[: x.shape[-3]])[:, None, None]
        return torch.nn.functional.grid_sample((x - fill)[None], grid, align_corners=False)[0] + fill
'''


class Source(NamedTuple):
    """A policy as a program, and the names of the operations that it had to leave out."""

    text: str
    left_out: list[str]


def policy_source(policy: SharedPolicy, *, side: int, of: str = "") -> Source:
    """The program of a policy that was learned on images of `side` pixels; `of` says where it comes from."""
    reasons = {t.name: _cannot_be_written(t) for t in policy.transforms}
    kept = [number for number, t in enumerate(policy.transforms) if not reasons[t.name]]
    left = [name for name, reason in reasons.items() if reason]
    functions = [function_of(policy.transforms[number]) for number in kept]
    magnitudes = policy.magnitudes().detach().tolist()
    operations = [
        f"    {_entry(policy.transforms[number], function, magnitudes[number])}"
        for number, function in zip(kept, functions, strict=True)
    ]
    text = HEAD.format(of=of, side=side, left=_told(reasons))
    text += f"FILL = {_numbers(policy.fill)}  # the mean colour of the training images\n"
    text += "OPERATIONS = [  # name, function, largest amounts, range of the uniform number that they are multiplied by\n"
    text += "".join(f"{line}\n" for line in operations) + "]\n"
    text += "PROBABILITIES = [  # of doing nothing and of each operation, for each slot\n"
    text += "".join(_row(row) for row in _probabilities(policy, kept)) + "]\n"
    text += _table("MATRICES", "a", MATRICES, functions, "where to look a pixel up: the inverse of the movement")
    text += _table("CHANGES", "x, a", CHANGES, functions, "of colours; x is float in [0, 1]")
    return Source(text + BODY, left)


def _cannot_be_written(transform: Transform) -> str:
    """Why an operation has to be left out, "" if it has not."""
    function = function_of(transform)
    if function not in MATRICES and function not in CHANGES:
        return f"{function} is not in torchvision, or too long to be written here"
    if function in _FACTORS and max(map(abs, transform.noise)) * transform.reach[0] > 1:
        return "torchvision has no factors below 0"
    return ""


def _told(reasons: Mapping[str, str]) -> str:
    left = [f"    {name}: {reason}" for name, reason in reasons.items() if reason]
    if not left:
        return "All of its operations are here."
    return "\n".join(["LEFT OUT, their probability goes to doing nothing:", *left])


def _entry(transform: Transform, function: str, magnitude: float) -> str:
    reach = _numbers([magnitude * each for each in transform.reach])
    return f"({_text(transform.name)}, {_text(function)}, {reach}, ({transform.noise[0]:g}, {transform.noise[1]:g})),"


def _probabilities(policy: SharedPolicy, kept: Sequence[int]) -> list[list[float]]:
    """Of doing nothing and of each kept operation, by slot."""
    rows = policy.probabilities().detach().double()
    columns = rows[:, [number + 1 for number in kept]].tolist()
    return [[max(0.0, 1 - sum(row)), *row] for row in columns]


def _row(numbers: Sequence[float]) -> str:
    """A list in lines of WIDTH columns."""
    lines, line = [], "    ["
    for number in numbers:
        piece = f"{number:.6g}, "
        if len(line) + len(piece) > WIDTH:
            lines.append(line.rstrip())
            line = "     "
        line += piece
    return "\n".join([*lines, line.removesuffix(", ") + "],"]) + "\n"


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def _text(name: str) -> str:
    """A name as a literal: names are a file's, and may not become code."""
    return '"' + "".join(c if c.isascii() and (c.isalnum() or c in "_+-") else "?" for c in name) + '"'


def _table(name: str, takes: str, known: Mapping[str, str], functions: Sequence[str], says: str) -> str:
    used = [f for f in known if f in functions]
    lines = "".join(f'    "{function}": lambda {takes}: {known[function]},\n' for function in used)
    return f"{name} = {{  # {says}\n{lines}}}\n"
