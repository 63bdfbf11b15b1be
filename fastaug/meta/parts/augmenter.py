"""The learned part `augmenter`: a network that turns noise into transformations, as bilevel_augment learns one."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastaug.augment.augmenter import KINDS, NUMBERS, Augmenter
from fastaug.augment.learned_effects import View
from fastaug.augment.plain_values import load_plain_values
from fastaug.meta.learned_part import LearnedPart, Setting

MOVED = 0.05  # share of their reach that amounts use in the mean, from where on a spread is asked for
STIFF = 1e-3  # a spread below this share of the reach counts as none


class AugmenterPart(LearnedPart):
    """An Augmenter that acts on every image; trained by the validation loss alone."""

    acts_on_images = True

    def __init__(self, setting: Setting) -> None:
        meta = setting.recipe.meta
        super().__init__(meta.augmenter_lr)
        self.fill, self.seed, self.device = tuple(setting.recipe.data.mean), setting.recipe.run.seed, setting.device
        self.net = self._network(meta.augmenter, conditioned=meta.conditioned)
        self._latest: Tensor | None = None  # amounts [n,d] of the latest images, for the log of a conditioned one

    def _network(self, kind: str, *, conditioned: bool) -> Augmenter:
        """A network at its start."""
        net = Augmenter(kind, conditioned=conditioned, fill=self.fill, seed=self.seed)
        # A conditioned one looks at images, so it is where they are; without that draws are made on the host.
        return net.to(self.device) if conditioned else net

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

    def settings(self) -> dict[str, Any]:
        """What the network draws, and whether it sees the image."""
        return {"augmenter": self.net.kind, "conditioned": self.net.conditioned}

    def load_export(self, piece: Mapping[str, Any]) -> None:
        """Takes a network of the kind that `piece` is of."""
        settings = piece["settings"]
        if settings.keys() != {"augmenter", "conditioned"}:
            raise ValueError(f"settings: must be augmenter and conditioned, found {', '.join(settings)[:100]}")
        if settings["augmenter"] not in tuple(KINDS):
            raise ValueError(f"settings.augmenter: {settings['augmenter']!r:.100} is not one of {', '.join(KINDS)}")
        if not isinstance(settings["conditioned"], bool):
            raise ValueError(f"settings.conditioned: {settings['conditioned']!r:.100} must be true or false")
        net = self._network(settings["augmenter"], conditioned=settings["conditioned"])
        load_plain_values(nn.ModuleDict({"net": net}), piece["values"])
        self.net = net

    def drawn(self, images: Tensor, view: View) -> dict[str, Tensor]:
        """Every number of each image, in plain units."""
        amounts = self.net.amounts(self.net.noise(view.key, view.batch.draws), images).detach().double().cpu()
        columns = zip(self.net.names, amounts.split(1, 1), strict=True)
        return {f"{name}, {NUMBERS[name].unit}": NUMBERS[name].plain(column) for name, column in columns}
