"""ENAS' micro space (Pham et al. 2018, arXiv 1802.03268, section 2.4): cells of 5 nodes, 5 operations.

As it ships 17 cells from 36 channels on for images of 32 px, the released final network; the release counts 15 layers. The
network of shared weights in which the cells are searched is `enas_micro:cells=8,channels=20,join=conv`.
"""

from ofa.enas_cells import EnasMicroSpace

SPACE = EnasMicroSpace(
    base="enas_micro",
    operations=("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5"),
)
