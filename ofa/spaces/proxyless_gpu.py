"""ProxylessNAS for GPUs (Cai et al. 2019, arXiv 1812.00332, figure 4): 7.1 M parameters, 465 M MACs, 75.1 % on ImageNet."""

from ofa.fixed_network import FixedNetwork, Stage, rows_of

SPACE = FixedNetwork(
    base="proxyless_gpu",
    stem_width=40,
    rows=rows_of(
        40,
        "relu6",
        Stage(24, 1, (3,), (1,)),
        Stage(32, 2, (5,), (3,)),
        Stage(56, 2, (7, 3), (3, 3)),
        Stage(112, 2, (7, 5), (6, 3)),
        Stage(128, 1, (5, 3, 5), (6, 3, 3)),
        Stage(256, 2, (7, 7, 7, 5), (6, 6, 6, 6)),
        Stage(432, 1, (7,), (6,)),
    ),
    final_width=1728,
    act="relu6",
    bn_eps=1e-3,
)
