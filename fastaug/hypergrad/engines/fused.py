"""The engine `fused`: training pass and tangent of its logits in one, for weights or labels at every step."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad as dual
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastaug.hypergrad.engines.batch_norm import FusedBatchNorm
from fastaug.hypergrad.engines.forward import checked, load_formulas, normalised, rescaled, through_loss
from fastaug.hypergrad.problem import Cotangent, Problem, Weights


def training_pass(problem: Problem, direction: Weights, model: nn.Module | None = None) -> tuple[Tensor, Cotangent]:
    """Logits [n, C] on the graph of the network's own parameters, and the cotangent without images.

    The network trains as in an ordinary pass, bit for bit: buffers move, generators draw (`problem.seed` is not used),
    and `backward` fills .grad. It runs eagerly, with the mathematical attention. `direction` may leave out weights:
    tangents begin at the first layer that has one. `model`: what is called, the network wrapped (default: itself).
    """
    load_formulas()
    model = problem.network if model is None else model
    unit, length = normalised(direction)
    tangents = {id(p): unit[name] for name, p in problem.network.named_parameters() if name in unit}
    with dual.dual_level(), torch.compiler.set_stance("force_eager"):
        weights = {
            name: dual.make_dual(p, tangents[id(p)]) for name, p in model.named_parameters() if id(p) in tangents
        }
        with FusedBatchNorm(moves=True), sdpa_kernel(SDPBackend.MATH), problem.autocast():
            output = functional_call(model, weights, (problem.samples.images.detach(),))
        logits, tangent = dual.unpack_dual(output)
        tangent = checked(tangent, "the logits").detach()
    wide = torch.promote_types(logits.dtype, torch.float32)
    derivatives = through_loss(problem, logits.detach().to(wide), tangent.to(wide))
    return logits, rescaled(derivatives, None, length)
