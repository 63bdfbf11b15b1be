import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from accelerate import Accelerator
from sklearn.metrics import roc_auc_score, roc_curve

from fastaug.evaluation.out_of_distribution import KeptScores, auroc, detection, fpr_at_95_tpr


def scores(ties: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    draw = np.random.default_rng(0)
    inside, outside = draw.normal(1, 1, 137), draw.normal(0, 1, 71)
    return (inside.round(1), outside.round(1)) if ties else (inside, outside)


@pytest.mark.parametrize("ties", [False, True])
def test_figures_are_those_of_scikit_learn(ties: bool) -> None:
    inside, outside = scores(ties)
    truth, both = np.r_[np.ones(137), np.zeros(71)], np.r_[inside, outside]
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, both), abs=1e-12)
    false, true, _ = roc_curve(truth, both, drop_intermediate=False)
    assert fpr_at_95_tpr(inside, outside) == pytest.approx(false[true >= 0.95].min(), abs=1e-12)


def test_by_hand() -> None:
    """Pairs won: 3, 3, 2.5 and 1 of 3. 95 % of 4 images are all of them: the threshold is their lowest score."""
    inside, outside = np.array([9.0, 8.0, 5.0, 3.0]), np.array([5.0, 4.0, 1.0])
    assert auroc(inside, outside) == pytest.approx(9.5 / 12)
    assert fpr_at_95_tpr(inside, outside) == pytest.approx(2 / 3)
    assert fpr_at_95_tpr(np.arange(20.0), np.array([0.0, 0.5, 1.0, 2.0])) == 0.5  # 19 of 20: the threshold is 1


def test_a_score_that_is_no_number_makes_figures_none() -> None:
    broken = np.array([1.0, math.nan])
    assert math.isnan(auroc(broken, np.ones(2)))
    assert math.isnan(fpr_at_95_tpr(np.ones(2), broken))


def test_scores_of_logits() -> None:
    kept = KeptScores()
    kept.add(torch.tensor([0]), torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([1]))
    found = kept.of_all(Accelerator(cpu=True))
    assert found["max_softmax"].tolist() == pytest.approx([0.75])
    assert found["energy"].tolist() == pytest.approx([math.log(4.0)])
    figures = detection(found, found)
    assert (figures["images"], figures["ood_images"], figures["energy"]["auroc"]) == (1, 1, 0.5)
