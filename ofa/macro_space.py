"""ENAS' macro space: a chain of layers, each with an operation and skip connections from layers before the last one.

A layer works on the output of the layer before it; skip connection j of a layer brings the output of layer j - 1, number 0 that
of the stem. What is skipped to is stacked with the operation's result and mixed by a 1x1 convolution. After a third and two
thirds of the layers everything that later layers may read is halved in resolution. Source: Pham et al. 2018 (ENAS, arXiv
1802.03268), section 2.3, and its code: ReLU before and BatchNorm after every convolution, a 1x1 convolution before every
operation.

Networks of shared weights differ. The released one adds skips, then normalises (`join=add`), and its channels do not grow
(`growth=1`). With `join=conv` the 1x1 convolution takes everything that could be skipped to, with zeros for what is not: so
that each has weights of its own there, where shared weights of `join=concat` would go by its place among those that are skipped
to. Released final networks have full convolutions in place of separable ones (`separable=no`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

from ofa.block_spec import BlockSpec
from ofa.cell_edges import spec_of
from ofa.errors import OfaError
from ofa.numbered_space import NumberedSpace, Numbers
from ofa.slots import fixed
from ofa.space import Dimension, Slot, Value

OPERATIONS = {  # -> kind of block, kernel size
    "avg_pool_3x3": ("avgpool", 3),
    "max_pool_3x3": ("maxpool", 3),
    "sep_conv_3x3": ("relu_sep", 3),
    "sep_conv_5x5": ("relu_sep", 5),
    "conv_3x3": ("relu_conv", 3),
    "conv_5x5": ("relu_conv", 5),
}
WORDS = {"join": ("concat", "add", "conv"), "separable": ("yes", "no")}


@dataclass(frozen=True)
class MacroSpace(NumberedSpace):
    """The macro space as numbers."""

    NUMBERS: ClassVar = {
        "layers": "layers",
        "channels": "channels",
        "resolution": "resolution_px",
        "growth": "growth",
        "join": "join",
        "separable": "separable",
    }

    base: str = "enas_macro"
    layers: int = 12
    channels: int = 36  # of the first layers
    resolution_px: int = 32
    growth: int = 2  # of channels where the resolution is halved
    join: str = "concat"  # how skip connections meet the operation's result
    separable: str = "yes"
    num_classes: int = 10
    bn_eps: float = 1e-5
    kernel_transforms: bool = False
    usual: Numbers = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("layers", 3), ("channels", 2), ("growth", 1)):
            if getattr(self, name) < least:
                raise OfaError(f"{self.base}: {name} is {getattr(self, name)}, expected at least {least}")
        if self.channels % 2:
            raise OfaError(f"{self.base}: channels is {self.channels}, expected an even number")
        if self.resolution_px < 4 or self.resolution_px % 4:
            raise OfaError(f"{self.base}: resolution is {self.resolution_px}, expected a multiple of 4 px")
        for name, words in WORDS.items():
            if getattr(self, name) not in words:
                raise OfaError(f"{self.base}: {name} is {getattr(self, name)!r}, expected {' or '.join(words)}")

    def weight_group(self, spec: BlockSpec) -> str:
        """Operations share no weights, kernel sizes neither."""
        return f"{spec.kind}{spec.kernel_size}"

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        return tuple(self._dimensions())

    def _dimensions(self) -> Iterator[Dimension]:
        yield Dimension("resolution", (self.resolution_px,))
        for layer in range(self.layers):
            yield Dimension(f"layer{layer}.op", tuple(OPERATIONS))
            for source in range(layer):
                yield Dimension(f"layer{layer}.skip{source}", (0, 1))

    @property
    def reductions(self) -> tuple[int, int]:
        """After which layers the resolution is halved."""
        return self.layers // 3 - 1, 2 * (self.layers // 3) - 1

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        slots = [fixed("stem", "conv", 3, self.channels, 1, kernel_size=3)]
        channels, resolution = self.channels, self.resolution_px
        outputs = ["stem"]  # the blocks that hold the outputs of the stem and of the layers so far, at this resolution
        for layer in range(self.layers):
            slots += self._layer(layer, channels, resolution, outputs)
            outputs.append(f"layer{layer}")
            if layer in self.reductions:
                number = 1 + self.reductions.index(layer)
                spec = spec_of("factorized_reduce", channels, self.growth * channels, resolution, stride=2)
                waiting = len(outputs) * channels * resolution**2
                for place, output in enumerate(outputs):
                    name = f"{output.partition('_')[0]}_half{number}"
                    slots.append(Slot(name, (), lambda spec=spec: spec, reads=_always(output), waiting=waiting))
                    outputs[place] = name
                channels, resolution = self.growth * channels, resolution // 2
        pool = spec_of("pool", channels, channels, resolution)
        slots.append(Slot("pool", (), lambda: pool, reads=_always(outputs[-1])))
        slots.append(fixed("classifier", "linear", channels, self.num_classes, None))
        return tuple(slots)

    def _layer(self, layer: int, channels: int, resolution: int, outputs: list[str]) -> list[Slot]:
        """The blocks of one layer; `outputs`: of the stem and the layers before it."""
        waiting = layer * channels * resolution**2
        narrow = spec_of("relu_conv", channels, channels, resolution)
        inner = f"layer{layer}_op" if layer else "layer0"
        slots = [
            Slot(f"layer{layer}_in", (), lambda: narrow, reads=_always(outputs[-1]), waiting=waiting),
            Slot(inner, (f"layer{layer}.op",), partial(self._operation, channels, resolution), waiting=waiting),
        ]
        if layer == 0:
            return slots
        skips = tuple(f"layer{layer}.skip{source}" for source in range(layer))

        def reads(*bits: Value) -> tuple[str, ...]:
            return (inner, *(output for output, bit in zip(outputs_then, bits, strict=True) if bit))

        outputs_then = outputs[:-1]
        if self.join == "conv":
            return [*slots, *_all_mixed(f"layer{layer}", inner, outputs_then, skips, channels, resolution, waiting)]
        join, last = (_stacked, _mixed) if self.join == "concat" else (_added, _normalised)
        size = channels, resolution
        return [
            *slots,
            Slot(f"layer{layer}_join", skips, partial(join, *size), reads=reads, waiting=waiting),
            Slot(f"layer{layer}", skips if self.join == "concat" else (), partial(last, *size), waiting=waiting),
        ]

    def _operation(self, channels: int, resolution: int, operation: str) -> BlockSpec:
        kind, kernel_size = OPERATIONS[operation]
        full = kind == "relu_sep" and self.separable == "no"
        return spec_of("relu_conv" if full else kind, channels, channels, resolution, kernel_size=kernel_size)


def _all_mixed(
    name: str, inner: str, outputs: list[str], skips: tuple[str, ...], channels: int, resolution: int, waiting: int
) -> list[Slot]:
    """What mixes a layer's result with all outputs that it may skip to, zeros instead of those that it does not."""
    width = (1 + len(outputs)) * channels
    zeros = spec_of("zeros", channels, channels, resolution)
    stacked, mixed = spec_of("concat", width, width, resolution), spec_of("relu_conv", width, channels, resolution)

    def reads(*bits: Value) -> tuple[str, ...]:
        return (inner, *(output if bit else f"{name}_nothing" for output, bit in zip(outputs, bits, strict=True)))

    waiting += channels * resolution**2
    return [
        Slot(f"{name}_nothing", (), lambda: zeros, reads=_always(inner), waiting=waiting),
        Slot(f"{name}_join", (), lambda: stacked, reads=reads, reads_on=skips, waiting=waiting),
        Slot(name, (), lambda: mixed, waiting=waiting),
    ]


def _stacked(channels: int, resolution: int, *bits: int) -> BlockSpec:
    return spec_of("concat", (1 + sum(bits)) * channels, (1 + sum(bits)) * channels, resolution)


def _mixed(channels: int, resolution: int, *bits: int) -> BlockSpec:
    return spec_of("relu_conv", (1 + sum(bits)) * channels, channels, resolution)


def _added(channels: int, resolution: int, *bits: int) -> BlockSpec:
    return spec_of("sum", channels, channels, resolution, num_inputs=1 + sum(bits))


def _normalised(channels: int, resolution: int) -> BlockSpec:
    return spec_of("norm", channels, channels, resolution)


def _always(output: str) -> Callable[..., tuple[str, ...]]:
    return lambda *_: (output,)
