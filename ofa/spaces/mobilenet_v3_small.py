"""MobileNetV3-Small (Howard et al. 2019, arXiv 1905.02244, table 2): 2.5 M parameters, 57 M MACs, 67.4 % on ImageNet."""

from ofa.fixed_network import FixedNetwork, Row

SPACE = FixedNetwork(
    base="mobilenet_v3_small",
    stem_width=16,
    rows=(
        Row(3, 16, 16, True, "relu", 2),
        Row(3, 72, 24, False, "relu", 2),
        Row(3, 88, 24, False, "relu", 1),
        Row(5, 96, 40, True, "h_swish", 2),
        Row(5, 240, 40, True, "h_swish", 1),
        Row(5, 240, 40, True, "h_swish", 1),
        Row(5, 120, 48, True, "h_swish", 1),
        Row(5, 144, 48, True, "h_swish", 1),
        Row(5, 288, 96, True, "h_swish", 2),
        Row(5, 576, 96, True, "h_swish", 1),
        Row(5, 576, 96, True, "h_swish", 1),
    ),
    final_width=576,
    feature_width=1024,
    act="h_swish",
    bn_eps=1e-3,
)
