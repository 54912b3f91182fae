"""MobileNetV3-Large (Howard et al. 2019, arXiv 1905.02244, table 1): 5.5 M parameters, 217 M MACs, 75.2 % on ImageNet."""

from ofa.fixed_network import FixedNetwork, Row

SPACE = FixedNetwork(
    base="mobilenet_v3_large",
    stem_width=16,
    rows=(
        Row(3, 16, 16, False, "relu", 1),
        Row(3, 64, 24, False, "relu", 2),
        Row(3, 72, 24, False, "relu", 1),
        Row(5, 72, 40, True, "relu", 2),
        Row(5, 120, 40, True, "relu", 1),
        Row(5, 120, 40, True, "relu", 1),
        Row(3, 240, 80, False, "h_swish", 2),
        Row(3, 200, 80, False, "h_swish", 1),
        Row(3, 184, 80, False, "h_swish", 1),
        Row(3, 184, 80, False, "h_swish", 1),
        Row(3, 480, 112, True, "h_swish", 1),
        Row(3, 672, 112, True, "h_swish", 1),
        Row(5, 672, 160, True, "h_swish", 2),
        Row(5, 960, 160, True, "h_swish", 1),
        Row(5, 960, 160, True, "h_swish", 1),
    ),
    final_width=960,
    feature_width=1280,
    act="h_swish",
    bn_eps=1e-3,
)
