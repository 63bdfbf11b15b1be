"""Functions whose second derivatives torch does not have, written out in terms of some that it does."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:  # noqa: ARG001 - torch's signature
    """F.hardsigmoid, whose backward kernel torch differentiates in neither mode; MobileNetV3 gates channels by it."""
    return F.relu6(x + 3) / 6


_FORMS: Mapping[Callable[..., Tensor], Callable[..., Tensor]] = MappingProxyType({F.hardsigmoid: hardsigmoid})


class WrittenOut(TorchFunctionMode):
    """While open, these functions are computed in the written-out form: the same values but for rounding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _FORMS.get(func, func)(*args, **(kwargs or {}))
