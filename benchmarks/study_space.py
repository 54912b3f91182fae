"""A space small enough that a supernet of it learns CIFAR-10 in half an hour of one core: 0.3 to 16 M MACs."""

from ofa.mobilenet import MobileNetSpace, Stage

SPACE = MobileNetSpace(
    name="benchmarks.study_space",
    resolutions=(16, 20, 24),
    stem_width=16,
    stem_stride=1,
    first_width=16,
    stages=(
        Stage(24, stride=2, act="relu", se=False, depths=(1, 2, 3)),
        Stage(40, stride=2, act="h_swish", se=True, depths=(1, 2, 3)),
        Stage(64, stride=1, act="h_swish", se=True, depths=(1, 2, 3)),
    ),
    final_width=256,
    feature_width=256,
    num_classes=10,
)
