"""ShuffleNet-like spaces: a block is one of four choices, and may have a choice of its width and of its bits too.

The supernet holds weights of its own for every choice; narrower branches are the first channels of the widest, and all bit widths
share them. Source: Guo et al. 2020 (Single Path One-Shot, arXiv 1904.00420), sections 3.4 and 4, and the numbers of its release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.numbered_space import NumberedSpace, Numbers
from ofa.slots import fixed, shrunk
from ofa.space import Dimension, Slot

CHOICES = {"shuffle3": ("shuffle", 3), "shuffle5": ("shuffle", 5), "shuffle7": ("shuffle", 7), "xception": ("xception", 3)}
STEMS = {"imagenet": (2, 2), "cifar": (1, 1)}  # -> strides of the first convolution and of the first stage
STAGES = ((1, 4), (1, 10), (2, 20), (1, 40))  # (blocks, width), times the numbers `blocks` and `channels`
FINAL_WIDTH = 64  # of the last convolution, likewise
MOST_SIDE_PX = 2048


@dataclass(frozen=True)
class ShuffleNetSpace(NumberedSpace):
    """A ShuffleNet-like space as numbers; as it comes 20 blocks of widths 64, 160, 320 and 640, for 224 px.

    A choice block's widest branch has half of the block's output channels times its scale. The stem "cifar" has neither a stride
    in the first convolution nor one in the first stage: 32 px end as 4. Its numbers are the resolution, the stem, the channels
    of the first convolution (all other widths in proportion) and the blocks of the first stage (the others in proportion).
    """

    NUMBERS: ClassVar = {"resolution": "resolution_px", "stem": "stem", "channels": "channels", "blocks": "first_blocks"}

    base: str
    scales: tuple[float, ...] = (1.0,)  # of a branch's width, smallest first; one of them is no choice
    bit_pairs: tuple[tuple[int, int], ...] = ()  # bits of (weights, activations) of a block, cheapest first; () = no choice
    resolution_px: int = 224
    stem: str = "imagenet"
    channels: int = 16  # of the first convolution; all widths are multiples of it
    first_blocks: int = 4  # blocks of the first stage; all depths are multiples of it
    num_classes: int = 1000
    bn_eps: float = 1e-5
    kernel_transforms: bool = False
    usual: Numbers = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stem not in STEMS:
            raise OfaError(f"{self.base}: stem is {self.stem!r}, expected {' or '.join(STEMS)}")
        if self.channels < 2 or self.channels % 2:
            raise OfaError(f"{self.base}: channels is {self.channels}, expected an even number")
        if self.first_blocks < 1:
            raise OfaError(f"{self.base}: blocks is {self.first_blocks}, expected at least 1")
        if not 8 <= self.resolution_px <= MOST_SIDE_PX:
            raise OfaError(f"{self.base}: resolution is {self.resolution_px}, expected 8 to {MOST_SIDE_PX} px")
        if not self.scales or min(self.scales) <= 0:
            raise OfaError(f"{self.base}: scales are {self.scales}, expected numbers above 0")

    def weight_group(self, spec: BlockSpec) -> str:
        """A choice is a group: it shares no weights with the others, but its widths and bits share theirs."""
        return next((name for name, block in CHOICES.items() if block == (spec.kind, spec.kernel_size)), spec.kind)

    @property
    def num_blocks(self) -> int:
        """Choice blocks of a network."""
        return self.first_blocks * sum(number for number, _ in STAGES)

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        found = [Dimension("resolution", (self.resolution_px,))]
        for block in range(self.num_blocks):
            found.append(Dimension(f"block{block}.choice", tuple(CHOICES)))
            if len(self.scales) > 1:
                found.append(Dimension(f"block{block}.scale", self.scales))
            if self.bit_pairs:
                found.append(Dimension(f"block{block}.bits", tuple(self.bits)))
        return tuple(found)

    @cached_property
    def bits(self) -> dict[str, tuple[int, int]]:
        """Option of a dimension "bits" -> bits of weights and activations."""
        return {f"w{weight}a{activation}": (weight, activation) for weight, activation in self.bit_pairs}

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        shrink, first_stride = STEMS[self.stem]
        width = self.channels
        slots = [fixed("stem", "conv", 3, width, 1, kernel_size=3, stride=shrink, act="relu")]
        for stage, (number, multiple) in enumerate(STAGES):
            for place in range(self.first_blocks * number):
                stride = 1 if place else 2 if stage else first_stride
                slots.append(self._slot(len(slots) - 1, (width, multiple * self.channels), shrink, stride))
                width, shrink = multiple * self.channels, shrink * stride
        final = FINAL_WIDTH * self.channels
        slots.append(fixed("final", "conv", width, final, shrink, act="relu"))
        slots.append(fixed("pool", "pool", final, final, shrink))
        slots.append(fixed("classifier", "linear", final, self.num_classes, None))
        return tuple(slots)

    def _slot(self, block: int, widths: tuple[int, int], shrink: int, stride: int) -> Slot:
        names = ["choice", *(["scale"] if len(self.scales) > 1 else []), *(["bits"] if self.bit_pairs else [])]
        depends_on = ("resolution", *(f"block{block}.{name}" for name in names))
        return Slot(f"block{block}", depends_on, self._choose(tuple(names), widths, shrink, stride))

    def _choose(self, names: tuple[str, ...], widths: tuple[int, int], shrink: int, stride: int) -> Callable[..., BlockSpec]:
        def choose(resolution: int, *values: Any) -> BlockSpec:
            chosen = dict(zip(names, values, strict=True))
            kind, kernel_size = CHOICES[chosen["choice"]]
            weight_bits, activation_bits = self.bits[chosen["bits"]] if "bits" in chosen else (0, 0)
            return BlockSpec(
                kind,
                *widths,
                shrunk(resolution, shrink),
                kernel_size=kernel_size,
                stride=stride,
                hidden_channels=branch_width(widths[1], chosen.get("scale", self.scales[0])),
                act="relu",
                weight_bits=weight_bits,
                activation_bits=activation_bits,
            )

        return choose


def branch_width(out_channels: int, scale: float) -> int:
    """Middle channels of a branch, rounded down as in the release (but 126 are no 125.99), at least 1."""
    return max(1, int(round(out_channels // 2 * scale, 6)))


def branch_channels(spec: BlockSpec) -> tuple[int, int]:
    """Channels that the branch of a choice block reads and writes; what is handed on or projected has the rest of the output."""
    branch_in = spec.in_channels if spec.stride > 1 else spec.in_channels // 2
    return branch_in, spec.out_channels - branch_in
