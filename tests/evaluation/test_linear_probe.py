from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fastaug.evaluation.linear_probe import STRENGTHS, Features, cached_path, choose, fit, keep, load


def data(seed: int, images: int = 90) -> Features:
    """Three overlapping clouds; one feature is constant."""
    draw = np.random.default_rng(seed)
    labels = np.arange(images) % 3
    features = draw.normal(size=(images, 5)) * [1, 10, 0.1, 3, 0] + np.eye(3, 5)[labels] * [1.5, 12, 0.1, 0, 0] + 4
    return Features(
        torch.from_numpy(features).float(), torch.from_numpy(labels).long(), torch.arange(images, dtype=torch.int64)
    )


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_it_is_scikit_learn_s_logistic_regression(strength: float) -> None:
    known, judged = data(0), data(1)
    scaler = StandardScaler().fit(known.features.double().numpy())
    theirs = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
    theirs.fit(scaler.transform(known.features.double().numpy()), known.labels.numpy())
    expected = theirs.predict_proba(scaler.transform(judged.features.double().numpy()))
    found = fit(known, 3, strength).logits(judged.features).softmax(-1)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=2e-4)


def test_the_strength_is_chosen_by_what_was_not_fitted() -> None:
    known, judged = data(0, 30), data(1, 300)
    strength, probe, right = choose(known, judged, 3)
    assert list(right) == list(STRENGTHS)
    losses = {
        c: torch.nn.functional.cross_entropy(fit(known, 3, c).logits(judged.features), judged.labels) for c in right
    }
    assert strength == min(losses, key=losses.__getitem__)
    assert right[strength] == pytest.approx(
        float((probe.logits(judged.features).argmax(1) == judged.labels).double().mean())
    )


def test_features_are_kept_by_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTAUG_CACHE", str(tmp_path))
    found = data(0)
    assert load("a" * 64) is None
    keep("a" * 64, found)
    again = load("a" * 64)
    assert again is not None
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert load("b" * 64) is None
    cached_path("b" * 64).write_bytes(b"cut off")
    with pytest.warns(UserWarning, match="cannot be read .* features are computed again"):
        assert load("b" * 64) is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTAUG_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be written .* features will be computed again"):
        keep("a" * 64, found)
    monkeypatch.setenv("FASTAUG_CACHE", str(tmp_path))
    cached_path("b" * 64).unlink()
    assert list(cached_path("a" * 64).parent.iterdir()) == [cached_path("a" * 64)]
