"""What families of spaces share: the rounding of channels, resolutions after strides, and slots that nothing elastic decides."""

from __future__ import annotations

from ofa.block_spec import BlockSpec
from ofa.space import Slot


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, one higher if that would lose more than a tenth (the MobileNet rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def se_channels(spec: BlockSpec) -> int:
    """Squeezed width of squeeze-and-excitation (Howard et al. 2019, section 5.3: a quarter of the expanded width)."""
    return spec.squeezed or make_divisible(spec.hidden_channels // 4)


def shrunk(resolution: int, factor: int) -> int:
    """Resolution after strides with the product `factor`: "same" padding rounds up at each, which equals rounding up once."""
    return -(-resolution // factor)


def fixed(name: str, kind: str, in_channels: int, out_channels: int, shrink: int | None, **fields: object) -> Slot:
    """A slot whose block depends on the resolution only (shrink = None: on nothing, after pooling)."""
    if shrink is None:
        return Slot(name, (), lambda: BlockSpec(kind, in_channels, out_channels, 1, **fields))  # type: ignore[arg-type]
    return Slot(
        name,
        ("resolution",),
        lambda resolution: BlockSpec(kind, in_channels, out_channels, shrunk(resolution, shrink), **fields),  # type: ignore[arg-type]
    )


def requires_depth(stage: str, depths: tuple[int, ...], block: int) -> tuple[str, int] | None:
    """Condition under which the block with this index stands: the stage's depth is at an option that holds it."""
    deep_enough = next(i for i, depth in enumerate(depths) if depth > block)
    return (f"{stage}.depth", deep_enough) if deep_enough else None
