"""ProxylessNAS for phones (Cai et al. 2019, arXiv 1812.00332, figure 4): 4.1 M parameters, 320 M MACs, 74.6 % on ImageNet."""

from ofa.fixed_network import FixedNetwork, Stage, rows_of

SPACE = FixedNetwork(
    base="proxyless_mobile",
    stem_width=32,
    rows=rows_of(
        32,
        "relu6",
        Stage(16, 1, (3,), (1,)),
        Stage(32, 2, (5, 3), (3, 3)),
        Stage(40, 2, (7, 3, 5, 5), (3, 3, 3, 3)),
        Stage(80, 2, (7, 5, 5, 5), (6, 3, 3, 3)),
        Stage(96, 1, (5, 5, 5, 5), (6, 3, 3, 3)),
        Stage(192, 2, (7, 7, 7, 7), (6, 6, 3, 3)),
        Stage(320, 1, (7,), (6,)),
    ),
    final_width=1280,
    act="relu6",
    bn_eps=1e-3,
)
