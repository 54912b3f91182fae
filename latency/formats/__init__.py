"""Latencies that others measured: block tables and timings of whole networks, read into cost models of the one interface."""

from typing import TYPE_CHECKING

from ofa.lazy import lazy_exports

if TYPE_CHECKING:
    from latency.formats.importing import FORMATS, import_timings

__all__ = ["FORMATS", "import_timings"]

__getattr__ = lazy_exports(__name__, dict.fromkeys(__all__, "latency.formats.importing"))
