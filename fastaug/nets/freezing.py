"""Weights that stand still while others learn: for the whole training, or in its first epochs all but the head."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastaug.errors import RecipeError
from fastaug.nets.parameter_names import BACKBONE, matched
from fastaug.recipe.schema import Model


class Freezing:
    """The frozen weights of a network, a function of the update: nothing of it has to be saved.

    Those of `model.freeze` are out of the gradient from here on, so make it before the optimizer. Those that only
    `model.head_first_epochs` holds stay in the optimizer; in its updates they get no gradient, and no optimizer here
    moves, decays or counts a weight without one. RecipeError for patterns without a match, or if nothing is left.

    BatchNorm layers whose weights all stand still normalise by the statistics that they have, and keep them
    (`model.freeze_bn`).
    """

    def __init__(self, network: nn.Module, model: Model, *, head_first: int, processes: int) -> None:
        """`head_first`: updates in which only the head learns. `processes`: of the training."""
        self._holds_bn, self._head_first = model.freeze_bn, head_first
        parameters = dict(network.named_parameters())
        always = {name for pattern in model.freeze for name in matched(network, pattern, "model.freeze")}
        for name in always:
            parameters[name].requires_grad_(False)
        if len(always) == len(parameters):
            raise RecipeError([f"model.freeze: {model.freeze} leaves no weight to train; name fewer, or backbone"])
        first = matched(network, BACKBONE, "model.head_first_epochs") if head_first else []
        if head_first and always.issuperset(set(parameters) - set(first)):
            raise RecipeError(["model.head_first_epochs: model.freeze freezes the head, so that nothing would learn"])
        # Modules and names of their parameters: fully_shard replaces the parameters.
        places = (name.rpartition(".") for name in first if name not in always)
        self._waiting = [(network.get_submodule(module), own) for module, _, own in places]
        # DistributedDataParallel waits for a gradient of every weight that had one when it was made.
        self._leaves_out = processes == 1
        self._bn_always, self._bn_first = _norms(network, always), _norms(network, always | set(first))

    def head_alone(self, step: int) -> bool:
        """Whether update `step` (from 0) is one in which the head alone learns."""
        return step < self._head_first

    def begin(self, step: int) -> None:
        """Sets the network up for the passes of update `step`; to be called before each, as evaluation undoes it."""
        alone = self.head_alone(step)
        if self._waiting and self._leaves_out:
            for parameter in self._waiting_parameters():
                if parameter.requires_grad == alone:
                    parameter.requires_grad_(not alone)
        if self._holds_bn:
            for module in self._bn_first:
                module.train(not alone)
            for module in self._bn_always:
                module.eval()

    def end(self, step: int) -> None:
        """Takes away the gradients that update `step` must not use, before their norm is taken."""
        if self.head_alone(step):
            for parameter in self._waiting_parameters():
                parameter.grad = None

    def _waiting_parameters(self) -> list[nn.Parameter]:
        return [module.get_parameter(name) for module, name in self._waiting]


def _norms(network: nn.Module, frozen: set[str]) -> list[nn.Module]:
    """The BatchNorm layers whose weights are all among the `frozen` ones, of those that have any."""
    found: list[nn.Module] = []
    for name, module in network.named_modules():
        own = {f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)}
        if isinstance(module, _BatchNorm) and own and own <= frozen:
            found.append(module)
    return found
