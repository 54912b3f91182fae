"""MnasNet-A1 (Tan et al. 2019, arXiv 1807.11626, figure 7): 3.9 M parameters, 312 M MACs, 75.2 % on ImageNet.

Its squeeze-and-excitation ends in MobileNetV3's hard sigmoid here, where the authors' code has a sigmoid; parameters and
multiply-adds are the same.
"""

from ofa.fixed_network import FixedNetwork, Stage, rows_of

SPACE = FixedNetwork(
    base="mnasnet_a1",
    stem_width=32,
    rows=rows_of(
        32,
        "relu",
        Stage(16, 1, (3,), (1,)),
        Stage(24, 2, (3,) * 2, (6,) * 2),
        Stage(40, 2, (5,) * 3, (3,) * 3, se=True),
        Stage(80, 2, (3,) * 4, (6,) * 4),
        Stage(112, 1, (3,) * 2, (6,) * 2, se=True),
        Stage(160, 2, (5,) * 3, (6,) * 3, se=True),
        Stage(320, 1, (3,), (6,)),
    ),
    final_width=1280,
    act="relu",
)
