"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2): 3.5 M parameters, 301 M MACs, 72.0 % on ImageNet."""

from ofa.fixed_network import FixedNetwork, Stage, rows_of

SPACE = FixedNetwork(
    base="mobilenet_v2",
    stem_width=32,
    rows=rows_of(
        32,
        "relu6",
        Stage(16, 1, (3,), (1,)),
        Stage(24, 2, (3,) * 2, (6,) * 2),
        Stage(32, 2, (3,) * 3, (6,) * 3),
        Stage(64, 2, (3,) * 4, (6,) * 4),
        Stage(96, 1, (3,) * 3, (6,) * 3),
        Stage(160, 2, (3,) * 3, (6,) * 3),
        Stage(320, 1, (3,), (6,)),
    ),
    final_width=1280,
    act="relu6",
)
