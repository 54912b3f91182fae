"""Probabilities of operations over a search: a small heat map for every edge, a row an operation, a column an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from search.cell_drawing import words
from search.plots import element, image, shorten

ROW, MAP, LABEL, FOOT = 13, 120, 88, 16  # px: height of an operation, width of the map and of the names, height below
CHARS = 12  # of a name
MOST_COLUMNS = 60  # of a map; of more epochs some are left out


@dataclass(frozen=True, slots=True)
class EdgeHistory:
    """The probabilities of one edge over a search."""

    name: str  # e.g. "c(k-1) to 3"
    epochs: Sequence[int]
    probabilities: Sequence[Sequence[float]]  # epochs x operations
    derived: str  # operation that the edge has in the cell found, "" = it is not in it

    @property
    def best(self) -> tuple[int, float]:
        """Most probable operation after the last epoch, and how probable it is."""
        last = self.probabilities[-1]
        return max(enumerate(last), key=lambda pair: pair[1])


def draw_edge(edge: EdgeHistory, operations: Sequence[str], most: float, *, whole: str = "cell") -> Markup:
    """Draw the heat map of an edge.

    Args:
        most: probability that has the full colour; the same for all edges that are to be compared.
        whole: what the edge is a part of.
    """
    step = -(-len(edge.epochs) // MOST_COLUMNS)
    shown = sorted({*range(0, len(edge.epochs), step), len(edge.epochs) - 1})
    width, height = LABEL + MAP, ROW * len(operations) + FOOT
    column = MAP / len(shown)
    parts = []
    for row, operation in enumerate(operations):
        style = "alpha-name derived" if operation == edge.derived else "alpha-name"
        name = shorten(words(operation), CHARS)
        parts.append(element("text", name, class_=style, x=LABEL - 6, y=ROW * row + 10, text_anchor="end"))
        for place, index in enumerate(shown):
            p = edge.probabilities[index][row]
            tip = element("title", f"{operation}, epoch {edge.epochs[index]}: {p:.3f}")
            share = min(1.0, max(0.0, p / most))
            parts.append(
                element(
                    "rect",
                    tip,
                    class_="alpha",
                    x=LABEL + column * place,
                    y=float(ROW * row),
                    width=column + 0.3,  # a little over the next one, so that no gap shows
                    height=ROW - 1.0,
                    fill_opacity=round(share, 3),
                )
            )
    foot = height - 4
    parts.append(element("text", str(edge.epochs[0]), class_="tick", x=LABEL, y=foot))
    parts.append(element("text", str(edge.epochs[-1]), class_="tick", x=width, y=foot, text_anchor="end"))
    best, p = edge.best
    end = f"; it is {words(edge.derived)} in the {whole}" if edge.derived else f"; it is not in the {whole}"
    label = f"{edge.name}: {words(operations[best])} is most probable after epoch {edge.epochs[-1]} with {p:.2f}{end}"
    return image(label, width, height, *parts, class_="alphas")
