"""Choice blocks of Single Path One-Shot, each with a choice of its width too (Guo et al. 2020, section 3.4, "channel search")."""

from ofa.shufflenet import ShuffleNetSpace

SPACE = ShuffleNetSpace(base="shufflenet_channels", scales=(0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6))
