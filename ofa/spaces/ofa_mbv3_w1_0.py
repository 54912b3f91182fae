"""MIT's OFA MobileNetV3, width 1.0 (ofa_mbv3_d234_e346_k357_w1.0; Cai et al. 2020, arXiv 1908.09791)."""

from ofa.mobilenet import MobileNetSpace, Stage

SPACE = MobileNetSpace(
    name="ofa_mbv3_w1_0",
    resolutions=tuple(range(128, 225, 4)),
    stem_width=16,
    stem_stride=2,
    first_width=16,
    stages=(
        Stage(24, stride=2, act="relu", se=False),
        Stage(40, stride=2, act="relu", se=True),
        Stage(80, stride=2, act="h_swish", se=False),
        Stage(112, stride=1, act="h_swish", se=True),
        Stage(160, stride=2, act="h_swish", se=True),
    ),
    final_width=960,
    feature_width=1280,
)
