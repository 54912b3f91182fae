"""MobileNetV3-like supernet for images of about 32 px (CIFAR and the like): 1.2e16 networks of 4 to 49 M MACs."""

from ofa.mobilenet import MobileNetSpace, Stage

SPACE = MobileNetSpace(
    name="mbv3_small_image",
    resolutions=(20, 24, 28, 32),
    stem_width=16,
    stem_stride=1,
    first_width=16,
    stages=(
        Stage(24, stride=2, act="relu", se=False),
        Stage(40, stride=2, act="relu", se=True),
        Stage(64, stride=1, act="h_swish", se=False),
        Stage(96, stride=2, act="h_swish", se=True),
    ),
    final_width=384,
    feature_width=512,
    num_classes=10,
)
