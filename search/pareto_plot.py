"""Accuracy against cost, with the history of the search: which round measured what, and how the front moved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from search.pareto import non_dominated
from search.plots import WIDE_CHAR, Axes, element, image, shorten, span

SHADES = 3  # of active rounds, pale to strong; the design is grey
MOST_LABELS = 8  # limits with a line and a name of their own; more of them are marks at the edge
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Point:
    """A measured network in a plot of accuracy against cost."""

    cost: float
    top1: float  # percent
    title: str  # shown on hover
    front: bool
    label: str = ""  # of a chosen network
    round: int = 0  # 0 = design, 1, 2, ... = the active round that measured it


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit on the cost."""

    cost: float
    name: str  # of the searches that it holds for
    text: str

    @property
    def label(self) -> str:
        return f"{self.name} {self.text}"


def pareto_plot(
    points: Sequence[Point],
    bounds: Sequence[Bound],
    *,
    x_title: str,
    width: float,
    height: float,
    y_title: str = "Top-1 on validation images, %",
) -> Markup:
    """Plot accuracy against cost: all points, the front as a step line, limits as dashed lines, chosen ones labelled.

    Points of later rounds are stronger in colour. Where there are such, a thin line is the front that the design alone had.

    Args:
        points: at least one of them on the front.
        bounds: limits, each on the scale of the points' cost.
        x_title: the cost with its unit.
        width: px of the viewBox; draw once for wide screens and once for phones.
        height: px of the viewBox.
        y_title: the accuracy with its unit.
    """
    room = int(width / 32)  # characters of a name
    named = [Bound(b.cost, shorten(b.name, room), b.text) for b in bounds] if len(bounds) <= MOST_LABELS else []
    x_range = span([p.cost for p in points] + [b.cost for b in bounds])
    placed, rows = _stack_bounds(Axes(width, height, x_range, (0, 1), x_title, ""), named)
    top = Axes.top + 16 * rows
    axes = Axes(width, height, x_range, span(p.top1 for p in points), x_title, y_title, top=top)
    ordered = sorted(points, key=lambda p: (p.cost, p.top1))
    front = [p for p in ordered if p.front]
    steps = _steps(front, x_range[1])
    last = max(p.round for p in points)

    parts = [axes.frame()]
    for bound, _, row in placed:
        x = axes.x(bound.cost)
        parts.append(element("line", class_="limit", x1=x, x2=x, y1=top - 15 - 16 * row, y2=height - axes.bottom))
    if not named:
        parts += [_edge_mark(axes, bound) for bound in bounds]
    design = design_front(ordered) if last else []
    if design:
        parts.append(element("polyline", class_="design-line", points=axes.at(_steps(design, x_range[1]))))
    parts.append(element("polyline", class_="front-line", points=axes.at(steps)))
    parts += [_marker(axes, p, last) for p in sorted(ordered, key=lambda p: (bool(p.label), p.front, p.round))]
    parts += [element("text", bound.label, class_="limit-label", x=x, y=top - 6 - 16 * row) for bound, x, row in placed]
    anchors = [(axes.x(p.cost), axes.y(p.top1), shorten(p.label, room)) for p in ordered if p.label]
    obstacles = [(axes.x(p.cost), axes.y(p.top1)) for p in points]
    for (x1, y1), (x2, y2) in itertools.pairwise((axes.x(x), axes.y(y)) for x, y in steps):
        pieces = int((abs(x2 - x1) + abs(y2 - y1)) / 8) + 1
        obstacles += [(x1 + (x2 - x1) * i / pieces, y1 + (y2 - y1) * i / pieces) for i in range(pieces)]
    area = (axes.left, top, width - axes.right, height - axes.bottom)
    parts += [element("text", text, class_="chosen-label", x=x, y=y) for x, y, text in place_labels(anchors, obstacles, area)]
    return image(f"Accuracy against {x_title}: {len(points)} networks, {len(front)} on the front", width, height, *parts)


