"""MobileNetV3-like supernet for images of about 8 to 16 px, such as digits: trains in a minute on two cores."""

from ofa.mobilenet import MobileNetSpace, Stage

SPACE = MobileNetSpace(
    name="mbv3_tiny_image",
    resolutions=(8, 12, 16),
    stem_width=8,
    stem_stride=1,
    first_width=8,
    stages=(
        Stage(16, stride=2, act="relu", se=False),
        Stage(24, stride=2, act="h_swish", se=True),
        Stage(40, stride=1, act="h_swish", se=True),
    ),
    final_width=96,
    feature_width=128,
    num_classes=10,
)
