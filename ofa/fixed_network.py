"""Networks of inverted residual blocks as their papers print them: spaces of one network, whose only number is the input size.

A network that somebody found is a space like any other, with nothing left to choose, so that training, profiling, export and
verification work on it by its name. Its file in ofa/spaces/ holds the rows of the paper's table; this module says how they
become blocks. Sources: Sandler et al. 2018 (MobileNetV2, arXiv 1801.04381, table 2), Howard et al. 2019 (MobileNetV3, 1905.02244,
tables 1 and 2), Tan et al. 2019 (MnasNet, 1807.11626, figure 7), Cai et al. 2019 (ProxylessNAS, 1812.00332, figure 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from ofa.errors import OfaError
from ofa.slots import fixed
from ofa.space import Dimension, SearchSpace, Slot

USUAL_RESOLUTION = 224  # pixels


class Row(NamedTuple):
    """One inverted residual block; it has a shortcut where its input and output are of one shape."""

    kernel_size: int
    hidden: int  # channels between; those of the input = no expansion
    width: int  # channels of the output
    se: bool
    act: str
    stride: int
    squeezed: int = 0  # channels inside squeeze-and-excitation; 0 = a quarter of the hidden ones, in steps of eight


class Stage(NamedTuple):
    """Blocks of one width by their kernel sizes and expand ratios; the first has the stride."""

    width: int
    stride: int
    kernel_sizes: Sequence[int]
    expand_ratios: Sequence[int]
    se: bool = False  # squeezes to a quarter of a block's input channels, as MnasNet does


def rows_of(width: int, act: str, *stages: Stage) -> tuple[Row, ...]:
    """Return the rows of a table of expand ratios.

    Args:
        width: channels that the first block reads.
        act: of all blocks.
    """
    rows = []
    for stage in stages:
        for b, (kernel_size, expand_ratio) in enumerate(zip(stage.kernel_sizes, stage.expand_ratios, strict=True)):
            squeezed = width // 4 if stage.se else 0
            stride = stage.stride if b == 0 else 1
            rows.append(Row(kernel_size, width * expand_ratio, stage.width, stage.se, act, stride, squeezed))
            width = stage.width
    return tuple(rows)


@dataclass(frozen=True)
class FixedNetwork(SearchSpace):
    """A space of one network. Widths are channels, resolutions pixels."""

    base: str  # name without the input size
    stem_width: int  # of a 3x3 convolution with stride 2
    rows: tuple[Row, ...]
    final_width: int  # 1x1 convolution before pooling
    act: str  # of the stem, and of what stands after the rows
    feature_width: int = 0  # linear layer after pooling; 0 = none
    resolution_px: int = USUAL_RESOLUTION
    num_classes: int = 1000
    bn_eps: float = 1e-5
    kernel_transforms: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        """Base name, and the input size if it was changed: "mobilenet_v3_small:resolution=32"."""
        return self.base if self.resolution_px == USUAL_RESOLUTION else f"{self.base}:resolution={self.resolution_px}"

    def with_numbers(self, **numbers: int | str) -> FixedNetwork:
        """Return the same network for images of another size: `resolution`, pixels.

        Raises:
            OfaError: for any other number, or a size that is no positive integer.
        """
        if unknown := sorted(set(numbers) - {"resolution"}):
            raise OfaError(f"{self.base} has no number {unknown[0]!r}; it has: resolution")
        resolution = numbers.get("resolution", self.resolution_px)
        if not isinstance(resolution, int) or resolution < 1:
            raise OfaError(f"{self.base}: resolution is {resolution!r}, expected pixels, such as {USUAL_RESOLUTION}")
        return replace(self, resolution_px=resolution)

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The input size, with one option."""
        return (Dimension("resolution", (self.resolution_px,)),)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """Stem, the rows by stages (a new width or a stride begins one), and the head."""
        slots = [fixed("stem", "conv", 3, self.stem_width, 1, kernel_size=3, stride=2, act=self.act)]
        width, shrink, stage, block = self.stem_width, 2, 0, 0
        for row in self.rows:
            block += 1
            if not stage or row.width != width or row.stride > 1:
                stage, block = stage + 1, 0
            slot = fixed(
                f"stage{stage}_block{block}",
                "mbconv",
                width,
                row.width,
                shrink,
                kernel_size=row.kernel_size,
                stride=row.stride,
                hidden_channels=row.hidden,
                act=row.act,
                se=row.se,
                squeezed=row.squeezed,
                shortcut="identity" if row.stride == 1 and row.width == width else "none",
            )
            slots.append(replace(slot, stage=stage))
            width, shrink = row.width, shrink * row.stride
        slots.append(fixed("final", "conv", width, self.final_width, shrink, act=self.act))
        slots.append(fixed("pool", "pool", self.final_width, self.final_width, shrink))
        width = self.final_width
        if self.feature_width:
            slots.append(fixed("feature", "linear", width, self.feature_width, None, act=self.act, bias=True))
            width = self.feature_width
        slots.append(fixed("classifier", "linear", width, self.num_classes, None, bias=True))
        return tuple(slots)
