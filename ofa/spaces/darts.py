"""DARTS' cells (Liu et al. 2019, arXiv 1806.09055): 4 nodes, 7 operations, each node reads two different states.

As it ships 20 cells from 36 channels on for images of 32 px, the network that the paper evaluates on CIFAR-10; other sizes by
their numbers, e.g. `darts:cells=8,channels=16` or `darts:cells=14,channels=48,resolution=224,stem=imagenet`.
"""

from ofa.cell_space import CellSpace

SPACE = CellSpace(
    base="darts",
    operations=(
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",  # in a reduction cell a convolution
        "dil_conv_3x3",
        "dil_conv_5x5",
        "sep_conv_3x3",
        "sep_conv_5x5",
    ),
)
