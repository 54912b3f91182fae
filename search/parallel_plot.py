"""Parallel coordinates: a line a network through its choices, its costs and its accuracy.

The axes follow from the names of a space's dimensions, "stage2.block0.kernel_size": the last part says what kind of choice it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ofa.space import Dimension, Population, SearchSpace
from search.plots import element, image, shorten

APART = 8  # dimensions of one kind, at most, that get an axis each
HEIGHT, TOP, BOTTOM, SIDE = 400.0, 68.0, 38.0, 54.0  # px
SPREAD = 12.0  # px that lines of one choice are spread over, so that they can be told apart
BANDS = 5  # colours from the least to the most accurate
MOST_PICKED = 4  # chosen networks in a colour of their own; more of them are only drawn bolder, so that accuracy is still seen


@dataclass(frozen=True)
class ParallelAxis:
    """One axis; its lowest value stands at the bottom."""

    title: tuple[str, str]  # two lines
    values: NDArray[np.float64]  # (networks,), NaN = this choice has no effect there
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    discrete: bool = False


def choice_axes(space: SearchSpace, population: Population) -> list[ParallelAxis]:
    """Return axes for the choices of a population; those without alternatives are left out.

    Dimensions are grouped by the last part of their name. A group that others depend on, such as depths, or whose options are
    words, gets an axis a dimension; of any other the mean over the choices that have an effect is shown: of their values where
    all have the same options, or else of their share of the largest option. Large groups of words become a count for each word.
    """
    columns: dict[str, list[int]] = {}
    for column, dimension in enumerate(space.dimensions):
        if len(dimension.options) > 1:
            columns.setdefault(_kind(dimension), []).append(column)
    needed = {d.requires[0] for d in space.dimensions if d.requires}
    active = space.active(population)
    axes: list[ParallelAxis] = []
    for kind, group in columns.items():
        dimensions = [space.dimensions[c] for c in group]
        words = any(isinstance(option, str) for d in dimensions for option in d.options)
        decides = kind == "depth" or any(d.name in needed for d in dimensions)
        if len(group) == 1 or (len(group) <= APART and (words or decides)):
            axes += [_single(d, population[:, c], active[:, c]) for d, c in zip(dimensions, group, strict=True)]
        elif words:
            axes += _counts(dimensions, population[:, group], active[:, group])
        else:
            axes.append(_summary(kind, dimensions, population[:, group], active[:, group], total=decides))
    return axes


def number_axis(title: tuple[str, str], values: Sequence[float], written: Callable[[float], str]) -> ParallelAxis:
    """Return an axis of measured values from the smallest to the largest; NaN = unknown."""
    found = np.array(values, dtype=np.float64)
    known = found[np.isfinite(found)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    marks = (low, (low + high) / 2, high) if high > low else (low,)
    return ParallelAxis(title, found, low, high, tuple((mark, written(mark)) for mark in marks))


def parallel_plot(axes: Sequence[ParallelAxis], top1: Sequence[float], titles: Sequence[str], chosen: Sequence[bool]) -> Markup:
    """Draw the networks, coloured by accuracy, the chosen ones emphasised; the most accurate lie on top.

    Args:
        axes: at least two.
        top1: (networks,) of the colours.
        titles: of the networks, shown on hover.
        chosen: whether a search chose the network.
    """
    step = float(np.clip((1120 - 2 * SIDE) / (len(axes) - 1), 92, 170))
    width = 2 * SIDE + step * (len(axes) - 1)
    accuracy = np.array(top1, dtype=np.float64)
    ranks = np.empty(len(accuracy))
    ranks[np.argsort(accuracy, kind="stable")] = np.arange(len(accuracy))
    spread = SPREAD * (0.5 - (ranks + 0.5) / max(1, len(ranks)))  # the most accurate is highest
    ys = np.column_stack([_y(axis, axis.values) + (spread if axis.discrete else 0.0) for axis in axes])  # (networks, axes)
    xs = SIDE + step * np.arange(len(axes))
    parts = [_axis(axis, float(x), step) for axis, x in zip(axes, xs, strict=True)]
    emphasis = " picked" if sum(chosen) <= MOST_PICKED else " bold"
    for i in sorted(range(len(accuracy)), key=lambda i: (chosen[i], ranks[i])):
        known = np.isfinite(ys[i])
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs[known], ys[i][known], strict=True))
        style = f"thread band-{band(accuracy, i)}{emphasis if chosen[i] else ''}"
        parts.append(element("polyline", element("title", titles[i]), class_=style, points=corners))
    parts += [_ticks(axis, float(x)) for axis, x in zip(axes, xs, strict=True)]  # above the lines
    label = f"{len(accuracy)} networks, their choices, costs and accuracy"
    # as wide as drawn: on a phone it scrolls, since shrunk it could not be read
    return image(label, width, HEIGHT, *parts, class_="fixed plot", scales=False)


def band(top1: NDArray[np.float64], index: int) -> int:
    """Return the colour of a network, 0 for the least accurate to BANDS - 1 for the most: equal steps of accuracy."""
    low, high = float(top1.min()), float(top1.max())
    share = (float(top1[index]) - low) / (high - low) if high > low else 1.0
    return min(BANDS - 1, int(BANDS * share))


def _kind(dimension: Dimension) -> str:
    """Return what kind of choice a dimension is: the last part of its name, without a number at its end."""
    last = dimension.name.rpartition(".")[2]
    return last.rstrip("0123456789").rstrip("_") or last


def _single(dimension: Dimension, column: NDArray[np.int16], active: NDArray[np.bool_]) -> ParallelAxis:
    """An axis of one dimension: options in equal steps, since their order counts and not their distance."""
    before, _, last = dimension.name.rpartition(".")
    ticks = tuple((float(i), str(option)) for i, option in enumerate(dimension.options))
    while len(ticks) > 9:
        ticks = ticks[::2]
    values = np.where(active, column.astype(np.float64), np.nan)
    last = last.replace("_", " ")
    return ParallelAxis(
        (before, last) if before else (last, ""), values, 0.0, float(len(dimension.options) - 1), ticks, discrete=True
    )


def _counts(dimensions: Sequence[Dimension], chosen: Population, active: NDArray[np.bool_]) -> list[ParallelAxis]:
    """An axis for each word: how often it was chosen."""
    words = list(dict.fromkeys(str(option) for d in dimensions for option in d.options))
    index = {word: i for i, word in enumerate(words)}
    codes = [np.array([index[str(option)] for option in d.options]) for d in dimensions]
    named = np.column_stack([code[chosen[:, i]] for i, code in enumerate(codes)])  # (networks, dimensions)
    axes = []
    for i, word in enumerate(words):
        counts = ((named == i) & active).sum(1).astype(np.float64)
        high = float(max(1.0, counts.max(initial=0.0)))
        ends = ((0.0, "0"), (high, f"{high:.0f}"))
        axes.append(ParallelAxis((word, "count"), counts, 0.0, high, ends, discrete=True))
    return axes


def _summary(
    kind: str, dimensions: Sequence[Dimension], chosen: Population, active: NDArray[np.bool_], *, total: bool
) -> ParallelAxis:
    """An axis of the mean choice, or of the sum of choices that add up as depths do."""
    numbers = [np.array([float(option) for option in d.options]) for d in dimensions]
    alike = len({d.options for d in dimensions}) == 1
    if not alike and not total:
        numbers = [100 * values / values[-1] for values in numbers]
    values = np.where(active, np.column_stack([v[chosen[:, i]] for i, v in enumerate(numbers)]), np.nan)
    title = kind.replace("_", " ")
    if total:
        found = np.nansum(values, 1)
        return number_axis((title, "total"), found.tolist(), lambda value: f"{value:.0f}")
    counts = np.isfinite(values).sum(1)
    found = np.where(counts > 0, np.nansum(values, 1) / np.maximum(1, counts), np.nan)
    if alike:
        ticks = tuple((float(option), f"{option:g}") for option in numbers[0])
        return ParallelAxis((title, "mean"), found, float(numbers[0][0]), float(numbers[0][-1]), ticks)
    low = min(float(v[0]) for v in numbers)
    marks = tuple((low + (100 - low) * i / 2, f"{low + (100 - low) * i / 2:.0f}%") for i in range(3))
    return ParallelAxis((title, "% of largest"), found, low, 100.0, marks)


def _y(axis: ParallelAxis, values: NDArray[np.float64]) -> NDArray[np.float64]:
    share = (values - axis.low) / (axis.high - axis.low) if axis.high > axis.low else values * 0 + 0.5
    return np.asarray(HEIGHT - BOTTOM - SPREAD / 2 - share * (HEIGHT - TOP - BOTTOM - SPREAD))


def _axis(axis: ParallelAxis, x: float, step: float) -> Markup:
    room = int(step / 6.8)
    lines = [element("line", class_="axis", x1=x, x2=x, y1=TOP - 6, y2=HEIGHT - BOTTOM + 6)]
    for text, y, style in ((axis.title[0], 18.0, "axis-title"), (axis.title[1], 34.0, "tick")):
        lines.append(element("text", element("title", text), shorten(text, room), class_=style, x=x, y=y, text_anchor="middle"))
    return Markup().join(lines)


def _ticks(axis: ParallelAxis, x: float) -> Markup:
    ys = _y(axis, np.array([value for value, _ in axis.ticks]))
    labels = []
    for (value, text), y in zip(axis.ticks, ys.tolist(), strict=True):
        words = shorten(text, 13)
        if axis.low < value < axis.high:
            labels.append(element("line", class_="axis", x1=x - 3, x2=x + 3, y1=y, y2=y))
            labels.append(element("text", words, class_="tick axis-label", x=x + 5, y=y - 7))  # above level lines
        else:  # beyond the lines' ends, where none covers it
            end = HEIGHT - BOTTOM + 22 if value <= axis.low and axis.low < axis.high else TOP - 12
            labels.append(element("text", words, class_="tick", x=x, y=end, text_anchor="middle"))
    return Markup().join(labels)
