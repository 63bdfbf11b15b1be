"""Learned augmentation policies as parts of the meta step: what every policy shares, and the one for all samples."""

import math
import zlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastaug.augment.learned_effects import View
from fastaug.augment.operation_sets import transforms_of
from fastaug.augment.policy_settings import drawn_values, entries_of, fill_of, filled_policy, settings_of
from fastaug.augment.sequence_policy import SequencePolicy
from fastaug.augment.shared_policy import SharedPolicy
from fastaug.errors import RecipeError
from fastaug.meta.evidence import Evidence, Observation
from fastaug.meta.learned_part import SATURATED, LearnedPart, Setting
from fastaug.recipe.operation_files import read_entries
from fastaug.targets import SoftTarget

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

    def images(self, images: Tensor, view: View) -> Tensor:
        """The images under what is drawn for them."""
        return self.augmented(images, self.draw(view))

    def log_probability(self, view: View) -> Tensor | None:
        """Log probability [N] of what each sample shows: its own draw, and its partner's where the two are mixed."""
        own = self.chance(self.draw(view))
        if own is None:
            return None
        own = own.to(view.batch.labels.device)
        return own + _mixed(view).to(own) * own[view.params.partner.to(own.device)]


def _mixed(view: View) -> Tensor:
    """Which samples show their mixing partner too, [N] bool."""
    return (view.params.pasted() > 0) | (view.params.own_share() < 1)


