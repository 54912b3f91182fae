"""Networks of convolutions in a row, each of which reads any of those before it: the space of NAS with reinforcement learning.

A layer is a convolution with a kernel that need not be square, BatchNorm and ReLU, in this order, so that BatchNorm folds into
the convolution. What a layer reads is stacked in channels. Any choice of connections is a network, by three rules: a layer that
reads no other reads the images; what no layer reads is stacked before the classifier; where heights differ, smaller tensors are
padded with zeros. Source: Zoph and Le 2017 (arXiv 1611.01578), section 3.3. Deviations: one stride for both sides, since tensors
are square here; global average pooling before the classifier, of which the paper says nothing.

What stands in a place depends on everything before it, which no table can list. So `blocks` and `restrict` are for one
architecture at a time, and what asks for all blocks of the space is refused (SearchSpace.slot_blocks).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import ClassVar, TypeVar

from ofa.block_spec import IMAGES, Blocks, BlockSpec, last_readers, wiring
from ofa.errors import OfaError
from ofa.numbered_space import NumberedSpace, Numbers
from ofa.space import ArchConfig, Dimension, RestrictedSpace, SearchSpace, Slot, Value

KERNEL_SIZES, FILTERS, STRIDES = (1, 3, 5, 7), (24, 36, 48, 64), (1, 2, 3)  # Zoph and Le 2017, section 4.1
DEPTH_STEP = 2  # between depths, as published
LEAST = {"layers": 1, "least_depth": 1, "strides": 1, "resolution": 2}
MAX_LAYERS = 64

T = TypeVar("T")


@dataclass(frozen=True)
class ConvChainSpace(NumberedSpace):
    """The space as numbers."""

    NUMBERS: ClassVar = {"layers": "layers", "least_depth": "least_depth", "strides": "strides", "resolution": "resolution_px"}

    base: str
    layers: int = 15  # at most
    least_depth: int = 6  # layers of the shallowest networks
    strides: int = 1  # how many of STRIDES a layer chooses from
    resolution_px: int = 32
    num_classes: int = 10
    bn_eps: float = 1e-5
    kernel_transforms: bool = False
    usual: Numbers = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in LEAST.items():
            if getattr(self, self.NUMBERS[name]) < least:
                raise OfaError(f"{self.base}: {name} is {self.numbers[name]}, expected at least {least}")
        if self.least_depth > self.layers:
            raise OfaError(f"{self.base}: least_depth is {self.least_depth}, expected at most layers, {self.layers}")
        if self.layers > MAX_LAYERS or self.strides > len(STRIDES):
            raise OfaError(
                f"{self.base}: {self.layers} layers with {self.strides} strides, expected at most {MAX_LAYERS} and {len(STRIDES)}"
            )

    def with_numbers(self, **numbers: int | str) -> ConvChainSpace:
        """Return the same choices in networks of another size; `layers` alone takes the least depth down with it.

        Raises:
            OfaError: for an unknown name or a number that no network can have.
        """
        layers = numbers.get("layers", self.layers)
        if "least_depth" not in numbers and isinstance(layers, int):
            numbers["least_depth"] = min(self.least_depth, max(layers, LEAST["least_depth"]))
        return super().with_numbers(**numbers)

    @property
    def depths(self) -> tuple[int, ...]:
        """Numbers of layers that a network may have."""
        return (*range(self.least_depth, self.layers, DEPTH_STEP), self.layers)

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        return tuple(self._dimensions())

    def _dimensions(self) -> Iterator[Dimension]:
        yield Dimension("resolution", (self.resolution_px,))
        yield Dimension("depth", self.depths)
        for layer in range(self.layers):
            index = next(i for i, depth in enumerate(self.depths) if depth > layer)
            stands = ("depth", index) if index else None
            yield Dimension(f"layer{layer}.filter_height", KERNEL_SIZES, stands)
            yield Dimension(f"layer{layer}.filter_width", KERNEL_SIZES, stands)
            yield Dimension(f"layer{layer}.stride", STRIDES[: self.strides], stands)
            yield Dimension(f"layer{layer}.filters", FILTERS, stands)
            for source in range(layer):
                yield Dimension(f"layer{layer}.from{source}", (0, 1), stands)

    # -- blocks --------------------------------------------------------------------------------------------------------

    def blocks(self, arch: ArchConfig) -> Blocks:
        """Return name -> block of an architecture, in execution order."""
        found = _lay_out(self, self.check(arch).values)
        return Blocks(found, found.reads)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The places for blocks; each depends on every choice."""
        names = [
            *(f"layer{layer}{part}" for layer in range(self.layers) for part in (*_pads(layer), "_concat", "")),
            *(f"head{part}" for part in (*_pads(self.layers), "_concat")),
            *("pool", "classifier"),
        ]
        choices = tuple(self.column)

        def choose(name: str, *values: Value) -> BlockSpec | None:
            return _lay_out(self, values).get(name)

        def reads(name: str, *values: Value) -> tuple[str, ...]:
            return _lay_out(self, values).reads[name]

        return tuple(Slot(name, choices, partial(choose, name), reads=partial(reads, name)) for name in names)

    def restrict(self, arch: ArchConfig) -> SearchSpace:
        """Return the space that holds this one architecture."""
        return _OneNetwork(self, arch)


