"""MIT's OFA ResNet50-D (ofa_resnet50): widths x 0.65, 0.8 and 1.0 of ResNet50's, depth 2 fewer to 2 more than its middle."""

from ofa.resnet import ResNetSpace, Stage

SPACE = ResNetSpace(
    name="ofa_resnet50d",
    resolutions=tuple(range(128, 225, 4)),
    stem_mid_widths=(24, 32),  # 0.65 and 0.8 round to the same
    stem_out_widths=(40, 48, 64),
    stem_stride=2,
    max_pool=True,
    stages=(
        Stage((168, 208, 256), depths=(2, 3, 4), stride=1),
        Stage((336, 408, 512), depths=(2, 3, 4), stride=2),
        Stage((664, 816, 1024), depths=(4, 5, 6), stride=2),
        Stage((1328, 1640, 2048), depths=(2, 3, 4), stride=2),
    ),
    expand_ratios=(0.2, 0.25, 0.35),
)