class SharedPolicyPart(PolicyPart):
    """The learned policy `policy`: a SharedPolicy of the operations of a set, the same for all samples.

    Where nothing learns it only draws: without the relaxed form and the loss weights by which probabilities may learn.
    """

    def __init__(self, setting: Setting) -> None:
        meta = setting.recipe.meta
        super().__init__(meta.policy_lr)
        self.probabilities = meta.probabilities if meta.learn_probabilities and not meta.acts_frozen else None
        self.temperature = meta.temperature
        self.mean, self.padding = tuple(setting.recipe.data.mean), meta.padding
        fill = fill_of(self.padding, self.mean)
        self.operations = read_entries(meta.operations)
        self.policy = (SequencePolicy if meta.sequence else SharedPolicy)(
            transforms_of(self.operations, fill),
            meta.slots,
            magnitude=meta.magnitude,
            identity=meta.identity,
            fill=fill,
            tau=meta.tau,
            mix=meta.mix,
            shared_magnitude=meta.shared_magnitude,
            shared_probabilities=meta.shared_probabilities,
        )
        self.first_logits = self.policy.logits.detach().clone()
        self.evidence = Evidence(len(self.operations)) if self.probabilities == "evidence" else None
        self.observes = self.evidence is not None
        self.explores, self.exploring = meta.explore and self.observes, False
        self._keep_fingerprint(meta.operations)
        self.policy.logits.requires_grad_(meta.learn_probabilities and self.evidence is None)
        self.policy.strengths.requires_grad_(meta.magnitudes)
        self.through_images = meta.magnitudes or meta.probabilities == "gumbel"

    def _keep_fingerprint(self, source: str) -> None:
        """Keeps in the state what the operations of a set are, so that a run does not go on with another file's."""
        if source == "eight":  # part of the package from the start, and states of then have no fingerprint
            return
        own = zlib.crc32(repr(self.operations).encode())
        self.register_buffer("fingerprint", torch.tensor(own))

        def check(_: Any, state: Mapping[str, Tensor], prefix: str, *__: Any) -> None:
            if int(state.get(f"{prefix}fingerprint", torch.tensor(own))) != own:
                begun = f"{source} does not hold the operations that were learned before"
                raise RecipeError([f"meta.operations: {begun}; put the file back as it was, or begin a new run"])

        self.register_load_state_dict_pre_hook(check)

    def begin(self, *, looked_at: bool) -> None:
        """Evidence is of operations as often as at the start, whatever has been found so far.

        What is hardly drawn any more would hardly be seen, and a network that forgets it answers to it otherwise.
        """
        self.exploring = self.explores and looked_at

    def draw(self, view: View) -> Any:
        """Operations and noise."""
        return self.policy.sample(view.key, view.batch.draws, self.first_logits if self.exploring else None)

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

    def target(self, target: SoftTarget, view: View) -> SoftTarget:
        """With probabilities `weight`, the loss weights of smart_augmentation: by them its probabilities learn.

        A sample weighs the mean of its operations' logits (1 at the start), over what that is in the mean of all
        draws; mixed samples weigh the mean of both. The gradient makes an operation more probable where more weight on
        those who drew it helps. It is not that of the validation loss in the probabilities (`score` is).
        """
        if self.probabilities != "weight":
            return target
        values = 1 + self.policy.logits - self.first_logits.to(self.policy.logits)
        values = values - values.detach().min().clamp_max(0)
        usual = (self.policy.scores().softmax(1).detach() * values).sum(1).mean()
        own = (self.policy.drawn_mean(self.draw(view), values) / usual).to(target.weight)
        partner = own[view.params.partner.to(own.device)]
        weight = torch.where(_mixed(view).to(own.device), (own + partner) / 2, own)
        weight = torch.where(torch.arange(len(weight), device=weight.device) < view.spared, 1, weight)
        return target._replace(weight=target.weight * weight)

    def observe(self, view: View, seen: Observation, over_processes: Callable[[Tensor], Tensor]) -> None:
        """With probabilities `evidence`: log probabilities of operations fall, against nothing's, by `Evidence.falls`.

        Where there is no evidence of harm it stays: what is left as it was has not been found harmful.
        """
        if self.evidence is None:
            return
        changed, seen = view.without_spared(), Observation(*(values[view.spared :] for values in seen))
        op = self.draw(changed).op
        mixed, partner = _mixed(changed).to(op.device), changed.params.partner.to(op.device)
        shown = torch.cat([op, torch.where(mixed[:, None], op[partner], op)], 1)
        self.evidence.add(shown[: len(seen.harm)], seen, over_processes)
        with torch.no_grad():
            fall = self.evidence.falls().to(self.policy.logits) / self.policy.tau
            self.policy.logits[:, 1:] = self.first_logits[:, 1:].to(fall) - fall

    def drawn(self, images: Tensor, view: View) -> dict[str, Tensor]:  # noqa: ARG002
        """The values of each operation, by slot."""
        return drawn_values(self.policy, self.draw(view))

    def settings(self) -> dict[str, Any]:
        """Slots, the operations in full, and the form of probabilities and magnitudes."""
        return settings_of(self.policy, self.padding)

    def export(self) -> dict[str, Any] | None:
        """Its settings and values; None of operations that no file can name, made by hand in a part of one's own."""
        return super().export() if all(transform.entry for transform in self.policy.transforms) else None

    def start(self) -> dict[str, Tensor]:
        """The logits that evidence began to lower."""
        return {} if self.evidence is None else {"policy.logits": self.first_logits}

    def load_export(self, piece: Mapping[str, Any]) -> None:
        """Takes the operations of `piece` with their probabilities and magnitudes."""
        policy = filled_policy(piece["settings"], piece["values"], self.mean)
        self.policy, self.padding = policy, piece["settings"]["padding"]
        self.operations = tuple(entries_of(policy))

    def penalty(self, kind: str) -> Tensor | None:
        """entropy: what the probabilities lack of being uniform, in nats a slot; magnitude: (1 - m)^2, their mean."""
        if kind == "entropy":
            logs = self.policy.scores().log_softmax(1)
            return (logs.exp() * (logs + math.log(logs.shape[1]))).sum(1).mean()
        learned = self.policy.magnitudes()[~self.policy.fixed()]
        return (1 - learned).square().mean() if kind == "magnitude" and len(learned) else None

    def summary(self) -> dict[str, float]:
        """The summary of SharedPolicy, names prefixed by "policy_"."""
        found = {f"policy_{name}": value for name, value in self.policy.summary().items()}
        if self.evidence is not None:
            for kind, scores in zip(("harm", "difficulty"), self.evidence.scores(), strict=True):
                names = ("nothing", *(transform.name for transform in self.policy.transforms))
                found |= {f"policy_{kind}/{name}": float(z) for name, z in zip(names, scores, strict=True)}
        return found

    def alarms(self, summary: dict[str, float]) -> list[str]:
        """Collapse to doing nothing or to one operation, magnitudes at a bound."""
        raised: list[str] = []  # not LearnedPart's: "saturation" is the name of an operation here
        remedy = "raise meta.start_epochs, lower meta.policy_lr, or set meta.regulariser to entropy"
        if self.evidence is not None:
            remedy = "every other was found harmful: name milder ones or others by meta.operations, or use none"
        if summary["policy_identity"] > COLLAPSED:
            raised.append(f"the policy has collapsed to identity; {remedy}")
        elif summary["policy_largest"] > COLLAPSED:
            raised.append(f"a slot of the policy draws one operation in {summary['policy_largest']:.1%}; {remedy}")
        learned = [] if not self.policy.strengths.requires_grad else self.policy.transforms
        for name in (f"policy_magnitude/{t.name}" for t in learned if not t.fixed):
            value = summary[name]
            if abs(2 * value - 1) > 2 * SATURATED - 1:
                raised.append(f"{name} is {value:.3f}: at the bound of what it may be; lower its learning rate")
        return raised
