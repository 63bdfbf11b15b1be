"""A policy in a loop of one's own: what it says of images that are not in [0, 1]."""

import pytest
import torch

from fastaug.augment.learned_policy import LearnedPolicy
from fastaug.augment.operation_sets import read_operations
from fastaug.augment.shared_policy import SharedPolicy


@pytest.mark.parametrize(("scale", "shift"), [(255, 0), (4, -2)], ids=["bytes", "normalised"])
def test_images_outside_of_the_range_are_refused(scale: float, shift: float) -> None:
    policy, images = LearnedPolicy(SharedPolicy(read_operations("eight"), 1)), torch.rand(8, 3, 12, 12)
    with pytest.raises(ValueError, match=r"images: must lie in \[0, 1\], found .* divided by 255"):
        policy(scale * images + shift, torch.arange(8), 0)
    assert policy(images * 1.1 - 0.05, torch.arange(8), 0).shape == images.shape  # what an interpolation overshoots
