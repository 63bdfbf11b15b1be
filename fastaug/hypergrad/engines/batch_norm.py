"""BatchNorm in training mode for dual numbers, by torch's own fused kernels instead of a dozen passes over the maps.

y = gamma xhat + beta with xhat = (x - mean) r, r = 1 / sqrt(var + eps), a batch's statistics being functions of x. The
Jacobian in x, J = gamma r (1 - mean[.] - xhat mean[xhat .]), is symmetric: the backward kernel applied to a tangent is
the tangent. Forward mode over the backward kernel needs the derivative of J too, written out in `Backward`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ALL = (True, True, True)


class FusedBatchNorm(TorchFunctionMode):
    """While open, F.batch_norm in training mode has fast forward-mode derivatives, off autograd's graph.

    Running statistics stay as they are unless `moves`.
    """

    def __init__(self, *, moves: bool = False) -> None:
        super().__init__()
        self._moves = moves

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.batch_norm:
            return func(*args, **kwargs)
        return _batch_norm(*args, **kwargs, moves=self._moves)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    moves: bool,
) -> Tensor:
    """F.batch_norm with its own signature."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    running = (running_mean, running_var, momentum) if moves else (None, None, 0.0)
    y: Tensor = BatchNorm.apply(x, weight, bias, eps, running)
    return y


class BatchNorm(Function):
    """BatchNorm as an autograd function: y of x [N,C,...], gamma and beta [C] or None.

    It has reverse mode, forward mode and forward over reverse mode.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        running: tuple[Tensor | None, Tensor | None, float],
    ) -> Tensor:
        running_mean, running_var, momentum = running
        y, mean, inverse = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.save_for_forward(x, weight, mean, inverse)
        ctx.moments = None
        return y

    @staticmethod
    @torch.no_grad()  # nobody differentiates a tangent: no layer's graph of tangents outlives the next BatchNorm
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: None) -> Tensor:
        x, weight, mean, inverse = ctx.saved_tensors
        dx = torch.zeros_like(x) if dx is None else dx
        dy, product, total = _kernel(dx, x, weight, mean, inverse)
        ctx.moments = (total * x.shape[1] / x.numel(), product * x.shape[1] / x.numel())
        if dweight is not None:
            scale = dweight * inverse
            shift = -scale * mean if dbias is None else dbias - scale * mean
            dy.addcmul_(x, _broadcast(scale, x)).add_(_broadcast(shift, x))
        elif dbias is not None:
            dy.add_(_broadcast(dbias, x))
        return dy

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gradients = Backward.apply(g, *ctx.saved_tensors, ctx.moments)
        needed = zip(gradients, ctx.needs_input_grad, strict=False)
        return *(gradient if needs else None for gradient, needs in needed), None, None


class Backward(Function):
    """Its backward pass as an autograd function: gradients in x, gamma and beta, forward mode for the first.

    `moments`: mean[dx] and mean[xhat dx], each [C].
    """

    @staticmethod
    def forward(
        ctx: Any,
        g: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        inverse: Tensor,
        moments: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        gx, product, total = _kernel(g, x, weight, mean, inverse)
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(g, x, weight, mean, inverse, product, total)
        ctx.mark_non_differentiable(product, total)
        ctx.moments = moments
        return gx, product, total

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, dx: Tensor | None, dweight: Tensor | None, *_: None) -> tuple[Any, None, None]:
        g, x, weight, mean, inverse, product, total = ctx.saved_tensors
        share = x.shape[1] / x.numel()
        a, b = total * share, product * share  # mean[g], mean[xhat g]
        dgx = torch.zeros_like(x) if dg is None else _kernel(dg, x, weight, mean, inverse)[0]
        k = inverse if weight is None else weight * inverse
        dk = torch.zeros_like(k) if dweight is None else dweight * inverse
        on_xhat = constant = torch.zeros_like(k)
        if dx is not None:
            m, c = ctx.moments
            e = _kernel(g, dx, None, torch.zeros_like(mean), torch.ones_like(mean), (False, True, False))[1]
            dk = dk - k * inverse * c
            on_dx = -k * b * inverse
            on_xhat = -k * inverse * (e * share - m * a - 2 * c * b)
            constant = -on_dx * m
            dgx.addcmul_(dx, _broadcast(on_dx, x))
        on_xhat, constant = on_xhat - dk * b, constant - dk * a
        on_x = on_xhat * inverse
        dgx.addcmul_(g, _broadcast(dk, x)).addcmul_(x, _broadcast(on_x, x))
        return dgx.add_(_broadcast(constant - on_x * mean, x)), None, None


def _kernel(
    g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor, wanted: tuple[bool, bool, bool] = ALL
) -> tuple[Tensor, Tensor, Tensor]:
    """J g, sum[xhat g] and sum[g] by torch's backward kernel."""
    if weight is None:  # CUDA's kernel for channels-last maps gives the sums of layers with a weight alone
        weight = torch.ones_like(mean)
    return torch.ops.aten.native_batch_norm_backward(g, x, weight, None, None, mean, inverse, True, 0.0, wanted)


def _broadcast(per_channel: Tensor, like: Tensor) -> Tensor:
    return per_channel.to(like.dtype).view(1, -1, *[1] * (like.ndim - 2))
