"""The choices of NAS-Bench-Macro (Su et al. 2021, arXiv 2103.11922): a block for each of eight layers of a MobileNet-like chain.

For the benchmark's table of accuracies: `ofa search runs/macro --space search.nasbench_macro --accuracy table.csv`.
"""

from ofa.space import Dimension
from search.choice_space import ChoiceSpace

BLOCKS = ("identity", "mb3_k3", "mb6_k5")

SPACE = ChoiceSpace(
    name="search.nasbench_macro",
    dimensions=tuple(Dimension(f"layer{i}", BLOCKS) for i in range(8)),
    num_classes=10,
)
