"""Signals of longer horizons: samples noted, and the sign and the direction of one update."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# torch's first forward-mode derivative warns about torch's own use of torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")

STUDIES = Path(__file__).resolve().parents[2] / "docs" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(STUDIES)
    yield importlib.import_module("policy_horizons")
    for name in ("policy_horizons", "policy_signals"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_horizons_of_one_update_agree_and_longer_ones_note_all_of_their_windows(study: Any) -> None:
    """`Ahead` over no time is one step through Adam's D; the exact one has momentum's share and v after the update."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (128,), generator=draw)
    images = (0.3 * labels[:, None, None, None] + 0.2 * torch.rand((128, 1, 28, 28), generator=draw)).clamp(0, 1)
    splits = {"train": (images, labels), "meta": (images[:64], labels[:64])}
    horizons = {"now": study.Ahead(splits["meta"], 0, study.EVERY), "later": study.Ahead(splits["meta"], 0, 30)}
    horizons |= {k: study.Unrolled(splits["meta"], 0, k) for k in (1, 2)}
    policy = study.policy_of(["rotate"], "broad")
    network = study.train(splits, policy, 6, 0, study.looked_at(horizons))  # updates 0 to 11
    for horizon in horizons.values():
        horizon.finish(network)
    kept = {name: {k: np.concatenate(v) for k, v in h.notes.kept.items()} for name, h in horizons.items()}
    assert [len(kept[name]["terms"]) for name in ("now", "later", 1, 2)] == [192, 192, 192, 256]
    assert sorted(set(kept[2]["done"] * 12)) == pytest.approx([3, 4, 9, 10])
    assert all(np.isfinite(found["terms"]).all() for found in kept.values())
    assert (kept["now"]["op"] == kept[1]["op"]).all()
    assert np.corrcoef(kept["now"]["terms"], kept[1]["terms"])[0, 1] > 0.5
    assert np.corrcoef(kept["now"]["terms"], kept["later"]["terms"])[0, 1] < 0.999
