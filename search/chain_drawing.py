"""Drawings of chains with skip connections: layers in a row, and above them an arc for everything that is read from further back.

For ENAS' macro networks and those of NAS with reinforcement learning, whose layers read several of those before them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ofa.artefacts import write_bytes
from ofa.conv_chain_space import ConvChainSpace
from ofa.macro_space import MacroSpace
from ofa.space import ArchConfig, SearchSpace, Value
from search.cell_drawing import BOX, operation_class, words
from search.plots import WIDE_CHAR, element

GAP, LEFT, TOP, LINE = 26, 10, 16, 16  # px, between boxes; margins; height of a line in a box
STEP = 11  # px that an arc rises for each layer that it passes
STYLE = """svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#1a1f24}.wire{fill:none;stroke:#59636e;stroke-width:1.5}
.op{stroke:#59636e;fill:#fff}.op.conv{fill:#9bd0f0}.op.pool{fill:#dde2e7}.op.function{fill:#9bd0f0}
.state{stroke:#1a1f24;stroke-width:1.5;fill:#dde2e7}.shrink{stroke:#59636e;stroke-dasharray:3 3}"""


@dataclass(frozen=True, slots=True)
class Layer:
    """What is drawn of a layer."""

    lines: tuple[str, ...]  # in its box
    style: str  # CSS class of its operation
    reads: tuple[int, ...]  # states: 0 is the input, i the output of layer i - 1
    halves: bool = False  # whether the resolution falls behind it


@dataclass(frozen=True, slots=True)
class Chain:
    """A network as it is drawn."""

    input: str
    layers: tuple[Layer, ...]
    output: str
    reads: tuple[int, ...]  # states that the output is made of

    def sentences(self) -> list[str]:
        """Say in words what each layer reads, for those who do not see the drawing."""

        def name(state: int) -> str:
            return f"layer {state}" if state else self.input

        found = [
            f"layer {number}: {' '.join(layer.lines)}, reads {', '.join(map(name, layer.reads))}"
            for number, layer in enumerate(self.layers, 1)
        ]
        return [*found, f"{self.output} reads {', '.join(map(name, self.reads))}"]


def chain_of(space: SearchSpace, arch: ArchConfig) -> Chain | None:
    """Return what to draw of an architecture; None if its space is no chain with skip connections."""
    values = dict(zip(space.column, space.check(arch).values, strict=True))
    if isinstance(space, MacroSpace):
        return _macro(space, values)
    return _convolutions(values) if isinstance(space, ConvChainSpace) else None


def _macro(space: MacroSpace, values: Mapping[str, Value]) -> Chain:
    layers = []
    for number in range(space.layers):
        operation = str(values[f"layer{number}.op"])
        skips = (source for source in range(number) if values[f"layer{number}.skip{source}"])
        layers.append(Layer((words(operation),), operation_class(operation), (number, *skips), number in space.reductions))
    return Chain("stem", tuple(layers), "pool", (space.layers,))


def _convolutions(values: Mapping[str, Value]) -> Chain:
    layers: list[Layer] = []
    for number in range(int(values["depth"])):
        height, width, stride, filters = (
            values[f"layer{number}.{part}"] for part in ("filter_height", "filter_width", "stride", "filters")
        )
        reads = tuple(source + 1 for source in range(number) if values[f"layer{number}.from{source}"])
        lines = (f"{height}×{width}", f"{filters} ch", *([f"stride {stride}"] if stride != 1 else []))
        layers.append(Layer(lines, "conv", reads or (0,), stride != 1))
    read = {state for layer in layers for state in layer.reads}
    return Chain("image", tuple(layers), "pool", tuple(s for s in range(1, len(layers) + 1) if s not in read))


def draw_chain(chain: Chain) -> Markup:
    """Draw a chain as inline SVG of fixed size, coloured by the page's classes."""
    drawn, width, height = _drawn(chain)
    size = {"width": f"{width:g}", "height": f"{height:g}", "viewBox": f"0 0 {width:g} {height:g}"}
    return element("svg", *drawn, class_="cell", role="img", aria_label="; ".join(chain.sentences()), **size)


def write_chain(path: Path, space: SearchSpace, arch: ArchConfig) -> None:
    """Write the drawing of an architecture as an SVG file that needs nothing else.

    Raises:
        ValueError: if its space is no chain with skip connections.
    """
    chain = chain_of(space, arch)
    if chain is None:
        raise ValueError(f"{space.name} has no chains to draw")
    drawn, width, height = _drawn(chain)
    view = {"width": f"{width:g}", "height": f"{height:g}", "viewBox": f"0 0 {width:g} {height:g}"}
    style, label = Markup("<style>{}</style>").format(Markup(STYLE)), "; ".join(chain.sentences())
    svg = element("svg", style, *drawn, xmlns="http://www.w3.org/2000/svg", role="img", aria_label=label, **view)
    write_bytes(path, f"{svg}\n".encode())


def _drawn(chain: Chain) -> tuple[list[Markup], float, float]:
    """Return the parts of a drawing, its width and its height."""
    boxes = [
        ((chain.input,), "state"),
        *((layer.lines, f"op {layer.style}") for layer in chain.layers),
        ((chain.output,), "state"),
    ]
    reads = [layer.reads for layer in chain.layers] + [chain.reads]
    furthest = max((to - source for to, sources in enumerate(reads, 1) for source in sources), default=1)
    top = TOP + STEP * furthest  # of the boxes
    most = max(len(lines) for lines, _ in boxes)
    tall = max(BOX, LINE * most + 8)
    lefts, x = [], float(LEFT)
    wide = [max(WIDE_CHAR * max(map(len, lines)) + 14, 46) for lines, _ in boxes]
    for width in wide:
        lefts.append(x)
        x += width + GAP
    parts: list[Markup] = []
    for to, sources in enumerate(reads, 1):
        for source in sources:
            begin, end = lefts[source] + wide[source], lefts[to]
            if to - source == 1:
                parts.append(element("path", class_="wire", d=f"M{begin:.5g} {top + tall / 2:.5g}H{end:.5g}"))
                continue
            # arcs leave a box at the right of its upper side and arrive at the left of another's
            start, stop, rise = begin - 8, end + 8, STEP * (to - source) * 4 / 3
            curve = f"M{start:.5g} {top:.5g}C{start:.5g} {top - rise:.5g} {stop:.5g} {top - rise:.5g} {stop:.5g} {top:.5g}"
            parts.append(element("path", class_="wire", d=curve))
    for state, (lines, style) in enumerate(boxes):
        tip = element("title", f"layer {state}" if 0 < state <= len(chain.layers) else lines[0])
        parts.append(
            element("rect", tip, class_=style, x=lefts[state], y=float(top), width=wide[state], height=float(tall), rx=5.0)
        )
        for row, line in enumerate(lines):
            y = top + tall / 2 + LINE * (row - (len(lines) - 1) / 2) + 4
            parts.append(element("text", line, x=lefts[state] + wide[state] / 2, y=float(y), text_anchor="middle"))
    for state, layer in enumerate(chain.layers, 1):
        if layer.halves:
            middle = lefts[state] + wide[state] + GAP / 2
            parts.append(element("line", class_="shrink", x1=middle, x2=middle, y1=float(top - 8), y2=float(top + tall + 8)))
    return parts, x - GAP + LEFT, top + tall + TOP
