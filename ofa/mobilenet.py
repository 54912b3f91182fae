"""MobileNet-like spaces: a stem, one fixed block, stages of elastic inverted residual blocks, a head.

Every number of a network stands in its space's file; this module only says how the numbers become blocks. Elastic are the
input resolution, the depth of a stage, and the kernel size and expand ratio of each block (Cai et al. 2020, section 3.2).
Sources: Howard et al. 2019 (arXiv 1905.02244), Cai et al. 2019 (ProxylessNAS, 1812.00332), Cai et al. 2020 (1908.09791).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ofa.block_spec import BlockSpec
from ofa.slots import fixed, make_divisible, requires_depth, shrunk
from ofa.space import Dimension, SearchSpace, Slot


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one output width; the first of them has the stride."""

    width: int
    stride: int
    act: str
    se: bool
    depths: tuple[int, ...] = (2, 3, 4)


@dataclass(frozen=True)
class MobileNetSpace(SearchSpace):
    """A MobileNet-like space as numbers. Widths are channels, resolutions pixels."""

    name: str
    resolutions: tuple[int, ...]
    stem_width: int
    stem_stride: int
    first_width: int  # of the fixed block after the stem: kernel 3, no expansion, stride 1
    stages: tuple[Stage, ...]
    final_width: int  # 1x1 convolution before pooling
    feature_width: int  # linear layer after pooling; 0 = none
    stem_act: str = "h_swish"
    first_act: str = "relu"
    final_act: str = "h_swish"
    kernel_sizes: tuple[int, ...] = (3, 5, 7)
    expand_ratios: tuple[int, ...] = (3, 4, 6)
    num_classes: int = 1000
    bn_eps: float = 1e-5
    kernel_transforms: bool = True

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        dimensions = [Dimension("resolution", self.resolutions)]
        for s, stage in enumerate(self.stages, 1):
            dimensions.append(Dimension(f"stage{s}.depth", stage.depths))
            for b in range(stage.depths[-1]):
                requires = requires_depth(f"stage{s}", stage.depths, b)
                dimensions.append(Dimension(f"stage{s}.block{b}.kernel_size", self.kernel_sizes, requires))
                dimensions.append(Dimension(f"stage{s}.block{b}.expand_ratio", self.expand_ratios, requires))
        return tuple(dimensions)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        stem, first = self.stem_width, self.first_width
        shrink = self.stem_stride
        shortcut = "identity" if stem == first else "none"
        slots = [
            fixed("stem", "conv", 3, stem, 1, kernel_size=3, stride=self.stem_stride, act=self.stem_act),
            fixed(
                "first",
                "mbconv",
                stem,
                first,
                shrink,
                kernel_size=3,
                hidden_channels=stem,
                act=self.first_act,
                shortcut=shortcut,
            ),
        ]
        width = first
        for s, stage in enumerate(self.stages, 1):
            for b in range(stage.depths[-1]):
                stride = stage.stride if b == 0 else 1
                names = (f"stage{s}.depth", f"stage{s}.block{b}.kernel_size", f"stage{s}.block{b}.expand_ratio")
                choose = _choose_mbconv(b, width, stage, stride, shrink)
                slots.append(Slot(f"stage{s}_block{b}", ("resolution", *names), choose, stage=s))
                width, shrink = stage.width, shrink * stride
        slots.append(fixed("final", "conv", width, self.final_width, shrink, act=self.final_act))
        slots.append(fixed("pool", "pool", self.final_width, self.final_width, shrink))
        width = self.final_width
        if self.feature_width:
            slots.append(fixed("feature", "linear", width, self.feature_width, None, act=self.final_act))
            width = self.feature_width
        slots.append(fixed("classifier", "linear", width, self.num_classes, None, bias=True))
        return tuple(slots)


def _choose_mbconv(index: int, width: int, stage: Stage, stride: int, shrink: int) -> Callable[..., BlockSpec | None]:
    def choose(resolution: int, depth: int, kernel_size: int, expand_ratio: int) -> BlockSpec | None:
        if index >= depth:
            return None
        return BlockSpec(
            "mbconv",
            width,
            stage.width,
            shrunk(resolution, shrink),
            kernel_size=kernel_size,
            stride=stride,
            hidden_channels=make_divisible(round(width * expand_ratio)),
            act=stage.act,
            se=stage.se,
            shortcut="identity" if stride == 1 and width == stage.width else "none",
        )

    return choose
