"""Drawings of cells: a graph of states from left to right, each operation in a box of its own on the way to its node.

Nodes stand in columns by the longest way from the inputs, and every operation has a row that nothing else is drawn in: lines bend
in the gaps between columns only, so that none runs through a box or a name, whatever the cell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ofa.artefacts import write_bytes
from ofa.formats.nasbench201 import EDGES
from ofa.genotype import USUAL_FIRST, Genotype, Node, RecurrentGenotype
from search.plots import WIDE_CHAR, element

ROW, PAD = 34, 8  # px from one operation to the next; between the rows of two nodes
BOX, LEAST = 24, 74  # px, height of an operation's box; its least width
GAP, JOIN, RADIUS = 54, 26, 14  # px, in which lines bend; from a box to its node; of a node
TOP, LEFT = 14, 10
STYLE = """svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#1a1f24}.title{font-weight:650;font-size:14px}
.wire{fill:none;stroke:#59636e;stroke-width:1.5}.wire.skip{stroke-dasharray:5 4}.state{fill:#fff;stroke:#1a1f24;stroke-width:1.5}
.state.input,.state.output{fill:#dde2e7}.op{stroke:#59636e;fill:#fff}.op.conv{fill:#9bd0f0}.op.dilated{fill:#f3c56b}
.op.pool{fill:#dde2e7}.op.function{fill:#9bd0f0}.op.skip{stroke-dasharray:5 4}"""


@dataclass(frozen=True, slots=True)
class Cell:
    """What is drawn: nodes in order, each with (operation, state that it reads), and the states that the cell hands on."""

    title: str
    inputs: tuple[str, ...]  # names of the states before the first node
    nodes: tuple[Node, ...]
    concat: tuple[int, ...]
    output: str  # what is made of them

    def name(self, state: int) -> str:
        """Return the name of a state."""
        return self.inputs[state] if state < len(self.inputs) else str(state)

    def sentences(self) -> list[str]:
        """Say in words what each node adds up, for those who do not see the drawing."""
        found = []
        for state, node in enumerate(self.nodes, len(self.inputs)):
            terms = " + ".join(f"{words(operation)} of {self.name(source)}" for operation, source in node)
            found.append(f"node {state} = {terms or 'nothing'}")
        return [*found, f"{self.output} of {', '.join(self.name(state) for state in self.concat)}"]


def cells_of(genotype: Genotype | RecurrentGenotype) -> list[Cell]:
    """Return the cells of a genotype, as they are drawn."""
    if isinstance(genotype, RecurrentGenotype):
        nodes = tuple((edge,) for edge in genotype.recurrent)
        first = "x, h" if genotype.first == USUAL_FIRST else f"{genotype.first} of x, h"
        return [Cell("Recurrent cell", (first,), nodes, genotype.concat, "mean")]
    inputs = ("c(k-2)", "c(k-1)")  # outputs of the cell before the last one, and of the last one
    return [
        Cell("Normal cell", inputs, genotype.normal, genotype.normal_concat, "concat"),
        Cell("Reduction cell", inputs, genotype.reduce, genotype.reduce_concat, "concat"),
    ]


def nasbench201_cell(operations: Sequence[str]) -> Cell:
    """Return the cell of NAS-Bench-201 with these operations, in the order of EDGES; `none` is not drawn."""
    wires = list(zip(operations, EDGES, strict=True))
    nodes = [tuple((name, source) for name, (to, source) in wires if to == node and name != "none") for node in (1, 2, 3)]
    return Cell("Cell", ("input",), tuple(nodes), (3,), "output")


def draw_cell(cell: Cell) -> Markup:
    """Draw one cell as inline SVG of fixed size, coloured by the page's classes."""
    drawn, width, height = _drawn(cell)
    label = f"{cell.title}: {'; '.join(cell.sentences())}"
    size = {"width": f"{width:g}", "height": f"{height:g}", "viewBox": f"0 0 {width:g} {height:g}"}
    return element("svg", *drawn, class_="cell", role="img", aria_label=label, **size)


def write_drawing(path: Path, cells: Sequence[Cell]) -> None:
    """Write cells one below the other as an SVG file that needs nothing else."""
    parts, top, width = [Markup("<style>{}</style>").format(Markup(STYLE))], 0.0, 0.0
    for cell in cells:
        drawn, cell_width, cell_height = _drawn(cell)
        heading = element("text", cell.title, class_="title", x=10, y=24)
        moved = element("g", *drawn, transform="translate(0 32)")
        parts.append(element("g", heading, moved, class_="cell", transform=f"translate(0 {top:g})"))
        top, width = top + cell_height + 40, max(width, cell_width)
    label = " ".join(f"{cell.title}: {'; '.join(cell.sentences())}." for cell in cells)
    view = {"width": f"{width:g}", "height": f"{top:g}", "viewBox": f"0 0 {width:g} {top:g}"}
    svg = element("svg", *parts, xmlns="http://www.w3.org/2000/svg", role="img", aria_label=label, **view)
    write_bytes(path, f"{svg}\n".encode())


def words(operation: str) -> str:
    """Write an operation as people read it, e.g. "sep conv 3×3"."""
    return "skip" if operation == "skip_connect" else re.sub(r"(\d)x(?=\d)", r"\1×", operation.replace("_", " "))


def operation_class(operation: str) -> str:
    """Return the CSS class of an operation: conv, dilated, pool, skip, or function (of a recurrent cell)."""
    if operation in ("skip_connect", "identity"):
        return "skip"
    kinds = {"dil_conv": "dilated", "conv": "conv", "pool": "pool"}
    return next((kind for part, kind in kinds.items() if part in operation), "function")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where everything stands, px."""

    box: float  # width of an operation
    head: float  # width of an input
    xs: list[float]  # middle of each state
    ys: list[float]
    rows: list[list[float]]  # for each node the middle of its operations
    below: dict[int, float]  # rows in which inputs pass everything on the way out
    bar: float  # left side of what hands the states on
    height: float

    def leaves(self, state: int) -> float:
        """Return where the lines from a state begin."""
        return self.xs[state] + (self.head / 2 if state < len(self.xs) - len(self.rows) else RADIUS)


def _layout(cell: Cell) -> _Layout:
    first, depth = len(cell.inputs), [0] * len(cell.inputs)
    for node in cell.nodes:
        depth.append(1 + max((depth[source] for _, source in node), default=0))
    box = max(LEAST, *(WIDE_CHAR * len(words(operation)) + 14 for node in cell.nodes for operation, _ in node))
    head = max(WIDE_CHAR * len(name) + 14 for name in cell.inputs)
    column = GAP + box + JOIN + 2 * RADIUS
    rows, centres, y = [], [], float(TOP)
    for node in cell.nodes:
        rows.append([y + ROW * (i + 0.5) for i in range(len(node))])
        centres.append(y + ROW * max(1, len(node)) / 2)
        y += ROW * max(1, len(node)) + PAD
    y = max(y, TOP + ROW * (first + 1) + PAD)  # room for the inputs
    inputs = [TOP + (y - PAD - TOP) * (i + 1) / (first + 1) for i in range(first)]  # over the height
    passing = [state for state in cell.concat if state < first]
    xs = [LEFT + head / 2 if d == 0 else LEFT + head + column * d - RADIUS for d in depth]
    return _Layout(
        box,
        head,
        xs,
        [*inputs, *centres],
        rows,
        {state: y + ROW * (i + 0.5) for i, state in enumerate(passing)},
        LEFT + head + column * max(depth) + GAP,
        y + ROW * len(passing) + TOP - PAD,
    )


def _drawn(cell: Cell) -> tuple[list[Markup], float, float]:
    """Return the parts of a drawing, its width and its height."""
    at, first = _layout(cell), len(cell.inputs)
    wires: list[Markup] = []
    boxes: list[Markup] = []
    for state, (node, rows) in enumerate(zip(cell.nodes, at.rows, strict=True), first):
        left = at.xs[state] - RADIUS - JOIN - at.box
        for (operation, source), row in zip(node, rows, strict=True):
            style = operation_class(operation)
            wires.append(_wire(style, at.leaves(source), at.ys[source], row, left))
            wires.append(_wire(style, left + at.box, row, at.ys[state], at.xs[state] - RADIUS, JOIN))
            tip = element("title", f"{operation}: {cell.name(source)} to node {state}")
            boxes += _box(f"op {style}", left, row - BOX / 2, at.box, BOX, words(operation), tip)
    for state in cell.concat:
        wires.append(_wire("out", at.leaves(state), at.ys[state], at.below.get(state, at.ys[state]), at.bar))
    for state, name in enumerate(cell.inputs):
        boxes += _box("state input", at.xs[state] - at.head / 2, at.ys[state] - BOX / 2, at.head, BOX, name)
    for state in range(first, len(at.xs)):
        boxes += _box("state", at.xs[state] - RADIUS, at.ys[state] - RADIUS, 2 * RADIUS, 2 * RADIUS, str(state), round=RADIUS)
    read = [at.below.get(state, at.ys[state]) for state in cell.concat]
    top, wide = min(read) - RADIUS, WIDE_CHAR * len(cell.output) + 16
    boxes += _box("state output", at.bar, top, wide, max(read) + RADIUS - top, cell.output)
    return [*wires, *boxes], at.bar + wide + LEFT, at.height


def _box(
    style: str, x: float, y: float, width: float, height: float, text: str, *inside: Markup, round: float = 5
) -> tuple[Markup, Markup]:
    """A box, or a circle, with its name in the middle."""
    return (
        element("rect", *inside, class_=style, x=x, y=y, width=float(width), height=float(height), rx=float(round)),
        element("text", text, class_=f"on-{style}", x=x + width / 2, y=y + height / 2 + 4, text_anchor="middle"),
    )


def _wire(style: str, x: float, y: float, row: float, end: float, turn: float = GAP) -> Markup:
    """A line that turns to a row within the first pixels and goes on along it."""
    middle, turned = x + turn / 2, x + turn
    path = f"M{x:.5g} {y:.5g}C{middle:.5g} {y:.5g} {middle:.5g} {row:.5g} {turned:.5g} {row:.5g}H{end:.5g}"
    return element("path", class_=f"wire {style}", d=path)
