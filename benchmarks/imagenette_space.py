"""The numbers of ofa_mbv3_w1_0 with resolutions for images of 144 px."""

from dataclasses import replace

from ofa.spaces.ofa_mbv3_w1_0 import SPACE as PUBLISHED

SPACE = replace(PUBLISHED, name="benchmarks.imagenette_space", resolutions=(96, 112, 128, 144), num_classes=10)
