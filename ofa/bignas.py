"""BigNAS-like spaces: all blocks of a stage share kernel size, expand ratio and width, and every block has a shortcut.

Elastic are the input resolution, the width of the stem, of each stage and of the features, and the depth, kernel size and
expand ratio of a stage. A smaller kernel is the centre of the larger one. Sources: Yu et al. 2020 (BigNAS, arXiv 2003.11142),
Wang et al. 2021 (AttentiveNAS, 2011.09011).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ofa.block_spec import BlockSpec
from ofa.slots import make_divisible, shrunk
from ofa.space import Dimension, SearchSpace, Slot


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks that share their choices; the first of them has the stride."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    expand_ratios: tuple[int, ...]
    stride: int
    se: bool


@dataclass(frozen=True)
class BigNasSpace(SearchSpace):
    """A BigNAS-like space as numbers. Widths are channels, resolutions pixels."""

    name: str
    resolutions: tuple[int, ...]
    stem_widths: tuple[int, ...]
    stem_stride: int
    stages: tuple[Stage, ...]
    final_expand_ratio: int  # 1x1 convolution before pooling, over the last stage's width
    feature_widths: tuple[int, ...]  # linear layer after pooling
    act: str = "swish"
    num_classes: int = 1000
    bn_eps: float = 1e-5
    kernel_transforms: bool = False

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        dimensions = [Dimension("resolution", self.resolutions), Dimension("stem.width", self.stem_widths)]
        for s, stage in enumerate(self.stages, 1):
            dimensions.append(Dimension(f"stage{s}.depth", stage.depths))
            dimensions.append(Dimension(f"stage{s}.width", stage.widths))
            dimensions.append(Dimension(f"stage{s}.kernel_size", stage.kernel_sizes))
            dimensions.append(Dimension(f"stage{s}.expand_ratio", stage.expand_ratios))
        return (*dimensions, Dimension("feature.width", self.feature_widths))

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        act, stride, ratio, classes = self.act, self.stem_stride, self.final_expand_ratio, self.num_classes

        def stem(resolution: int, width: int) -> BlockSpec:
            return BlockSpec("conv", 3, width, resolution, kernel_size=3, stride=stride, act=act)

        slots = [Slot("stem", ("resolution", "stem.width"), stem)]
        before, shrink = "stem.width", stride
        for s, stage in enumerate(self.stages, 1):
            own = [f"stage{s}.{kind}" for kind in ("depth", "kernel_size", "expand_ratio", "width")]
            for b in range(stage.depths[-1]):
                choose = _choose_mbconv(b, stage, shrink, act)
                slots.append(Slot(f"stage{s}_block{b}", ("resolution", *own, before), choose, stage=s))
                before, shrink = f"stage{s}.width", shrink * (stage.stride if b == 0 else 1)

        def final(resolution: int, width: int) -> BlockSpec:
            return BlockSpec("conv", width, make_divisible(width * ratio), shrunk(resolution, shrink), act=act)

        def pool(resolution: int, width: int) -> BlockSpec:
            channels = make_divisible(width * ratio)
            return BlockSpec("pool", channels, channels, shrunk(resolution, shrink))

        def feature(width: int, features: int) -> BlockSpec:
            return BlockSpec("linear", make_divisible(width * ratio), features, 1, act=act)

        def classifier(features: int) -> BlockSpec:
            return BlockSpec("linear", features, classes, 1, bias=True)

        slots.append(Slot("final", ("resolution", before), final))
        slots.append(Slot("pool", ("resolution", before), pool))
        slots.append(Slot("feature", (before, "feature.width"), feature))
        slots.append(Slot("classifier", ("feature.width",), classifier))
        return tuple(slots)


def _choose_mbconv(index: int, stage: Stage, shrink: int, act: str) -> Callable[..., BlockSpec | None]:
    stride = stage.stride if index == 0 else 1

    def choose(resolution: int, depth: int, kernel_size: int, expand_ratio: int, width: int, in_width: int) -> BlockSpec | None:
        if index >= depth:
            return None
        return BlockSpec(
            "mbconv",
            in_width,
            width,
            shrunk(resolution, shrink),
            kernel_size=kernel_size,
            stride=stride,
            hidden_channels=make_divisible(round(in_width * expand_ratio)),
            act=act,
            se=stage.se,
            shortcut="pool_conv" if in_width != width else "pool" if stride > 1 else "identity",
        )

    return choose
