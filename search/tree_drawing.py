"""Drawings of recurrent cells that are trees: leaves on the left, level by level to the root on the right, the new hidden state.

A leaf's box tells its steps from top to bottom, among them where the cell state c enters and where it is set.
"""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from ofa.artefacts import write_bytes
from ofa.tree_genotype import TreeGenotype
from search.plots import WIDE_CHAR, element

LINE, MARGIN, GAP, PAD = 16, 10, 44, 10  # px: height of a line; around the drawing; between columns; between boxes
STYLE = """svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#1a1f24}.title{font-weight:650;font-size:14px}
.wire{fill:none;stroke:#59636e;stroke-width:1.5}.op{stroke:#59636e;fill:#9bd0f0}.op.memory{fill:#f3c56b}
.state{stroke:#1a1f24;stroke-width:1.5;fill:#dde2e7}"""
SIGNS = {"add": "+", "elem_mult": "×"}
TITLE = "Recurrent cell"


def steps_of(tree: TreeGenotype, node: int) -> list[str]:
    """Say what a node computes, a line a step: `x` and `h` stand for their products with the leaf's matrices."""
    combine, activation = tree.nodes[node]
    if node >= tree.base:
        return [f"{SIGNS[combine]} {activation}"]
    lines = [f"x {SIGNS[combine]} h" + (" = new c" if node == tree.cell_leaf else ""), activation]
    if node == tree.inject_leaf:
        lines.append(f"{SIGNS[tree.inject[0]]} c {tree.inject[1]}")
    return lines


def sentences(tree: TreeGenotype) -> list[str]:
    """Say in words what each node computes, for those who do not see the drawing."""
    found = []
    for node in range(len(tree.nodes)):
        of = "" if node < tree.base else " of {} and {}".format(*tree.children(node))
        found.append(f"node {node}: {', '.join(steps_of(tree, node))}{of}")
    return [*found, f"new h = node {len(tree.nodes) - 1}"]


def write_tree(path: Path, tree: TreeGenotype) -> None:
    """Write a tree as an SVG file that needs nothing else."""
    lines = [steps_of(tree, node) for node in range(len(tree.nodes))]
    wide = max(WIDE_CHAR * len(line) for node in lines for line in node) + 16.0
    head = WIDE_CHAR * 5 + 16.0  # of "x, h", "new h"
    middles, columns, y = [], [], MARGIN + 32.0
    for node, steps in enumerate(lines):
        height = LINE * len(steps) + 8.0
        if node < tree.base:
            middles.append(y + height / 2)
            columns.append(0)
            y += height + PAD
        else:
            first, second = tree.children(node)
            middles.append((middles[first] + middles[second]) / 2)
            columns.append(columns[first] + 1)
    lefts = [MARGIN + head + GAP + column * (wide + GAP) for column in columns]
    middle = middles[-1]
    boxes = [*_box("state", MARGIN, middle, head, ["x, h"]), *_box("state", lefts[-1] + wide + GAP, middle, head, ["new h"])]
    wires = [_wire(lefts[-1] + wide, middle, lefts[-1] + wide + GAP, middle)]
    for node, steps in enumerate(lines):
        memory = " memory" if node in (tree.cell_leaf, tree.inject_leaf) else ""
        boxes += _box(f"op{memory}", lefts[node], middles[node], wide, steps)
        if node < tree.base:
            wires.append(_wire(MARGIN + head, middle, lefts[node], middles[node]))
        else:
            wires += [_wire(lefts[c] + wide, middles[c], lefts[node], middles[node]) for c in tree.children(node)]
    width = lefts[-1] + wide + GAP + head + MARGIN
    view = {"width": f"{width:g}", "height": f"{y:g}", "viewBox": f"0 0 {width:g} {y:g}"}
    label = f"{TITLE}: {'; '.join(sentences(tree))}"
    heading = element("text", TITLE, class_="title", x=MARGIN, y=24)
    style = Markup("<style>{}</style>").format(Markup(STYLE))
    svg = element("svg", style, heading, *wires, *boxes, xmlns="http://www.w3.org/2000/svg", role="img", aria_label=label, **view)
    write_bytes(path, f"{svg}\n".encode())


def _box(style: str, left: float, middle: float, width: float, lines: list[str]) -> list[Markup]:
    height = LINE * len(lines) + 8.0
    top = middle - height / 2
    texts = [
        element("text", line, x=left + width / 2, y=top + LINE * (i + 1), text_anchor="middle") for i, line in enumerate(lines)
    ]
    return [element("rect", class_=style, x=left, y=top, width=width, height=height, rx=5.0), *texts]


def _wire(x: float, y: float, end: float, height: float) -> Markup:
    turn = (x + end) / 2
    return element("path", class_="wire", d=f"M{x:.5g} {y:.5g}C{turn:.5g} {y:.5g} {turn:.5g} {height:.5g} {end:.5g} {height:.5g}")
