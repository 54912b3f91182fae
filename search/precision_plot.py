"""A plot of a few labelled values, one below the other: as bars from zero, or as dots with intervals about a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from search.plots import WIDE_CHAR, Axes, element, image, nice_ticks, shorten, span

ROW, WIDTH = 36, 380  # px
MOST_TITLE = int((WIDTH - 20) / WIDE_CHAR)  # characters


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with its label."""

    label: str
    text: str  # the value as it is written
    value: float
    low: float | None = None  # ends of its interval
    high: float | None = None
    style: str = ""  # CSS class


def mark_plot(marks: Sequence[Mark], title: str, *, reference: float | None = None, bars: bool = False) -> Markup:
    """Draw values below each other, each under its label.

    Args:
        marks: at least one.
        title: of the axis, with the unit.
        reference: value to draw a line at.
        bars: bars from zero, not dots.
    """
    ends = [end for mark in marks for end in (mark.value, mark.low, mark.high) if end is not None]
    ends += [0.0] if bars else [] if reference is None else [reference]
    reach = (0.0, 1.04 * max(*ends, 1e-9)) if bars else span(ends)
    height = ROW * len(marks) + 48
    axes = Axes(WIDTH, height, reach, (0, 1), title, "", top=4, left=14, right=14, bottom=44)
    base = height - axes.bottom
    parts = []
    for tick in nice_ticks(*reach, about=4):
        x = axes.x(float(tick))
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=axes.top, y2=base))
        parts.append(element("text", tick, class_="tick", x=x, y=base + 16, text_anchor="middle"))
    if reference is not None:
        x = axes.x(reference)
        parts.append(element("line", class_="reference", x1=x, x2=x, y1=axes.top, y2=base))
    parts.append(
        element("text", shorten(title, MOST_TITLE), class_="axis-title", x=WIDTH - axes.right, y=height - 8, text_anchor="end")
    )
    for i, mark in enumerate(marks):
        parts += _mark(mark, axes, axes.top + ROW * i, bars)
    said = "; ".join(f"{mark.label} {mark.text}" for mark in marks)
    return image(f"{title}: {said}", WIDTH, height, *parts)


def _mark(mark: Mark, axes: Axes, top: float, bars: bool) -> list[Markup]:
    y = top + 25
    tip = element("title", f"{mark.label}: {mark.text}")
    room = int((axes.width - axes.left - axes.right) / WIDE_CHAR) - len(mark.text) - 2
    words = element("tspan", shorten(mark.label, max(6, room)), class_="strong") + f"  {mark.text}"
    parts = [element("text", words, class_="mark-label", x=axes.left, y=top + 13)]
    if bars:
        left = axes.x(0.0)
        return [*parts, element("rect", tip, class_="cost", x=left, y=y - 6, width=axes.x(mark.value) - left, height=12)]
    if mark.low is not None and mark.high is not None:
        low, high = axes.x(mark.low), axes.x(mark.high)
        path = f"M{low:.1f} {y - 5}V{y + 5}M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 5}V{y + 5}"
        parts.append(element("path", class_=f"whisker {mark.style}".strip(), d=path))
    return [*parts, element("circle", tip, class_=f"mark {mark.style}".strip(), cx=axes.x(mark.value), cy=y, r=5)]
