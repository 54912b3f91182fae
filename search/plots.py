"""Plots as inline SVG: no library, no script; colours are CSS classes, so that the page decides on light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

CHAR = 6.6  # px, mean width of a character at the 12 px that plots are lettered in
WIDE_CHAR = 7.5  # px, of bold characters, and of some systems' regular ones: for what must not be cut


def element(name: str, *children: str, **attributes: str | float) -> Markup:
    """Return an SVG element; text and attributes are escaped. `class_` stands for class, underscores for hyphens."""
    written = Markup().join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), f"{value:.5g}" if isinstance(value, float) else value)
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, Markup().join(children))


def image(label: str, width: float, height: float, *children: str, class_: str = "plot", scales: bool = True) -> Markup:
    """Return an SVG image; `label` is read aloud instead. It scales with its container, or else keeps its size in px."""
    size = {} if scales else {"width": f"{width:g}", "height": f"{height:g}"}
    view = f"0 0 {width:g} {height:g}"
    return element("svg", *children, class_=class_, viewBox=view, role="img", aria_label=label, **size)


Y_CHARS = 6  # of a tick's label left of the frame


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
        whole = len(str(int(max(map(abs, self.y_range)))))
        for tick in nice_ticks(*self.y_range, least=10.0 ** (whole + 1 - Y_CHARS)):  # decimals that the margin has room for
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


def agreement_plot(
    pairs: Sequence[tuple[float, float]], *, quantity: str, unit: str, band: float = 0.0, true: str = "Measured"
) -> Markup:
    """Plot true against predicted values with the diagonal; `band` draws lines at that share above and below it.

    Args:
        true: what the second values are: "Measured", or "Told" by a function or proxy.
    """
    both = span([value for pair in pairs for value in pair])
    words = f"{quantity}, {unit}" if unit else quantity
    axes = Axes(380, 340, both, both, f"Predicted {words}", f"{true} {words}")
    parts = [axes.frame(), element("polyline", class_="diagonal", points=axes.at([(both[0], both[0]), (both[1], both[1])]))]
    for factor in (1 - band, 1 + band) if band else ():
        low, high = max(both[0], both[0] / factor), min(both[1], both[1] / factor)
        parts.append(element("polyline", class_="band", points=axes.at([(low, low * factor), (high, high * factor)])))
    for predicted, measured in pairs:
        outside = band > 0 and abs(measured - predicted) > band * abs(predicted)
        title = f"predicted {predicted:.3g} {unit}, {true.lower()} {measured:.3g} {unit}"
        style = "point outside" if outside else "point inside"
        parts.append(element("circle", element("title", title), class_=style, cx=axes.x(predicted), cy=axes.y(measured), r=4))
    return image(f"{true} against predicted {quantity} of {len(pairs)} networks", axes.width, axes.height, *parts)


def curves_plot(
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, y_title: str, x_title: str = "Epoch", height: float = 280
) -> Markup:
    """Plot (CSS class, points) lines over epochs or another count."""
    points = [point for _, line in curves for point in line]
    axes = Axes(380, height, span((x for x, _ in points), 0.03), span(y for _, y in points), x_title, y_title, x_step=1)
    parts = [axes.frame()]
    for style, line in curves:
        parts.append(element("polyline", class_=f"curve {style}", points=axes.at(line)))
        for x, y in line:
            title = element("title", f"{x_title.lower()} {x:g}: {y:.4g}")
            shape = f"dot {style}" if len(line) <= 40 else "target"  # many dots would hide the line: only for pointing at
            parts.append(element("circle", title, class_=shape, cx=axes.x(x), cy=axes.y(y), r=3))
    return image(f"{y_title} over {x_title.lower()}", axes.width, axes.height, *parts)
