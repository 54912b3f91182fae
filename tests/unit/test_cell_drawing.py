"""Drawings of cells: everything is there, nothing lies upon a name, and words say the same."""

import re
import xml.etree.ElementTree as ET

import pytest

from ofa.genotype import Genotype
from ofa.genotypes import get_genotype, list_genotypes
from search.cell_drawing import Cell, cells_of, draw_cell, words, write_drawing

ALL = [cell for name in list_genotypes() for cell in cells_of(get_genotype(name))]


def parse(cell):
    return ET.fromstring(str(draw_cell(cell)))


def boxes(svg):
    """(left, top, right, bottom) of every box and the name in it."""
    rects = [tuple(float(r.get(k)) for k in ("x", "y", "width", "height")) for r in svg.iter("rect")]
    return [(x, y, x + w, y + h) for x, y, w, h in rects]


@pytest.mark.parametrize("cell", ALL, ids=lambda cell: f"{cell.title}-{len(cell.nodes)}")
def test_every_operation_and_state_is_drawn_inside_the_image(cell):
    svg = parse(cell)
    texts = sorted(t.text for t in svg.iter("text"))
    operations = [words(operation) for node in cell.nodes for operation, _ in node]
    states = [str(state) for state in range(len(cell.inputs), len(cell.inputs) + len(cell.nodes))]
    assert texts == sorted([*operations, *states, *cell.inputs, cell.output])
    width, height = float(svg.get("width")), float(svg.get("height"))
    assert all(0 <= left < right <= width and 0 <= top < bottom <= height for left, top, right, bottom in boxes(svg))


@pytest.mark.parametrize("cell", ALL, ids=lambda cell: f"{cell.title}-{len(cell.nodes)}")
def test_no_two_boxes_overlap_and_no_line_runs_through_one(cell):
    svg = parse(cell)
    found = boxes(svg)
    for i, (left, top, right, bottom) in enumerate(found):
        assert all(left >= r or right <= x or top >= b or bottom <= y for x, y, r, b in found[:i])
    for path in svg.iter("path"):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", path.get("d"))]
        x0, y0, *_, x3, y3, end = numbers
        points = [bezier(x0, y0, x3, y3, t / 50) for t in range(51)] + [(x3 + (end - x3) * t / 50, y3) for t in range(51)]
        for left, top, right, bottom in found:
            assert not any(left + 0.1 < x < right - 0.1 and top + 0.1 < y < bottom - 0.1 for x, y in points), (
                path.get("d"),
                left,
            )


def bezier(x0, y0, x3, y3, t):
    middle = (x0 + x3) / 2
    xs, ys = (x0, middle, middle, x3), (y0, y0, y3, y3)
    b = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
    return sum(f * x for f, x in zip(b, xs, strict=True)), sum(f * y for f, y in zip(b, ys, strict=True))


def test_an_input_that_is_handed_on_passes_below_everything():
    cell = Cell("Cell", ("a", "b"), ((("sep_conv_3x3", 0), ("skip_connect", 1)),), (0, 2), "concat")
    test_no_two_boxes_overlap_and_no_line_runs_through_one(cell)
    test_every_operation_and_state_is_drawn_inside_the_image(cell)


def test_each_line_begins_at_its_source():
    cell = cells_of(get_genotype("darts_v2"))[0]
    svg = parse(cell)
    wanted = [(operation, source) for node in cell.nodes for operation, source in node]
    titles = [t.text for t in svg.iter("title")]
    names = ["c(k-2)", "c(k-1)", "2", "3", "4"]
    assert [t.split(" to ")[0] for t in titles] == [f"{operation}: {names[source]}" for operation, source in wanted]


def test_words_tell_the_cell():
    normal, reduce = cells_of(get_genotype("darts_v2"))
    assert normal.sentences()[3] == "node 5 = skip of c(k-2) + dil conv 3×3 of 2"
    assert "concat of 2, 3, 4, 5" in str(draw_cell(reduce))
    assert words("conv_7x1_1x7") == "conv 7×1 1×7"
    assert words("max_pool_3x3") == "max pool 3×3"


def test_names_of_operations_are_escaped(tmp_path):
    cell = Cell("<b>", ("a", "b"), ((("<script>", 0), ("a&b", 1)),), (2,), "concat")
    write_drawing(tmp_path / "x.svg", [cell])
    text = (tmp_path / "x.svg").read_text()
    assert "<script>" not in text
    ET.fromstring(text)


def test_the_file_holds_both_cells(tmp_path):
    genotype = get_genotype("darts_v2")
    assert isinstance(genotype, Genotype)
    write_drawing(tmp_path / "cells.svg", cells_of(genotype))
    svg = ET.fromstring((tmp_path / "cells.svg").read_text())
    space = "{http://www.w3.org/2000/svg}"
    texts = [t.text for t in svg.iter(f"{space}text")]
    assert {"Normal cell", "Reduction cell"} <= set(texts)
    assert texts.count("max pool 3×3") == 5
    assert "node 2 = sep conv 3×3 of c(k-2) + sep conv 3×3 of c(k-1)" in svg.get("aria-label")
