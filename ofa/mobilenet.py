"""MobileNetV3-like spaces: a stem, one fixed block, stages of elastic inverted residual blocks, a head.

Every number of a network stands in its space's file; this module only says how the numbers become blocks. Elastic are the
input resolution, the depth of a stage, and the kernel size and expand ratio of each block (Cai et al. 2020, section 3.2).
Sources: Howard et al. 2019 (arXiv 1905.02244), Cai et al. 2020 (arXiv 1908.09791).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from ofa.space import BlockSpec, Dimension, SearchSpace, Slot


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
    """A MobileNetV3-like space as numbers. Widths are channels, resolutions pixels."""

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
    kernel_sizes: tuple[int, ...] = (3, 5, 7)
    expand_ratios: tuple[int, ...] = (3, 4, 6)
    num_classes: int = 1000
    bn_eps: float = 1e-5

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        dimensions = [Dimension("resolution", self.resolutions)]
        for s, stage in enumerate(self.stages, 1):
            dimensions.append(Dimension(f"stage{s}.depth", stage.depths))
            for b in range(stage.depths[-1]):
                deep_enough = next(i for i, depth in enumerate(stage.depths) if depth > b)
                requires = (f"stage{s}.depth", deep_enough) if deep_enough else None
                dimensions.append(Dimension(f"stage{s}.block{b}.kernel_size", self.kernel_sizes, requires))
                dimensions.append(Dimension(f"stage{s}.block{b}.expand_ratio", self.expand_ratios, requires))
        return tuple(dimensions)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        stem, first = self.stem_width, self.first_width
        shrink = self.stem_stride
        slots = [
            _fixed("stem", "conv", 3, stem, 1, kernel_size=3, stride=self.stem_stride, act=self.stem_act),
            _fixed("first", "mbconv", stem, first, shrink, kernel_size=3, hidden_channels=stem, act=self.first_act),
        ]
        width = first
        for s, stage in enumerate(self.stages, 1):
            for b in range(stage.depths[-1]):
                stride = stage.stride if b == 0 else 1
                names = (f"stage{s}.depth", f"stage{s}.block{b}.kernel_size", f"stage{s}.block{b}.expand_ratio")
                choose = _choose_mbconv(b, width, stage, stride, shrink)
                slots.append(Slot(f"stage{s}_block{b}", ("resolution", *names), choose))
                width, shrink = stage.width, shrink * stride
        slots.append(_fixed("final", "conv", width, self.final_width, shrink, act="h_swish"))
        slots.append(_fixed("pool", "pool", self.final_width, self.final_width, shrink))
        width = self.final_width
        if self.feature_width:
            slots.append(_fixed("feature", "linear", width, self.feature_width, None, act="h_swish"))
            width = self.feature_width
        slots.append(_fixed("classifier", "linear", width, self.num_classes, None, bias=True))
        return tuple(slots)


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, one higher if that would lose more than a tenth (the MobileNet rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _shrunk(resolution: int, factor: int) -> int:
    """Resolution after strides with the product `factor`: "same" padding rounds up at each, which equals rounding up once."""
    return -(-resolution // factor)


def _fixed(name: str, kind: str, in_channels: int, out_channels: int, shrink: int | None, **fields: object) -> Slot:
    """A slot whose block depends on the resolution only (shrink = None: on nothing, after pooling)."""
    if shrink is None:
        return Slot(name, (), lambda: BlockSpec(kind, in_channels, out_channels, 1, **fields))  # type: ignore[arg-type]
    return Slot(
        name,
        ("resolution",),
        lambda resolution: BlockSpec(kind, in_channels, out_channels, _shrunk(resolution, shrink), **fields),  # type: ignore[arg-type]
    )


def _choose_mbconv(index: int, width: int, stage: Stage, stride: int, shrink: int) -> Callable[..., BlockSpec | None]:
    def choose(resolution: int, depth: int, kernel_size: int, expand_ratio: int) -> BlockSpec | None:
        if index >= depth:
            return None
        return BlockSpec(
            "mbconv",
            width,
            stage.width,
            _shrunk(resolution, shrink),
            kernel_size=kernel_size,
            stride=stride,
            hidden_channels=make_divisible(round(width * expand_ratio)),
            act=stage.act,
            se=stage.se,
        )

    return choose