class _OneNetwork(RestrictedSpace):
    """One architecture, whose blocks depend on nothing any more."""

    def __init__(self, space: ConvChainSpace, arch: ArchConfig) -> None:
        super().__init__(space, arch)
        blocks = space.blocks(arch)
        waiting = _waiting(blocks)
        self._slots = tuple(
            Slot(name, (), partial(_constant, spec), reads=partial(_constant, blocks.reads[name]), waiting=waiting[name])
            for name, spec in blocks.items()
        )

    def with_num_classes(self, num_classes: int) -> SearchSpace:
        return self._whole.with_num_classes(num_classes).restrict(self._arch)


def _constant(value: T) -> T:
    return value


@dataclass
class _Chain:
    """A network as it grows, layer by layer."""

    resolution: int
    blocks: dict[str, BlockSpec] = field(default_factory=dict)
    reads: dict[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> channels, height

    def add(self, name: str, spec: BlockSpec, *sources: str) -> str:
        self.blocks[name], self.reads[name] = spec, sources
        self.outputs[name] = spec.out_channels, spec.out_resolution
        return name

    def stack(self, name: str, layers: list[int]) -> str:
        """Bring the outputs of some layers to the height of the largest and stack them; returns the name of the result."""
        sources = [f"layer{layer}" for layer in layers]
        height = max(self.outputs[source][1] for source in sources)
        for place, layer in enumerate(layers):
            channels, own = self.outputs[sources[place]]
            if own < height:
                pad = BlockSpec("pad", channels, channels, own, padded=height)
                sources[place] = self.add(f"{name}_pad{layer}", pad, sources[place])
        if len(sources) == 1:
            return sources[0]
        channels = sum(self.outputs[source][0] for source in sources)
        return self.add(f"{name}_concat", BlockSpec("concat", channels, channels, height), *sources)


@lru_cache(maxsize=256)  # slots ask for one block at a time
def _lay_out(space: ConvChainSpace, values: tuple[Value, ...]) -> Blocks:
    """Return the blocks of an architecture; not to be changed."""
    chosen = {d.name: value for d, value in zip(space.dimensions, values, strict=True)}
    depth, unread = int(chosen["depth"]), set[int]()
    chain = _Chain(int(chosen["resolution"]))
    chain.outputs[IMAGES] = 3, chain.resolution
    for layer in range(depth):
        name = f"layer{layer}"
        sources = [source for source in range(layer) if chosen[f"{name}.from{source}"]]
        unread = (unread - set(sources)) | {layer}
        read = chain.stack(name, sources) if sources else IMAGES
        channels, height = chain.outputs[read]
        kernel, width = int(chosen[f"{name}.filter_height"]), int(chosen[f"{name}.filter_width"])
        conv = BlockSpec(
            "conv",
            channels,
            int(chosen[f"{name}.filters"]),
            height,
            kernel_size=kernel,
            kernel_width=0 if width == kernel else width,
            stride=int(chosen[f"{name}.stride"]),
            act="relu",
        )
        chain.add(name, conv, read)
    read = chain.stack("head", sorted(unread))
    channels, height = chain.outputs[read]
    pool = chain.add("pool", BlockSpec("pool", channels, channels, height), read)
    chain.add("classifier", BlockSpec("linear", channels, space.num_classes, 1, bias=True), pool)
    return Blocks(chain.blocks, chain.reads)


def _pads(layer: int) -> tuple[str, ...]:
    return tuple(f"_pad{source}" for source in range(layer))


def _waiting(blocks: Blocks) -> dict[str, int]:
    """Return for every block the activations of one image that others have yet to read while it runs."""
    wires = wiring(blocks)
    done = last_readers(wires)
    first = next(iter(blocks.values()))
    live, waiting = {IMAGES: first.in_channels * first.resolution**2}, {}
    for name, spec in blocks.items():
        waiting[name] = sum(size for source, size in live.items() if source not in wires[name])
        live[name] = spec.out_channels * spec.out_resolution**2
        for source in done[name]:
            del live[source]
    return waiting
