"""Wide residual networks for images of 32 pixels (Zagoruyko and Komodakis 2016, arXiv:1605.07146)."""

from itertools import pairwise

from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.functional import relu

from fastaug.nets.zoo.three_stages import STEM, ThreeStages


class WideBlock(nn.Module):
    """B(3,3): BatchNorm, ReLU, 3x3, BatchNorm, ReLU, 3x3, added to the input [N, C, S, S].

    Where the shape changes, to a 1x1 convolution of the input behind the first BatchNorm and ReLU.
    """

    def __init__(self, before: int, width: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = stride > 1 or before != width
        self.shortcut = nn.Conv2d(before, width, 1, stride, bias=False) if changes else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        active = relu(self.bn1(x))
        branch = self.conv2(relu(self.bn2(self.conv1(active))))
        added: Tensor = self.drop_path(branch) + (x if self.shortcut is None else self.shortcut(active))
        return added


class WideResNet(ThreeStages):
    """WRN-`depth`-`widen`: (depth - 4) / 6 blocks a stage of 16, 32 and 64 channels, times `widen`.

    Without the paper's dropout inside of blocks. `drop_path_rate`: stochastic depth, rising to that at the last block.
    ValueError for another depth.
    """

    def __init__(
        self,
        depth: int,
        widen: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        blocks = (depth - 4) // 6
        if blocks < 1 or depth != 6 * blocks + 4:
            raise ValueError(f"depth = {depth}: a WRN has 6 n + 4 layers, such as 16, 28 or 40")
        widths = [STEM] + [16 * widen] * blocks + [32 * widen] * blocks + [64 * widen] * blocks
        made: list[nn.Module] = []
        for number, (before, width) in enumerate(pairwise(widths)):
            stride = 2 if number in (blocks, 2 * blocks) else 1
            made.append(WideBlock(before, width, stride, drop_path_rate * number / max(1, 3 * blocks - 1)))
        super().__init__(
            nn.Conv2d(in_chans, STEM, 3, padding=1, bias=False),
            [made[:blocks], made[blocks : 2 * blocks], made[2 * blocks :]],
            [16 * widen, 32 * widen, 64 * widen],
            num_classes=num_classes,
            drop_rate=drop_rate,
            global_pool=global_pool,
        )
