"""A block as numbers: what fixes its weights' shapes and its cost. This module needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ofa.errors import OfaError

# What is added to a block's branch. Each holds the weights of those before it.
# identity       the input (Sandler et al. 2018, section 3.3)
# pool           the input averaged over stride x stride pixels, zeros around an odd side (AttentiveNAS)
# pool_conv      the same, where the stride is above 1, then a 1x1 convolution without BatchNorm (AttentiveNAS)
# pool_conv_bn   averaged over stride x stride pixels, fewer at the end of an odd side, then a 1x1 convolution
#                and BatchNorm (ResNet-D: He et al. 2019, arXiv 1812.01187, section 4.2)
SHORTCUTS = ("none", "identity", "pool", "pool_conv", "pool_conv_bn")


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """Everything that fixes a block's weights' shape and its cost: the key of a latency table."""

    kind: str  # an entry of ofa.blocks.KINDS
    in_channels: int
    out_channels: int
    resolution: int  # height and width of the input, pixels
    kernel_size: int = 1
    stride: int = 1
    hidden_channels: int = 0  # expanded width of an mbconv, narrow width of a bottleneck
    act: str = "none"
    se: bool = False
    bias: bool = False
    shortcut: str = "none"  # one of SHORTCUTS
    num_inputs: int = 1  # tensors that a sum reads, each with in_channels; a concat reads any number, in_channels together
    kernel_width: int = 0  # of a kernel that is not square, kernel_size high; 0 = it is square
    padded: int = 0  # height and width after zero padding, pixels, of a pad block
    weight_bits: int = 0  # of weights in training and in the file; 0 = whatever the file has
    activation_bits: int = 0  # likewise, of what convolutions take
    squeezed: int = 0  # channels inside squeeze-and-excitation; 0 = a quarter of the hidden ones, in steps of eight

    @property
    def out_resolution(self) -> int:
        """Height and width of the output, pixels, with "same" padding."""
        if self.kind == "pad":
            return self.padded
        return 1 if self.kind in ("pool", "linear") else (self.resolution - 1) // self.stride + 1

    def __str__(self) -> str:
        parts = [self.kind, f"{self.in_channels}->{self.out_channels}"]
        if self.hidden_channels:
            parts.append(f"hidden {self.hidden_channels}")
        if self.kind not in ("pool", "linear"):
            parts.append(f"k{self.kernel_size}{f'x{self.kernel_width}' if self.kernel_width else ''} s{self.stride}")
        parts += [word for word in (self.act, self.shortcut) if word != "none"]
        parts += [f"se{self.squeezed or ''}"] if self.se else []
        parts += [f"of {self.num_inputs}"] if self.num_inputs != 1 else []
        parts += [f"to {self.padded}"] if self.padded else []
        parts += [f"w{self.weight_bits} a{self.activation_bits}"] if self.weight_bits else []
        return " ".join([*parts, f"r{self.resolution}"])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: object) -> BlockSpec:
        """Read a spec back from JSON.

        Raises:
            OfaError: if a field is missing, unknown or of the wrong type.
        """
        if not isinstance(value, dict):
            raise OfaError(f"block {value!r}: expected an object with the fields of a BlockSpec")
        types = {"kind": str, "act": str, "shortcut": str, "se": bool, "bias": bool}
        names = {field.name for field in fields(cls)}
        for name, item in value.items():
            if name not in names or type(item) is not types.get(name, int):
                raise OfaError(f"block {value!r}: field {name!r} = {item!r} is not one of a BlockSpec's ({sorted(names)})")
        try:
            return cls(**value)
        except TypeError as error:
            raise OfaError(f"block {value!r}: {error}") from None


def takes_bits(path: str) -> bool:
    """Tell whether a layer at this path in a block has the block's bits; squeeze-and-excitation has none.

    The few weights of a gate decide over whole channels.
    """
    return "se" not in path.split(".")


def padding(spec: BlockSpec) -> tuple[int, int]:
    """Return the rows of zeros before and after those of a pad block's input, and columns likewise: what it reads is centred."""
    missing = spec.padded - spec.resolution
    return missing // 2, missing - missing // 2


IMAGES = "images"  # what the first block of a network reads


class Blocks(dict[str, BlockSpec]):
    """The named blocks of a network in execution order, and what they read.

    `reads` names, for every block that does not simply read the one before it, the blocks whose outputs it takes. Any other
    mapping of names to blocks is a chain.
    """

    def __init__(self, blocks: Mapping[str, BlockSpec], reads: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(blocks)
        self.reads = dict(reads)


def wiring(blocks: Mapping[str, BlockSpec]) -> dict[str, tuple[str, ...]]:
    """Return for every block the names of what it reads: blocks before it, or IMAGES.

    Raises:
        OfaError: if a block reads what does not come before it, or more or fewer tensors than it joins.
    """
    given = blocks.reads if isinstance(blocks, Blocks) else {}
    wires: dict[str, tuple[str, ...]] = {}
    before = IMAGES
    for name, spec in blocks.items():
        # a joining block that stands alone, as when it is timed, reads its one input several times
        wires[name] = tuple(given.get(name, (before,) * spec.num_inputs))
        unknown = next((source for source in wires[name] if source not in wires and source != IMAGES), None)
        if unknown is not None or name in wires[name]:
            raise OfaError(f"block {name!r} reads {unknown or name!r}, which is none of the blocks before it")
        if len(wires[name]) != spec.num_inputs and spec.kind != "concat":
            raise OfaError(f"block {name!r} reads {len(wires[name])} tensors, expected {spec.num_inputs} ({spec})")
        before = name
    if extra := sorted(set(given) - set(wires)):
        raise OfaError(f"what block {extra[0]!r} reads is given, but there is no such block")
    return wires


def last_readers(wires: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Return for every block what it is the last to read, so that whoever runs a network can let go of it.

    What nothing reads, the output of a node of a cell that leads nowhere, is let go of at once.
    """
    last = {name: name for name in list(wires)[:-1]} | {source: name for name, sources in wires.items() for source in sources}
    done: dict[str, list[str]] = {name: [] for name in wires}
    for source, name in last.items():
        done[name].append(source)
    return done
