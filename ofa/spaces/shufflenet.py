"""Choice blocks of Single Path One-Shot (Guo et al. 2020, arXiv 1904.00420): 4 choices for each of 20 blocks, 1.1e12 networks.

As it ships the network of the paper for ImageNet; other sizes by their numbers, e.g. for CIFAR-10 on a processor
`shufflenet:resolution=32,stem=cifar,channels=8,blocks=2`.
"""

from ofa.shufflenet import ShuffleNetSpace

SPACE = ShuffleNetSpace(base="shufflenet")
