"""Accuracies that others published: readers of their files."""

from typing import TYPE_CHECKING

from ofa.lazy import lazy_exports

if TYPE_CHECKING:
    from search.formats.mit_predictor import MitPredictor, load_mit_predictor

__all__ = ["MitPredictor", "load_mit_predictor"]

__getattr__ = lazy_exports(__name__, dict.fromkeys(__all__, "search.formats.mit_predictor"))
