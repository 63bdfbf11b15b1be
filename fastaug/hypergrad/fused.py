"""The training forward pass and the tangent of its logits in one: for weights or labels set in every step."""

import torch
from torch import Tensor
from torch.autograd import forward_ad as dual
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastaug.hypergrad.forward import checked, load_formulas, normalised, rescaled, through_loss
from fastaug.hypergrad.problem import Cotangent, Problem, Weights


def training_pass(problem: Problem, direction: Weights) -> tuple[Tensor, Cotangent]:
    """Logits [n, C] on the graph of the network's own parameters, and the cotangent without images.

    The network trains as in an ordinary pass, bit for bit: buffers move, generators draw (`problem.seed` is not used),
    and `backward` fills .grad. It runs eagerly, as the bare module, with the mathematical attention. The graph of the
    tangents is recorded too and freed on return, so activations take twice the memory meanwhile.
    """
    load_formulas()
    unit, length = normalised(direction)
    parameters = {name: p for name, p in problem.network.named_parameters() if name in unit}
    with dual.dual_level(), torch.compiler.set_stance("force_eager"):
        weights = {name: dual.make_dual(p, unit[name]) for name, p in parameters.items()}
        with sdpa_kernel(SDPBackend.MATH), problem.autocast():
            output = functional_call(problem.network, weights, (problem.samples.images.detach(),))
        logits, tangent = dual.unpack_dual(output)
        tangent = checked(tangent, "the logits").detach()
    wide = torch.promote_types(logits.dtype, torch.float32)
    found = through_loss(problem, logits.detach().to(wide), tangent.to(wide))
    return logits, rescaled(found, None, length)
