"""NAS with reinforcement learning (Zoph and Le 2017, arXiv 1611.01578, section 4.1): convolutions of CIFAR-10, 6 to 15 layers.

As it ships without strides, the paper's first experiment. The second predicts strides in 20 layers:
`nas_rl_cnn:layers=20,strides=3`.
"""

from ofa.conv_chain_space import ConvChainSpace

SPACE = ConvChainSpace(base="nas_rl_cnn")
