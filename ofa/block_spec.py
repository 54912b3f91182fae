"""A block as numbers: what fixes its weights' shapes and its cost. This module needs no torch."""

from __future__ import annotations

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

    @property
    def out_resolution(self) -> int:
        """Height and width of the output, pixels, with "same" padding."""
        return 1 if self.kind in ("pool", "linear") else (self.resolution - 1) // self.stride + 1

    def __str__(self) -> str:
        parts = [self.kind, f"{self.in_channels}->{self.out_channels}"]
        if self.hidden_channels:
            parts.append(f"hidden {self.hidden_channels}")
        if self.kind not in ("pool", "linear"):
            parts.append(f"k{self.kernel_size} s{self.stride}")
        parts += [word for word in (self.act, self.shortcut) if word != "none"]
        parts += ["se"] if self.se else []
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
