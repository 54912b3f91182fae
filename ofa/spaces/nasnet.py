"""Cells of NASNet-A and AmoebaNet-A as DARTS writes them: 5 nodes, 9 operations, and a choice of what a cell hands on.

A node may read one state twice (Zoph et al. 2018, arXiv 1707.07012; Real et al. 2019, 1802.01548). The network around the cells
is that of `ofa.spaces.darts`.
"""

from ofa.cell_edges import OPERATIONS
from ofa.cell_space import CellSpace

SPACE = CellSpace(base="nasnet", operations=tuple(OPERATIONS), nodes=5, repeats=True, chooses_concat=True)
