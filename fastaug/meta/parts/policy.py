"""Learned augmentation policies as parts of the meta step: what every policy shares, and the one for all samples."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastaug.augment.learned_effects import View
from fastaug.augment.operation_sets import read_operations
from fastaug.augment.plain_values import load_plain_values
from fastaug.augment.policy_settings import drawn_values, policy_of, settings_of
from fastaug.augment.shared_policy import SharedPolicy
from fastaug.meta.learned_part import SATURATED, LearnedPart, Setting

COLLAPSED = 0.95  # probability of one operation, or of doing nothing, above which a policy has collapsed


class PolicyPart(LearnedPart):
    """A learned distribution over augmentations of float images; probabilities may differ from sample to sample.

    A subclass says how it draws, what becomes of the images, and how probable a draw was. It may use `view.rows`
    (probabilities of single images) and networks of its own: whatever `augmented` and `chance` return is on the graph
    of its parameters.
    """

    acts_on_images = True

    @abstractmethod
    def draw(self, view: View) -> Any:
        """What happens to each of the N samples: a function of `view.key`, the batch's draws and what is learned."""

    @abstractmethod
    def augmented(self, images: Tensor, draws: Any) -> Tensor:
        """Augmented float images [N,3,S,S] in [0, 1]."""

    def chance(self, draws: Any) -> Tensor | None:  # noqa: ARG002
        """Log probability [N] of each sample's draw, where probabilities learn by score function; None: they do not."""
        return None

    def drawn(self, draws: Any) -> dict[str, Tensor]:  # noqa: ARG002
        """What was drawn in numbers, for pictures: name with unit -> [N,k], NaN where it was not drawn."""
        return {}

    def images(self, images: Tensor, view: View) -> Tensor:
        """The images under what is drawn for them."""
        return self.augmented(images, self.draw(view))

    def log_probability(self, view: View) -> Tensor | None:
        """Log probability [N] of what each sample shows: its own draw, and its partner's where the two are mixed."""
        own = self.chance(self.draw(view))
        if own is None:
            return None
        own = own.to(view.batch.labels.device)
        mixed = ((view.params.pasted() > 0) | (view.params.own_share() < 1)).to(own)
        return own + mixed * own[view.params.partner.to(own.device)]


class SharedPolicyPart(PolicyPart):
    """The learned policy `policy`: a SharedPolicy of the operations of a set, the same for all samples."""

    def __init__(self, setting: Setting) -> None:
        meta = setting.recipe.meta
        super().__init__(meta.policy_lr)
        self.probabilities, self.temperature = meta.probabilities, meta.temperature
        fill = tuple(setting.recipe.data.mean)
        self.policy = SharedPolicy(read_operations(meta.operations, fill), meta.slots, fill=fill)
        self.policy.strengths.requires_grad_(meta.magnitudes)

    def draw(self, view: View) -> Any:
        """Operations and noise."""
        return self.policy.sample(view.key, view.batch.draws)

    def augmented(self, images: Tensor, draws: Any) -> Tensor:
        """The drawn operations."""
        return self.policy.apply(images, draws)

    def images(self, images: Tensor, view: View) -> Tensor:
        """The images under what is drawn; by Gumbel-softmax with a gradient in the probabilities too."""
        if self.probabilities == "gumbel":
            return self.policy.relaxed(images, view.key, view.batch.draws, self.temperature)
        return super().images(images, view)

    def log_probability(self, view: View) -> Tensor | None:
        """That of what each sample shows, where probabilities learn by score function."""
        return super().log_probability(view) if self.probabilities == "score" else None

    def chance(self, draws: Any) -> Tensor:
        """The log probability [N] of the drawn operations."""
        return self.policy.log_probability(draws)

    def drawn(self, draws: Any) -> dict[str, Tensor]:
        """The values of each operation, by slot."""
        return drawn_values(self.policy, draws)

    def settings(self) -> dict[str, Any]:
        """Slots, and the operations in full."""
        return settings_of(self.policy)

    def load_export(self, piece: Mapping[str, Any]) -> None:
        """Takes the operations of `piece` with their probabilities and magnitudes."""
        self.policy = policy_of(piece["settings"], fill=self.policy.fill)
        load_plain_values(self, piece["values"])

    def penalty(self, kind: str) -> Tensor | None:
        """entropy: what the probabilities lack of being uniform, in nats a slot; magnitude: (1 - m)^2, their mean."""
        if kind == "entropy":
            logs = self.policy.logits.log_softmax(1)
            return (logs.exp() * (logs + math.log(logs.shape[1]))).sum(1).mean()
        return (1 - self.policy.magnitudes()).square().mean() if kind == "magnitude" else None

    def summary(self) -> dict[str, float]:
        """The summary of SharedPolicy, names prefixed by "policy_"."""
        return {f"policy_{name}": value for name, value in self.policy.summary().items()}

    def alarms(self, summary: dict[str, float]) -> list[str]:
        """Collapse to doing nothing or to one operation, magnitudes at a bound."""
        raised = super().alarms(summary)
        remedy = "raise meta.start_epochs, lower meta.policy_lr, or set meta.regulariser to entropy"
        if summary["policy_identity"] > COLLAPSED:
            raised.append(f"the policy has collapsed to identity; {remedy}")
        elif summary["policy_largest"] > COLLAPSED:
            raised.append(f"a slot of the policy draws one operation in {summary['policy_largest']:.1%}; {remedy}")
        for name, value in summary.items():
            if name.startswith("policy_magnitude/") and abs(2 * value - 1) > 2 * SATURATED - 1:
                raised.append(f"{name} is {value:.3f}: at the bound of what it may be; lower its learning rate")
        return raised
