"""ProxylessNAS for CPUs (Cai et al. 2019, arXiv 1812.00332, figure 4): 4.4 M parameters, 439 M MACs, 75.3 % on ImageNet."""

from ofa.fixed_network import FixedNetwork, Stage, rows_of

SPACE = FixedNetwork(
    base="proxyless_cpu",
    stem_width=40,
    rows=rows_of(
        40,
        "relu6",
        Stage(24, 1, (3,), (1,)),
        Stage(32, 2, (3, 3, 3, 3), (6, 3, 3, 3)),
        Stage(48, 2, (3, 3, 3, 5), (6, 3, 3, 3)),
        Stage(88, 2, (3, 3), (6, 3)),
        Stage(104, 1, (5, 3, 3, 3), (6, 3, 3, 3)),
        Stage(216, 2, (5, 5, 5, 3), (6, 3, 3, 3)),
        Stage(360, 1, (5,), (6,)),
    ),
    final_width=1432,
    act="relu6",
    bn_eps=1e-3,
)
