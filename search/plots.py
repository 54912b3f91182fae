"""Plots as inline SVG: no library, no script; colours are CSS classes, so that the page decides on light or dark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

CHAR = 6.6  # px, mean width of a character at the 12 px that plots are lettered in
Box = tuple[float, float, float, float]  # left, top, right, bottom


def element(name: str, *children: str, **attributes: str | float) -> Markup:
    """Return an SVG element; text and attributes are escaped. `class_` stands for class, underscores for hyphens."""
    written = Markup().join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), f"{value:.5g}" if isinstance(value, float) else value)
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, Markup().join(children))


def image(label: str, width: float, height: float, *children: str, class_: str = "plot") -> Markup:
    """Return an SVG image that scales with its container; `label` is read aloud instead."""
    return element("svg", *children, class_=class_, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label)


def nice_ticks(low: float, high: float, about: int = 5, least: float = 0.0) -> list[str]:
    """Return about that many round numbers within [low, high], at least `least` apart, written with equal decimals."""
    raw = max((high - low) / about, least)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= 0.84 * raw)
    exponent = math.floor(math.log10(step) + 1e-9)
    decimals = max(0, -exponent + (round(step / 10.0**exponent, 6) == 2.5))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [f"{i * step:.{decimals}f}" for i in range(first, last + 1)]


def span(values: Iterable[float], pad: float = 0.06) -> tuple[float, float]:
    """Return the range of some values, a little widened; never empty."""
    found = list(values)
    low, high = min(found), max(found)
    room = (high - low) * pad or abs(high) * pad or 1.0
    return low - room, high + room


def shorten(text: str, most: int) -> str:
    """Cut a text to so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


@dataclass(frozen=True)
class Axes:
    """Two linear scales in a frame. Sizes in px of the viewBox."""

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_title: str  # with unit
    y_title: str
    top: float = 28
    left: float = 48
    right: float = 14
    bottom: float = 46
    x_step: float = 0.0  # least distance of ticks

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)

    def at(self, points: Iterable[tuple[float, float]]) -> str:
        """Return points of data as the coordinates of a polyline."""
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)

    def frame(self) -> Markup:
        """Draw grid lines, tick labels and axis titles."""
        right, base = self.width - self.right, self.height - self.bottom
        parts = []
        for tick in nice_ticks(*self.y_range):
            y = self.y(float(tick))
            parts.append(element("line", class_="grid", x1=self.left, x2=right, y1=y, y2=y))
            parts.append(element("text", tick, class_="tick", x=self.left - 7, y=y + 4, text_anchor="end"))
        for tick in nice_ticks(*self.x_range, about=max(5, int((right - self.left) / 90)), least=self.x_step):
            x = self.x(float(tick))
            parts.append(element("line", class_="grid", x1=x, x2=x, y1=base, y2=base + 4))
            parts.append(element("text", tick, class_="tick", x=x, y=base + 17, text_anchor="middle"))
        parts.append(element("line", class_="axis", x1=self.left, x2=right, y1=base, y2=base))
        parts.append(element("text", self.y_title, class_="axis-title", x=4, y=14))
        parts.append(element("text", self.x_title, class_="axis-title", x=right, y=self.height - 8, text_anchor="end"))
        return Markup().join(parts)


@dataclass(frozen=True, slots=True)
class Point:
    """A measured network in a plot of accuracy against cost."""

    cost: float
    top1: float  # percent
    title: str  # shown on hover
    front: bool
    label: str = ""  # of a chosen network


@dataclass(frozen=True, slots=True)
class Bound:
    """A limit on the cost."""

    cost: float
    name: str  # of the searches that it holds for
    text: str

    @property
    def label(self) -> str:
        return f"{self.name} {self.text}"


