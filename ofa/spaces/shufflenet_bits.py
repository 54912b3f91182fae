"""Choice blocks of Single Path One-Shot, each with a choice of its bits too (Guo et al. 2020, "bit-width search").

Weights and activations of 1 to 4 bits, all 16 pairs; the first convolution, the last and the classifier have none of their own.
"""

from ofa.shufflenet import ShuffleNetSpace

PAIRS = [(weight, activation) for weight in (1, 2, 3, 4) for activation in (1, 2, 3, 4)]

SPACE = ShuffleNetSpace(
    base="shufflenet_bits",
    bit_pairs=tuple(sorted(PAIRS, key=lambda pair: (pair[0] * pair[1], pair))),  # cheapest first
)
