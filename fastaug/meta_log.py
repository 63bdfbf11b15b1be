"""What a meta step tells: norm and direction of each hypergradient, values learned, and alarms for known failures."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SATURATED, _IDENTITY, _FAINT = 0.98, 0.95, 0.2


class MetaLog:
    """Figures of the meta steps since the last reading, kept on the device until then."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, Tensor, Tensor]] = []
        self._last: Tensor | None = None
        self.skipped = 0  # meta steps left out because their hypergradient was not finite

    def add(self, step: int, gradients: list[Tensor], *, remember: bool) -> None:
        """The hypergradient after update `step` (from 0); its cosine with the last one if they are to be remembered."""
        flat = torch.cat([g.detach().flatten().float() for g in gradients])
        cosine = flat.new_tensor(float("nan"))
        if remember:
            cosine = cosine if self._last is None else F.cosine_similarity(flat, self._last, dim=0)
            self._last = flat
        self._pending.append((step, flat.norm(), cosine))

    def read(self) -> list[dict[str, Any]]:
        """A line for every meta step since the last call; the host sync of a log line."""
        lines = []
        for step, norm, cosine in self._pending:
            line = {"event": "meta", "step": step + 1, "hypergradient": norm.item()}
            if not norm.isfinite():
                self.skipped += 1
                line["skipped"] = True
            if not cosine.isnan():
                line["cosine_with_last"] = cosine.item()
            lines.append(line)
        self._pending = []
        return lines

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; the lines were read before."""
        return {"last": self._last, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`."""
        self._last, self.skipped, self._pending = state["last"], state["skipped"], []


def alarms(summary: dict[str, float], skipped: int) -> list[str]:
    """What looks wrong in the values learned, each with what to try."""
    found = []
    if summary.get("policy_identity", 0) > _IDENTITY:
        found.append("the policy has collapsed to identity; raise meta.start_epochs or lower meta.policy_lr")
    for name, value in summary.items():
        if name.endswith(("saturation", "saturated")) and value > _SATURATED:
            found.append(f"{name} is {value:.3f}: at the bound of what it may be; lower its learning rate")
    if "weight_mean" in summary and summary["weight_mean"] < _FAINT:
        found.append(f"the mean sample weight is {summary['weight_mean']:.3f}; lower meta.weights_lr")
    if skipped:
        found.append(f"{skipped} meta steps were left out: their hypergradient was not finite; lower optim.lr")
    return found
