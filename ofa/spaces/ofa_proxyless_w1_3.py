"""MIT's OFA ProxylessNAS, width 1.3 (ofa_proxyless_d234_e346_k357_w1.3; Cai et al. 2019, 1812.00332, and 2020, 1908.09791)."""

from ofa.mobilenet import MobileNetSpace, Stage

SPACE = MobileNetSpace(
    name="ofa_proxyless_w1_3",
    resolutions=tuple(range(128, 225, 4)),
    stem_width=40,
    stem_stride=2,
    first_width=24,
    stages=(
        Stage(32, stride=2, act="relu6", se=False),
        Stage(56, stride=2, act="relu6", se=False),
        Stage(104, stride=2, act="relu6", se=False),
        Stage(128, stride=1, act="relu6", se=False),
        Stage(248, stride=2, act="relu6", se=False),
        Stage(416, stride=1, act="relu6", se=False, depths=(1,)),
    ),
    final_width=1664,
    feature_width=0,
    stem_act="relu6",
    first_act="relu6",
    final_act="relu6",
    bn_eps=1e-3,
)
