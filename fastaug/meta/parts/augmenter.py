"""The learned part `augmenter`: a network that turns noise into transformations, as bilevel_augment learns one."""

from typing import Any

import torch
from torch import Tensor

from fastaug.augment.augmenter import NUMBERS, Augmenter
from fastaug.augment.learned_effects import View
from fastaug.errors import RecipeError
from fastaug.meta.learned_part import LearnedPart, Setting

MOVED = 0.05  # share of their reach that amounts use in the mean, from where on a spread is asked for
STIFF = 1e-3  # a spread below this share of the reach counts as none


class AugmenterPart(LearnedPart):
    """An Augmenter that acts on every image; trained by the validation loss alone."""

    acts_on_images = True

    def __init__(self, setting: Setting) -> None:
        meta = setting.recipe.meta
        super().__init__(meta.augmenter_lr)
        fill, seed = setting.recipe.data.mean, setting.recipe.run.seed
        self.net = Augmenter(meta.augmenter, conditioned=meta.conditioned, fill=fill, seed=seed)
        if meta.conditioned:  # it looks at images, so it is where they are; without it draws are made on the host
            self.net.to(setting.device)
        self._latest: Tensor | None = None  # amounts [n,d] of the latest images, for the log of a conditioned one

    def images(self, images: Tensor, view: View) -> Tensor:
        """The images under the transformations that are drawn for them."""
        amounts = self.net.amounts(self.net.noise(view.key, view.batch.draws), images)
        self._latest = amounts.detach()
        return self.net.apply(images, amounts)

    def summary(self) -> dict[str, float]:
        """Mean and standard deviation of every number that is drawn, in plain units, and what the alarms ask.

        Of fixed noise; a conditioned augmenter's are of the latest images. spread: standard deviation in shares of the
        reach, mean over the numbers; saturation: mean distance from 0 in shares of the reach, the largest.
        """
        amounts = self._latest if self.net.conditioned else self.net.drawn()
        if amounts is None or len(amounts) < 2:
            return {}
        amounts = amounts.double().cpu()
        shares = amounts / self.net.reach.cpu()
        found: dict[str, float] = {}
        for name, column in zip(self.net.names, amounts.unbind(1), strict=True):
            plain = NUMBERS[name].plain(column)
            found |= {f"augmenter_mean/{name}": plain.mean().item(), f"augmenter_sd/{name}": plain.std().item()}
        found["augmenter_spread"] = shares.std(0).mean().item()
        found["augmenter_saturation"] = shares.abs().mean(0).max().item()
        return found

    def alarms(self, summary: dict[str, float]) -> list[str]:
        """Numbers at their bounds, and one transformation for all images."""
        raised = super().alarms(summary)
        if summary and summary["augmenter_saturation"] > MOVED and summary["augmenter_spread"] < STIFF:
            raised.append(
                "the augmenter has moved and draws the same transformation for every image: right where the held-out "
                "images are shifted by one, else lower meta.augmenter_lr"
            )
        return raised

    # ---- to take away ----

    def _settings(self) -> dict[str, Any]:
        return {"augmenter": self.net.kind, "conditioned": self.net.conditioned, "fill": list(self.net.fill)}

    def export(self) -> dict[str, Any] | None:
        """The network as plain lists, with what it is built from."""
        values = {name: value.tolist() for name, value in self.net.state_dict().items()}
        return {"kind": "augmenter", "settings": self._settings(), "values": values}

    def load_export(self, piece: dict[str, Any]) -> None:
        """Takes the values of an `export`; RecipeError where they are not of such an augmenter."""
        given, own = piece.get("settings"), self._settings()
        if piece.get("kind") != "augmenter" or not isinstance(given, dict):
            raise RecipeError(
                [f"meta.reuse: {piece.get('kind')!r} is not the piece of an augmenter; name another policy"]
            )
        for key in ("augmenter", "conditioned"):
            if given.get(key) != own[key]:
                raise RecipeError(
                    [f"meta.{key}: {own[key]} is not what the policy was learned with, {given.get(key)!r}; set it so"]
                )
        self.net.load_state_dict(_tensors(piece.get("values"), self.net.state_dict()))


def _tensors(values: Any, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors shaped as those of `like` from lists of numbers; RecipeError where one does not fit or is not finite."""
    if not isinstance(values, dict) or values.keys() != like.keys():
        raise RecipeError([f"meta.reuse: the values of an augmenter are {', '.join(like)}; this file has others"])
    found = {}
    for name, own in like.items():
        try:
            found[name] = torch.tensor(values[name], dtype=own.dtype)
        except (TypeError, ValueError) as error:
            raise RecipeError(
                [f"meta.reuse: augmenter: {name} is no list of numbers ({error}); learn it again"]
            ) from error
        if found[name].shape != own.shape or not found[name].isfinite().all():
            raise RecipeError(
                [
                    f"meta.reuse: augmenter: {name} must be finite numbers {list(own.shape)}, found "
                    f"{list(found[name].shape)}; learn it again"
                ]
            )
    return found
