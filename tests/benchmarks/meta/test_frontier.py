"""The frontier of price and quality: points, exact hypergradients and those of other draws, along one trajectory."""

import pytest

from benchmarks.meta.frontier import quality
from benchmarks.meta.scene import Size, new_scene


@pytest.mark.slow
def test_a_point_that_is_exact_agrees_with_this_draw_and_not_with_others() -> None:
    """The whole batch and meta split, v not averaged: the exact hypergradient itself."""
    with new_scene(Size("test_resnet", side=28), digits=True) as scene:
        found = quality(scene, [2], [0.25, 1.0], [500], half_life=0, count=2, redraws=2)
    assert set(found) == {"K=2 f=0.25 m=500", "K=2 f=1 m=500", "K=2 exact", "K=2 half of the draws"}
    whole = found["K=2 f=1 m=500"]
    assert all(cosine == pytest.approx(1, abs=1e-3) for cosine in whole["this draw"].values())
    assert whole["other draws"] == pytest.approx(found["K=2 exact"]["other draws"], abs=1e-3)
    assert abs(whole["other draws"]["policy.policy.logits"]) < 0.99
    assert found["K=2 f=0.25 m=500"]["this draw"]["policy.policy.logits"] < 0.99
