"""Drawings of architectures: one row of blocks, as inline SVG, with a row of bars below for each of their costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ofa.artefacts import write_bytes
from ofa.block_spec import BlockSpec
from search.plots import element, shorten

CELL = 56  # px from one block to the next
HALF = 62  # px, half the height of the widest block
MIDDLE = 108  # y of the line that runs through the blocks
BAND, BAR = 92, 48  # px, height of a row of bars with its lettering, and of its longest bar
CHAR = 5.7  # px, mean width of a character at the 10.5 px that drawings are lettered in

KERNELS = {  # kinds of blocks that have one -> what stands before it
    **dict.fromkeys(("conv", "mbconv", "bottleneck", "relu_conv"), ""),
    "sep_conv": "sep",
    "dil_conv": "dil",
    "row_column_conv": "1d",
    "basic": "2 of",
    "shuffle": "",
    "xception": "3 of",
}
STYLE = """svg{background:#fff}text{font:10.5px system-ui,sans-serif;fill:#1a1f24}.flow,.bracket{fill:none;stroke:#59636e}
.shrink{stroke:#59636e;stroke-dasharray:3 3}.hidden{fill-opacity:.3}.k0{fill:#aab3bc}.k3{fill:#56b4e9}.k5{fill:#e69f00}
.k7{fill:#009e73}.se{fill:#fff;stroke:#1a1f24}"""
SHORT = {"factorized_reduce": "reduce", "maxpool": "max", "avgpool": "average"}


@dataclass(frozen=True, slots=True)
class Band:
    """A cost of every block, drawn as bars below a network."""

    title: str
    values: Mapping[str, float]  # by block
    labels: Mapping[str, str]
    longest: float  # value whose bar has the whole height; the same for all drawings that are to be compared


def most_channels(blocks: Mapping[str, BlockSpec]) -> int:
    """Return the largest number of channels in a network: what the heights of a drawing are relative to."""
    return max(max(spec.out_channels, spec.hidden_channels) for spec in blocks.values())


def write_network(path: Path, blocks: Mapping[str, BlockSpec]) -> None:
    """Write a network as an SVG file that needs nothing else."""
    drawn = draw_network(blocks, channels=most_channels(blocks))
    head, _, body = drawn.partition(">")
    style = Markup("<style>{}</style>").format(Markup(STYLE))
    write_bytes(path, f'{head} xmlns="http://www.w3.org/2000/svg">{style}{body}\n'.encode())


def draw_network(blocks: Mapping[str, BlockSpec], *, channels: int, bands: Sequence[Band] = ()) -> Markup:
    """Draw a network from left to right.

    A block's height grows with the square root of its channels (pale: expanded, solid: output), its width with the kernel
    size, which is also its colour. Below stand kernel size, expand ratio, output channels and stride; above, the resolution.

    Args:
        blocks: name -> block in execution order.
        channels: number that fills the whole height; the same for all drawings that are to be compared.
        bands: costs of the blocks, each below its block.
    """
    names, specs = list(blocks), list(blocks.values())
    width, end = CELL * len(specs) + 12, MIDDLE + HALF + 92
    height = end + BAND * len(bands) + (8 if bands else 0)
    parts = [element("line", class_="flow", x1=2, x2=width - 2, y1=MIDDLE, y2=MIDDLE)]
    parts += [_block(name, spec, 6 + CELL * i, channels) for i, (name, spec) in enumerate(blocks.items())]
    parts += [_bracket(start, end, 26, 18, label, -4) for start, end, label in _runs([f"{s.out_resolution} px" for s in specs])]
    below = MIDDLE + HALF + 68
    parts += [
        _bracket(start, end, below, below + 14, label, 4) for start, end, label in _runs([n.partition("_")[0] for n in names])
    ]
    for i, spec in enumerate(specs):
        if spec.out_resolution < spec.resolution:
            x = 6 + CELL * i
            parts.append(element("line", class_="shrink", x1=x, x2=x, y1=30, y2=MIDDLE + HALF + 4))
    for i, band in enumerate(bands):
        parts += _bars(band, names, end + 8 + BAND * i)
    label = "; ".join([f"{len(specs)} blocks, input {specs[0].resolution} px", *(band.title for band in bands)])
    view = f"0 0 {width} {height}"
    return element("svg", *parts, class_="network", viewBox=view, width=width, height=height, role="img", aria_label=label)


def _block(name: str, spec: BlockSpec, left: float, channels: int) -> Markup:
    kernel = spec.kernel_size if spec.kind in KERNELS else 0
    centre, width = left + CELL / 2, 10 + 4 * kernel
    style = f"k{kernel}" if kernel in (3, 5, 7) else "k0"

    def bar(count: int, class_: str) -> Markup:
        half = max(2.0, HALF * math.sqrt(count / channels))
        return element(
            "rect", class_=f"{class_} {style}", x=centre - width / 2, y=MIDDLE - half, width=width, height=2 * half, rx=2
        )

    parts = [element("title", f"{name}: {spec}")]
    if spec.hidden_channels:
        parts.append(bar(spec.hidden_channels, "hidden"))
    parts.append(bar(spec.out_channels, "solid"))
    if spec.se:
        top = MIDDLE - HALF * math.sqrt(max(spec.hidden_channels, spec.out_channels) / channels)
        parts.append(element("circle", class_="se", cx=centre, cy=top, r=9))
        parts.append(element("text", "SE", class_="se-text", x=centre, y=top + 3, text_anchor="middle"))
    words = [
        f"{KERNELS[spec.kind]} {kernel}×{kernel}".strip() if kernel else SHORT.get(spec.kind, spec.kind),
        f"×{spec.hidden_channels / spec.in_channels:.2g}" if spec.hidden_channels else "",
    ]
    words += [f"{spec.out_channels} ch", f"stride {spec.stride}" if spec.stride > 1 else ""]
    for row, word in enumerate(words):
        if word:
            parts.append(element("text", word, class_="spec", x=centre, y=MIDDLE + HALF + 18 + 14 * row, text_anchor="middle"))
    return element("g", *parts)


def _bars(band: Band, names: Sequence[str], top: float) -> list[Markup]:
    """Draw the bars of a band, each with its value on it, below their blocks."""
    base = top + BAND - 10
    parts = [
        element("text", band.title, class_="band-title", x=6, y=top + 12),
        element("line", class_="axis", x1=6, x2=6 + CELL * len(names), y1=base, y2=base),
    ]
    for i, name in enumerate(names):
        height = BAR * max(0.0, band.values[name]) / band.longest if band.longest > 0 else 0.0
        x, label = 6 + CELL * i, band.labels[name]
        tip = element("title", f"{name}: {label}")
        parts.append(element("rect", tip, class_="cost", x=x + 12, y=base - height, width=CELL - 24, height=height))
        parts.append(element("text", label, class_="spec", x=x + CELL / 2, y=base - height - 4, text_anchor="middle"))
    return parts


def _runs(labels: list[str]) -> list[tuple[int, int, str]]:
    """Return (first, last + 1, label) of equal neighbours."""
    runs, start = [], 0
    for label, group in itertools.groupby(labels):
        end = start + len(list(group))
        runs.append((start, end, label))
        start = end
    return runs


def _bracket(start: int, end: int, line_y: float, text_y: float, label: str, tip: float) -> Markup:
    """A line over the cells [start, end) with its label in the middle, cut to fit."""
    left, right = 6 + CELL * start + 3, 6 + CELL * end - 3
    room = int((right - left + 8) / CHAR)
    text = shorten(label, room)
    path = f"M{left} {line_y - tip}V{line_y}H{right}V{line_y - tip}"
    return element(
        "g",
        element("title", label),
        element("path", class_="bracket", d=path),
        element("text", text, class_="spec", x=(left + right) / 2, y=text_y, text_anchor="middle"),
    )
