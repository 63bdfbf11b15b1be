"""Names of the networks that come with fastaug beside timm's; fastaug/nets/zoo/__init__.py has them."""

ZOO = (
    *("wrn_28_10", "wrn_40_2"),
    *("pyramidnet_110_a84", "pyramidnet_110_a270", "pyramidnet_200_a240", "pyramidnet_272_a200"),
)
