"""The choices of NAS-Bench-201 (Dong and Yang 2020, arXiv 2001.00326): an operation for each of a cell's six edges.

For tables of accuracies and latencies that others measured: `ofa search runs/nb --space search.nasbench201 --accuracy table.csv`.
"""

from ofa.space import Dimension
from search.choice_space import ChoiceSpace

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))  # (to, from), in the order of the benchmark's architecture strings

SPACE = ChoiceSpace(
    name="search.nasbench201",
    dimensions=tuple(Dimension(f"node{to}.from{source}", OPERATIONS) for to, source in EDGES),
    num_classes=10,
)