def pareto_plot(points: Sequence[Point], bounds: Sequence[Bound], *, x_title: str, width: float, height: float) -> Markup:
    """Plot accuracy against cost: all points, the front as a step line, limits as dashed lines, chosen ones labelled.

    Args:
        points: at least one of them on the front.
        bounds: limits, each on the scale of the points' cost.
        x_title: the cost with its unit.
        width: px of the viewBox; draw once for wide screens and once for phones.
        height: px of the viewBox.
    """
    room = int(width / 32)  # characters of a name
    bounds = [Bound(b.cost, shorten(b.name, room), b.text) for b in bounds]
    x_range = span([p.cost for p in points] + [b.cost for b in bounds])
    placed, rows = _stack_bounds(Axes(width, height, x_range, (0, 1), x_title, ""), bounds)
    top = Axes.top + 16 * rows
    axes = Axes(width, height, x_range, span(p.top1 for p in points), x_title, "Top-1 on validation images, %", top=top)
    ordered = sorted(points, key=lambda p: (p.cost, p.top1))
    front = [p for p in ordered if p.front]
    corners = [corner for a, b in itertools.pairwise(front) for corner in ((b.cost, a.top1), (b.cost, b.top1))]
    steps = [(front[0].cost, front[0].top1), *corners, (x_range[1], front[-1].top1)]

    parts = [axes.frame()]
    for bound, _, row in placed:
        x = axes.x(bound.cost)
        parts.append(element("line", class_="limit", x1=x, x2=x, y1=top - 15 - 16 * row, y2=height - axes.bottom))
    parts.append(element("polyline", class_="front-line", points=axes.at(steps)))
    parts += [_marker(axes, p) for p in sorted(ordered, key=lambda p: (bool(p.label), p.front))]
    parts += [element("text", bound.label, class_="limit-label", x=x, y=top - 6 - 16 * row) for bound, x, row in placed]
    anchors = [(axes.x(p.cost), axes.y(p.top1), shorten(p.label, room)) for p in ordered if p.label]
    obstacles = [(axes.x(p.cost), axes.y(p.top1)) for p in points]
    for (x1, y1), (x2, y2) in itertools.pairwise((axes.x(x), axes.y(y)) for x, y in steps):
        pieces = int((abs(x2 - x1) + abs(y2 - y1)) / 8) + 1
        obstacles += [(x1 + (x2 - x1) * i / pieces, y1 + (y2 - y1) * i / pieces) for i in range(pieces)]
    area = (axes.left, top, width - axes.right, height - axes.bottom)
    parts += [element("text", text, class_="chosen-label", x=x, y=y) for x, y, text in place_labels(anchors, obstacles, area)]
    return image(f"Accuracy against {x_title}: {len(points)} networks, {len(front)} on the front", width, height, *parts)


def _marker(axes: Axes, point: Point) -> Markup:
    x, y, title = axes.x(point.cost), axes.y(point.top1), element("title", point.title)
    if point.label:
        diamond = f"M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z"
        return element("path", title, class_="chosen", d=diamond)
    return element("circle", title, class_="point front" if point.front else "point", cx=x, cy=y, r=4)


def _stack_bounds(axes: Axes, bounds: Sequence[Bound]) -> tuple[list[tuple[Bound, float, int]], int]:
    """Give every limit's label a place (left edge, row) above the frame so that no two overlap; and the number of rows."""
    placed: list[tuple[Bound, float, int]] = []
    edges: list[float] = []  # where the leftmost label of each row begins
    for bound in sorted(bounds, key=lambda b: -b.cost):
        size = CHAR * len(bound.label)
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
        size = 1.14 * CHAR * len(text)  # bold
        beside = [(side, dy * far) for far in (1, 2, 3.5) for dy in (0, -16, 16) for side in (x + 12, x - 12 - size)]
        centred = [(x - size / 2, dy) for dy in (-20, 18, -36, 34)]
        options = [(left, y + dy - 7, left + size, y + dy + 8) for left, dy in beside + centred]
        taken.append(min(options, key=lambda box, x=x, y=y: badness(box, x, y)))  # type: ignore[misc]
    return [(left, bottom - 4, text) for (left, _, _, bottom), (_, _, text) in zip(taken, anchors, strict=True)]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def agreement_plot(pairs: Sequence[tuple[float, float]], *, quantity: str, unit: str, band: float = 0.0) -> Markup:
    """Plot measured against predicted values with the diagonal; `band` draws lines at that share above and below it."""
    both = span([value for pair in pairs for value in pair])
    axes = Axes(380, 340, both, both, f"Predicted {quantity}, {unit}", f"Measured {quantity}, {unit}")
    parts = [axes.frame(), element("polyline", class_="diagonal", points=axes.at([(both[0], both[0]), (both[1], both[1])]))]
    for factor in (1 - band, 1 + band) if band else ():
        low, high = max(both[0], both[0] / factor), min(both[1], both[1] / factor)
        parts.append(element("polyline", class_="band", points=axes.at([(low, low * factor), (high, high * factor)])))
    for predicted, measured in pairs:
        outside = band > 0 and abs(measured - predicted) > band * abs(predicted)
        title = f"predicted {predicted:.3g} {unit}, measured {measured:.3g} {unit}"
        style = "point outside" if outside else "point inside"
        parts.append(element("circle", element("title", title), class_=style, cx=axes.x(predicted), cy=axes.y(measured), r=4))
    return image(f"Measured against predicted {quantity} of {len(pairs)} networks", axes.width, axes.height, *parts)


def curves_plot(curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, y_title: str) -> Markup:
    """Plot (CSS class, points) lines over epochs."""
    points = [point for _, line in curves for point in line]
    axes = Axes(380, 280, span((x for x, _ in points), 0.03), span(y for _, y in points), "Epoch", y_title, x_step=1)
    parts = [axes.frame()]
    for style, line in curves:
        parts.append(element("polyline", class_=f"curve {style}", points=axes.at(line)))
        for x, y in line:
            title = element("title", f"epoch {x:g}: {y:.4g}")
            shape = f"dot {style}" if len(line) <= 40 else "target"  # many dots would hide the line: only for pointing at
            parts.append(element("circle", title, class_=shape, cx=axes.x(x), cy=axes.y(y), r=3))
    return image(f"{y_title} over epochs", axes.width, axes.height, *parts)
