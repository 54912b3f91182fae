"""ResNet-D-like spaces: a deep stem, stages of elastic bottleneck blocks, a linear classifier.

Elastic are the input resolution, the depth of a stage, the width of a stage and of the stem, the expand ratio (narrow width
over output width) of each block, and whether the stem has its residual convolution (`stem.depth`). Sources: He et al. 2019
(ResNet-D, arXiv 1812.01187) and the ResNet50 supernet of MIT's once-for-all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ofa.block_spec import BlockSpec
from ofa.slots import make_divisible, requires_depth, shrunk
from ofa.space import Dimension, SearchSpace, Slot


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one output width; the first of them has the stride."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    stride: int


@dataclass(frozen=True)
class ResNetSpace(SearchSpace):
    """A ResNet-D-like space as numbers. Widths are channels, resolutions pixels."""

    name: str
    resolutions: tuple[int, ...]
    stem_mid_widths: tuple[int, ...]  # of the first convolution, which has the stride, and of the residual one
    stem_out_widths: tuple[int, ...]  # of the last convolution
    stem_stride: int
    max_pool: bool  # whether a max-pooling of stride 2 ends the stem
    stages: tuple[Stage, ...]
    expand_ratios: tuple[float, ...]
    act: str = "relu"
    num_classes: int = 1000
    bn_eps: float = 1e-5

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        dimensions = [
            Dimension("resolution", self.resolutions),
            Dimension("stem.depth", (0, 1)),
            Dimension("stem.mid.width", self.stem_mid_widths),
            Dimension("stem.out.width", self.stem_out_widths),
        ]
        for s, stage in enumerate(self.stages, 1):
            dimensions.append(Dimension(f"stage{s}.depth", stage.depths))
            dimensions.append(Dimension(f"stage{s}.width", stage.widths))
            for b in range(stage.depths[-1]):
                requires = requires_depth(f"stage{s}", stage.depths, b)
                dimensions.append(Dimension(f"stage{s}.block{b}.expand_ratio", self.expand_ratios, requires))
        return tuple(dimensions)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        act, stride = self.act, self.stem_stride

        def stem(resolution: int, mid: int) -> BlockSpec:
            return BlockSpec("conv", 3, mid, resolution, kernel_size=3, stride=stride, act=act)

        def stem_residual(resolution: int, depth: int, mid: int) -> BlockSpec | None:
            spec = BlockSpec("conv", mid, mid, shrunk(resolution, stride), kernel_size=3, act=act, shortcut="identity")
            return spec if depth else None

        def stem_out(resolution: int, mid: int, out: int) -> BlockSpec:
            return BlockSpec("conv", mid, out, shrunk(resolution, stride), kernel_size=3, act=act)

        def max_pool(resolution: int, out: int) -> BlockSpec:
            return BlockSpec("maxpool", out, out, shrunk(resolution, stride), kernel_size=3, stride=2)

        slots = [
            Slot("stem", ("resolution", "stem.mid.width"), stem),
            Slot("stem_residual", ("resolution", "stem.depth", "stem.mid.width"), stem_residual),
            Slot("stem_out", ("resolution", "stem.mid.width", "stem.out.width"), stem_out),
        ]
        if self.max_pool:
            slots.append(Slot("stem_pool", ("resolution", "stem.out.width"), max_pool))
        shrink = stride * (2 if self.max_pool else 1)
        before = "stem.out.width"
        for s, stage in enumerate(self.stages, 1):
            width = f"stage{s}.width"
            for b in range(stage.depths[-1]):
                names = ("resolution", f"stage{s}.depth", f"stage{s}.block{b}.expand_ratio", before, width)
                slots.append(Slot(f"stage{s}_block{b}", names, _choose_bottleneck(b, stage.stride, shrink, act), stage=s))
                before, shrink = width, shrink * (stage.stride if b == 0 else 1)
        final, classes = shrink, self.num_classes
        slots.append(
            Slot("pool", ("resolution", before), lambda resolution, w: BlockSpec("pool", w, w, shrunk(resolution, final)))
        )
        slots.append(Slot("classifier", (before,), lambda w: BlockSpec("linear", w, classes, 1, bias=True)))
        return tuple(slots)


def _choose_bottleneck(index: int, stride: int, shrink: int, act: str) -> Callable[..., BlockSpec | None]:
    def choose(resolution: int, depth: int, expand_ratio: float, in_width: int, width: int) -> BlockSpec | None:
        if index >= depth:
            return None
        return BlockSpec(
            "bottleneck",
            in_width,
            width,
            shrunk(resolution, shrink),
            kernel_size=3,
            stride=stride if index == 0 else 1,
            hidden_channels=make_divisible(round(width * expand_ratio)),
            act=act,
            # a stage's first block has the projection even where two widths are equal: all of them share its weights
            shortcut="pool_conv_bn" if index == 0 else "identity",
        )

    return choose
