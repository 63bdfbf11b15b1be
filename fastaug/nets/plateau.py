"""The plateau schedule: the learning rate falls when the select split has not improved for some epochs."""

from dataclasses import asdict, dataclass
from typing import Any

from fastaug.recipe.schema import Optim


@dataclass
class Plateau:
    """How far the learning rate has fallen; unlike other schedules it has a state, which every checkpoint holds.

    `factor`: on the learning rate. `best` figure so far, and the epoch of it or of the last fall.
    """

    optim: Optim
    factor: float = 1.0
    best: float | None = None
    since: int = 0

    def see(self, figure: float, epoch: int) -> bool:
        """Takes the figure of select after `epoch` epochs, higher is better; whether the rate falls now.

        Epochs of the warm-up are not waited for.
        """
        if self.best is None or figure > self.best:
            self.best, self.since = figure, epoch
        if epoch <= self.optim.warmup_epochs:
            self.since = epoch
        if epoch - self.since <= self.optim.patience_epochs:
            return False
        self.factor, self.since = self.factor * self.optim.decay_rate, epoch
        return True

    def state_dict(self) -> dict[str, Any]:
        """All that continuing needs."""
        return {name: value for name, value in asdict(self).items() if name != "optim"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)
