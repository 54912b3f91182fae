"""MIT's OFA MobileNetV3, width 1.2 (ofa_mbv3_d234_e346_k357_w1.2; Cai et al. 2020, arXiv 1908.09791)."""

from ofa.mobilenet import MobileNetSpace, Stage

SPACE = MobileNetSpace(
    name="ofa_mbv3_w1_2",
    resolutions=tuple(range(128, 225, 4)),
    stem_width=24,
    stem_stride=2,
    first_width=24,
    stages=(
        Stage(32, stride=2, act="relu", se=False),
        Stage(48, stride=2, act="relu", se=True),
        Stage(96, stride=2, act="h_swish", se=False),
        Stage(136, stride=1, act="h_swish", se=True),
        Stage(192, stride=2, act="h_swish", se=True),
    ),
    final_width=1152,
    feature_width=1536,
)
