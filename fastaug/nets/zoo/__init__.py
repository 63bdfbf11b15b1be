"""Networks of papers that timm does not have, made known to timm by name: WRN and PyramidNet, for 32 pixels.

`offer_to_timm` registers them, where models are built (fastaug/nets/model.py) and in your own code:

    from fastaug.nets.zoo import offer_to_timm
    offer_to_timm()
    network = timm.create_model("wrn_28_10", num_classes=10)

None has trained weights. Arguments as timm's: num_classes, in_chans, drop_rate; drop_path_rate of the WRNs, shakedrop
of the PyramidNets (see there).
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, model_entrypoint, register_model
from torch import nn

from fastaug.nets.zoo.pyramid_net import PyramidNet
from fastaug.nets.zoo.wide_resnet import WideResNet
from fastaug.recipe.network_names import ZOO


def offer_to_timm() -> None:
    """Makes the networks known to timm.create_model; once is enough, more is no harm.

    Where timm has another network of a name, this one takes its place, and timm warns of it.
    """
    for entry in ENTRIES:
        if not is_model(entry.__name__) or model_entrypoint(entry.__name__) is not entry:
            register_model(entry)


def wrn_28_10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-28-10: 36.5 million weights."""
    return _built(WideResNet, "wrn_28_10", pretrained, {"depth": 28, "widen": 10, **kwargs})


def wrn_40_2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-40-2: 2.2 million weights."""
    return _built(WideResNet, "wrn_40_2", pretrained, {"depth": 40, "widen": 2, **kwargs})


def pyramidnet_110_a84(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PyramidNet-110, alpha 84, of basic blocks: 3.9 million weights."""
    return _built(PyramidNet, "pyramidnet_110_a84", pretrained, {"depth": 110, "alpha": 84, **kwargs})


def pyramidnet_110_a270(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PyramidNet-110, alpha 270, of basic blocks: 28.5 million weights."""
    return _built(PyramidNet, "pyramidnet_110_a270", pretrained, {"depth": 110, "alpha": 270, **kwargs})


def pyramidnet_200_a240(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PyramidNet-200, alpha 240, of bottlenecks: 26.8 million weights."""
    sizes = {"depth": 200, "alpha": 240, "bottleneck": True}
    return _built(PyramidNet, "pyramidnet_200_a240", pretrained, {**sizes, **kwargs})


def pyramidnet_272_a200(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PyramidNet-272, alpha 200, of bottlenecks: 26.2 million weights."""
    sizes = {"depth": 272, "alpha": 200, "bottleneck": True}
    return _built(PyramidNet, "pyramidnet_272_a200", pretrained, {**sizes, **kwargs})


def _built(network: type[nn.Module], name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    made: nn.Module = build_model_with_cfg(
        network, name, pretrained, feature_cfg={"out_indices": (0, 1, 2), "flatten_sequential": False}, **kwargs
    )
    return made


ENTRIES = (wrn_28_10, wrn_40_2, pyramidnet_110_a84, pyramidnet_110_a270, pyramidnet_200_a240, pyramidnet_272_a200)
_COMMON = {"num_classes": 10, "input_size": (3, 32, 32), "pool_size": (8, 8), "crop_pct": 1.0, "classifier": "fc"}
default_cfgs = generate_default_cfgs(  # of a module, where timm looks for them
    {name: {**_COMMON, "first_conv": "stem" if name.startswith("wrn") else "stem.0"} for name in ZOO}
)
