"""Deep pyramidal residual networks for images of 32 pixels (Han, Kim and Kim 2017, arXiv:1610.02915), additive."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from fastaug.nets.zoo.shake_drop import ShakeDrop
from fastaug.nets.zoo.three_stages import STEM, ThreeStages

EXPANSION = 4  # channels that a bottleneck gives, in units of its width


class PyramidBlock(nn.Module):
    """A residual branch without ReLU at either end, added to the input with zeros for its new channels (figure 6d).

    [N, before, S, S] to [N, width, S, S], [N, 4 width, S, S] with a `bottleneck`. With stride 2 the input is averaged
    over 2 x 2. `shake`: on the branch.
    """

    def __init__(self, before: int, width: int, stride: int, *, bottleneck: bool, shake: nn.Module) -> None:
        super().__init__()
        kernels, channels = (3, 3), (before, width, width)
        if bottleneck:
            kernels, channels = (1, 3, 1), (before, width, width, EXPANSION * width)  # type: ignore[assignment]
        strided = len(kernels) - 2  # the first 3x3
        layers: list[nn.Module] = [nn.BatchNorm2d(before)]
        for number, (kernel, (inner, outer)) in enumerate(zip(kernels, pairwise(channels), strict=True)):
            step = stride if number == strided else 1
            layers += [nn.ReLU(inplace=True)] * (number > 0)
            layers += [nn.Conv2d(inner, outer, kernel, step, padding=kernel // 2, bias=False), nn.BatchNorm2d(outer)]
        self.branch = nn.Sequential(*layers)
        self.shake, self.stride, self.new = shake, stride, channels[-1] - before

    def forward(self, x: Tensor) -> Tensor:
        branch = self.shake(self.branch(x))
        if self.stride > 1:
            x = avg_pool2d(x, self.stride, ceil_mode=True)
        added: Tensor = branch + pad(x, (0, 0, 0, 0, 0, self.new))
        return added


class PyramidNet(ThreeStages):
    """PyramidNet-`depth`: widths rise from 16 by alpha / N from each of its N blocks to the next.

    Rounded as in the authors' release for PyTorch, whose results are the ones that are compared with (26.8 million
    weights for PyramidNet-200, alpha 240, in CutMix); the paper's equation rounds down (26.6). `shakedrop`: probability
    that ShakeDrop shakes the last block, rising linearly from the first (1 - p_L; 0.5 in the paper); 0: without it.
    ValueError for another depth or probability.
    """

    def __init__(
        self,
        depth: int,
        alpha: float,
        bottleneck: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        shakedrop: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        layers = 9 if bottleneck else 6
        blocks = (depth - 2) // layers
        if blocks < 1 or depth != layers * blocks + 2:
            raise ValueError(f"depth = {depth}: a PyramidNet has {layers} n + 2 layers, such as {18 * layers + 2}")
        if isinstance(shakedrop, bool) or not 0 <= shakedrop < 1:
            raise ValueError(f"shakedrop = {shakedrop}: a probability below 1, such as 0.5, or 0 for none")
        total = 3 * blocks
        widths = [round(STEM + alpha * number / total) for number in range(1, total + 1)]
        given = [STEM] + [width * EXPANSION if bottleneck else width for width in widths]
        made: list[nn.Module] = []
        for number, width in enumerate(widths):
            stride = 2 if number in (blocks, 2 * blocks) else 1
            shake = ShakeDrop(1 - shakedrop * (number + 1) / total) if shakedrop else nn.Identity()
            made.append(PyramidBlock(given[number], width, stride, bottleneck=bottleneck, shake=shake))
        super().__init__(
            nn.Sequential(nn.Conv2d(in_chans, STEM, 3, padding=1, bias=False), nn.BatchNorm2d(STEM)),
            [made[:blocks], made[blocks : 2 * blocks], made[2 * blocks :]],
            [given[blocks], given[2 * blocks], given[total]],
            num_classes=num_classes,
            drop_rate=drop_rate,
            global_pool=global_pool,
        )
