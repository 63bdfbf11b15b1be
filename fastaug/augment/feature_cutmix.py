"""Feature CutMix (Yun et al. 2019, section 4.1): CutMix between the feature maps of a hidden layer."""

from typing import Any

import torch
from torch import Tensor, nn

from fastaug.batch import Batch
from fastaug.errors import RecipeError
from fastaug.ops.crop_mix import CropMixParams, Sampling, Soften, sample_crop_mix
from fastaug.ops.crop_mix.masses import soft_targets
from fastaug.recipe.schema import Augment
from fastaug.seeding import Key
from fastaug.targets import SoftTarget


class HiddenCutMix:
    """Feature CutMix: mixes the output [N,C,H,W] of the module `augment.mix_layer` of `network`.

    It does so in the next forward pass after each `draw`. Boxes are drawn on the feature map's own grid, so that
    lambda is the exact share of its cells.
    """

    def __init__(self, network: nn.Module, augment: Augment, img_size: int, channels: int = 3) -> None:
        assert augment.mix_layer is not None
        self._sampling = Sampling(
            hflip=0.0,
            cutmix=augment.cutmix,
            mixup_prob=augment.mixup_prob,
            mixup_mode=augment.mixup_mode,
            lam_fold=augment.lam_fold,
            mix_group=augment.mix_group,
        )
        self._params: CropMixParams | None = None
        self._size: tuple[int, int] | None = None
        names = dict(network.named_modules())
        if augment.mix_layer not in names:
            known = ", ".join(name for name, _ in network.named_children())
            raise RecipeError(
                [f"augment.mix_layer: no module {augment.mix_layer!r} in this network; try one of {known}"]
            )
        self._name = augment.mix_layer
        names[self._name].register_forward_hook(self._mix)
        self._measure(network, img_size, channels)

    def _measure(self, network: nn.Module, img_size: int, channels: int) -> None:
        """Learns the size of the feature map from a blank image."""
        device = next(network.parameters()).device
        training = network.training
        network.eval()
        with torch.no_grad():
            network(torch.zeros(1, channels, img_size, img_size, device=device))
        network.train(training)
        if self._size is None:
            raise RecipeError([f"augment.mix_layer: {self._name} was not used in a forward pass"])

    def draw(self, key: Key, batch: Batch, classes: int) -> SoftTarget:
        """Draws boxes for `batch`, to be pasted in the next training pass, and returns the targets."""
        assert self._size is not None
        self._params = sample_crop_mix(key, batch.draws, self._size, self._sampling)
        return soft_targets(batch.labels, self._params, self._size, classes, Soften())

    def _mix(self, module: nn.Module, _: Any, features: Tensor) -> Tensor:
        if features.ndim != 4:
            found = f"gives {features.ndim}-dimensional features"
            raise RecipeError([f"augment.mix_layer: {self._name} {found}; choose a layer with maps [N, C, H, W]"])
        size = (features.shape[2], features.shape[3])
        self._size = self._size or size  # of the training images, measured once
        if not module.training or self._params is None:
            return features
        if size != self._size:
            raise ValueError(f"boxes were drawn for feature maps {self._size}, found {size}")
        params, self._params = self._params.to(features.device), None
        rows = torch.arange(features.shape[2], device=features.device)[:, None]
        columns = torch.arange(features.shape[3], device=features.device)
        top, bottom, left, right = (side[:, None, None] for side in params.box.unbind(1))
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        n = len(params)  # behind these are blank images, where damage left too few
        mixed = torch.where(inside[:, None], features[params.partner], features[:n])
        return torch.cat([mixed, features[n:]]) if len(features) > n else mixed
