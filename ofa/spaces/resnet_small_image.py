"""ResNet-D-like supernet for images of about 32 px (CIFAR and the like): 3.1e8 networks of 4 to 65 M MACs."""

from ofa.resnet import ResNetSpace, Stage

SPACE = ResNetSpace(
    name="resnet_small_image",
    resolutions=(20, 24, 28, 32),
    stem_mid_widths=(8, 16),
    stem_out_widths=(16, 24),
    stem_stride=1,
    max_pool=False,
    stages=(
        Stage((24, 32), depths=(2, 3, 4), stride=1),
        Stage((48, 64), depths=(2, 3, 4), stride=2),
        Stage((96, 128), depths=(2, 3, 4), stride=2),
        Stage((192, 256), depths=(2, 3, 4), stride=2),
    ),
    expand_ratios=(0.25, 0.5),
    num_classes=10,
)
