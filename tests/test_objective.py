import pytest
import torch

from fastaug.losses import build_objective, soft_bce, soft_focal, soft_kl
from fastaug.recipe.schema import Augment
from fastaug.targets import SoftTarget, soft_cross_entropy

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
TARGET = SoftTarget(
    torch.tensor([[0, 1]] * 3 + [[2, 3]] * 3), torch.full((6, 2), 0.4), torch.tensor([1.0, 0.5, 0.2, 1.0, 0.1, 0.7])
)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, lambda: soft_cross_entropy(LOGITS, TARGET, "sum")),
        ({"loss": "kl"}, lambda: soft_kl(LOGITS, TARGET, "sum")),
        ({"loss": "focal", "focal_gamma": 1.5}, lambda: soft_focal(LOGITS, TARGET, "sum", gamma=1.5)),
        (
            {"loss": "bce", "bce_target_thresh": 0.2, "bce_sum": True},
            lambda: soft_bce(LOGITS, TARGET, "sum", target_threshold=0.2, sum_classes=True),
        ),
    ],
)
def test_the_named_loss_is_summed_over_the_samples(keys, expected):
    assert build_objective(Augment(**keys))(LOGITS, TARGET) == expected()


def test_published_weighting_gives_every_sample_the_mean_weight():
    unweighted = soft_kl(LOGITS, TARGET._replace(weight=torch.ones(6)), "mean")
    got = build_objective(Augment(loss="kl", published_weighting=True))(LOGITS, TARGET) / 6
    torch.testing.assert_close(got, TARGET.weight.mean() * unweighted)
    assert not torch.isclose(got, soft_kl(LOGITS, TARGET, "mean"))


def test_published_weighting_leaves_out_blank_images():
    blank = TARGET._replace(weight=torch.tensor([0.5, 0.9, 0.0, 0.0, 0.0, 0.0]))
    real = SoftTarget(*(part[:2] for part in blank[:3]))
    objective = build_objective(Augment(loss="kl", published_weighting=True))
    torch.testing.assert_close(objective(LOGITS, blank), objective(LOGITS[:2], real))
    assert objective(LOGITS, blank._replace(weight=torch.zeros(6))) == 0
