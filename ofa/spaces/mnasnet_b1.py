"""MnasNet-B1, without squeeze-and-excitation (Tan et al. 2019, arXiv 1807.11626): 4.4 M parameters, 314 M MACs, 74.5 %."""

from ofa.fixed_network import FixedNetwork, Stage, rows_of

SPACE = FixedNetwork(
    base="mnasnet_b1",
    stem_width=32,
    rows=rows_of(
        32,
        "relu",
        Stage(16, 1, (3,), (1,)),
        Stage(24, 2, (3,) * 3, (3,) * 3),
        Stage(40, 2, (5,) * 3, (3,) * 3),
        Stage(80, 2, (5,) * 3, (6,) * 3),
        Stage(96, 1, (3,) * 2, (6,) * 2),
        Stage(192, 2, (5,) * 4, (6,) * 4),
        Stage(320, 1, (3,), (6,)),
    ),
    final_width=1280,
    act="relu",
)
