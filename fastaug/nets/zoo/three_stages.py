"""The frame of residual networks for images of 32 pixels: a 3x3 stem, three stages, a head; timm's interface."""

from typing import Any

import torch
from timm.layers import create_classifier
from timm.models import checkpoint_seq
from torch import Tensor, nn
from torch.nn.functional import dropout

STEM = 16  # channels of the first convolution, in all these papers


class ThreeStages(nn.Module):
    """Stem, `layer1` to `layer3` with sides of 1, 1/2 and 1/4, BatchNorm, ReLU, mean over the map, one linear layer.

    Images [N, in_chans, S, S] to logits [N, num_classes]; num_classes = 0: to features [N, C]. Methods and attributes
    are those that timm's tools ask of a network. `stages`: a list of blocks each; `channels`: what each stage gives.
    `drop_rate`: dropout before the linear layer.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: list[list[nn.Module]],
        channels: list[int],
        *,
        num_classes: int,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        self.num_classes, self.drop_rate = num_classes, drop_rate
        self.num_features = self.head_hidden_size = channels[-1]
        self.grad_checkpointing = False
        self.stem = stem
        self.layer1, self.layer2, self.layer3 = (nn.Sequential(*blocks) for blocks in stages)
        self.bn = nn.BatchNorm2d(channels[-1])
        self.act = nn.ReLU(inplace=True)
        self.feature_info = [
            {"num_chs": width, "reduction": 2**stage, "module": f"layer{stage + 1}"}
            for stage, width in enumerate(channels)
        ]
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the last feature map [N, C, S/4, S/4]."""
        x = self.stem(x)
        stages = (self.layer1, self.layer2, self.layer3)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(stages, x, flatten=True)
        else:
            for stage in stages:
                x = stage(x)
        maps: Tensor = self.act(self.bn(x))
        return maps

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The feature map to logits, or to what the linear layer sees."""
        x = dropout(self.global_pool(x), self.drop_rate, self.training) if self.drop_rate else self.global_pool(x)
        out: Tensor = x if pre_logits else self.fc(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self, name_only: bool = False) -> Any:
        """The linear layer, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new linear layer; none for 0 classes."""
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are computed again in the backward pass; torch replays the draws of the first time."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Layers from the bottom to the top as patterns of parameter names, for optim.layer_decay."""
        return {"stem": r"^stem", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}