def design_front(points: Sequence[Point]) -> list[Point]:
    """Return the front of the points that no active round measured, cheapest first."""
    design = sorted((p for p in points if p.round == 0), key=lambda p: (p.cost, p.top1))
    kept = non_dominated(np.array([(p.cost, -p.top1) for p in design]).reshape(-1, 2))
    return [p for p, keep in zip(design, kept, strict=True) if keep]


def shade(round_: int, last: int) -> int:
    """Return which of the shades a round has: 0 for the design, 1 to SHADES for active rounds 1 to `last`."""
    return math.ceil(SHADES * round_ / last) if round_ else 0


def _steps(front: Sequence[Point], end: float) -> list[tuple[float, float]]:
    """Return the corners of a front's step line up to the right end of the axis."""
    corners = [corner for a, b in itertools.pairwise(front) for corner in ((b.cost, a.top1), (b.cost, b.top1))]
    return [(front[0].cost, front[0].top1), *corners, (end, front[-1].top1)]


def _marker(axes: Axes, point: Point, last: int) -> Markup:
    x, y, title = axes.x(point.cost), axes.y(point.top1), element("title", point.title)
    if point.label:
        diamond = f"M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z"
        return element("path", title, class_="chosen", d=diamond)
    style = f"point r{shade(point.round, last)}{' front' if point.front else ''}"
    return element("circle", title, class_=style, cx=x, cy=y, r=4)


def _edge_mark(axes: Axes, bound: Bound) -> Markup:
    x, base = axes.x(bound.cost), axes.height - axes.bottom
    return element("line", element("title", bound.label), class_="limit", x1=x, x2=x, y1=base - 16, y2=base)


def _stack_bounds(axes: Axes, bounds: Sequence[Bound]) -> tuple[list[tuple[Bound, float, int]], int]:
    """Give every limit's label a place (left edge, row) above the frame so that no two overlap; and the number of rows."""
    placed: list[tuple[Bound, float, int]] = []
    edges: list[float] = []  # where the leftmost label of each row begins
    for bound in sorted(bounds, key=lambda b: -b.cost):
        size = WIDE_CHAR * len(bound.label)
        left = max(4, min(axes.x(bound.cost) + 4, axes.width - size - 2))
        row = next((r for r, edge in enumerate(edges) if left + size + 8 <= edge), len(edges))
        edges[row : row + 1] = [left]
        placed.append((bound, left, row))
    return placed, len(edges)


def place_labels(
    anchors: Sequence[tuple[float, float, str]], obstacles: Sequence[tuple[float, float]], area: Box
) -> list[tuple[float, float, str]]:
    """Find a place beside each marker where its label overlaps no other label and covers the fewest points.

    Args:
        anchors: x, y, text of each label.
        obstacles: points that labels should leave visible.
        area: what labels stay within.

    Returns:
        x of the text's start, y of its baseline, and the text.
    """
    markers = [(x - 9, y - 9, x + 9, y + 9) for x, y, _ in anchors]
    marks = [(x - 4, y - 4, x + 4, y + 4) for x, y in obstacles]
    taken: list[Box] = []

    def badness(box: Box, x: float, y: float) -> float:
        outside = box[0] < area[0] or box[1] < area[1] or box[2] > area[2] or box[3] > area[3]
        unreadable = sum(_overlap(box, other) for other in taken + markers)
        away = math.hypot(max(box[0] - x, x - box[2], 0), max(box[1] - y, y - box[3], 0))
        return 500 * outside + 50 * unreadable + sum(_overlap(box, mark) for mark in marks) + away / 6

    for x, y, text in anchors:
        size = WIDE_CHAR * len(text)
        beside = [(side, dy * far) for far in (1, 2, 3.5) for dy in (0, -16, 16) for side in (x + 12, x - 12 - size)]
        centred = [(x - size / 2, dy) for dy in (-20, 18, -36, 34)]
        options = [(left, y + dy - 7, left + size, y + dy + 8) for left, dy in beside + centred]
        taken.append(min(options, key=lambda box, x=x, y=y: badness(box, x, y)))  # type: ignore[misc]
    return [(left, bottom - 4, text) for (left, _, _, bottom), (_, _, text) in zip(taken, anchors, strict=True)]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
