"""Which network to take: accuracy, predictor, strategies, and the report."""

from typing import TYPE_CHECKING

from ofa.lazy import lazy_exports

if TYPE_CHECKING:
    from search.accuracy import AccuracyModel, SupernetAccuracy
    from search.demo import run_demo
    from search.report import write_report
    from search.result import Candidate, SearchResult
    from search.run import search_run, search_targets
    from search.targets import per_device, sweep

__all__ = [
    "AccuracyModel",
    "Candidate",
    "SearchResult",
    "SupernetAccuracy",
    "per_device",
    "run_demo",
    "search_run",
    "search_targets",
    "sweep",
    "write_report",
]

__getattr__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("AccuracyModel", "SupernetAccuracy"), "search.accuracy"),
        **dict.fromkeys(("search_run", "search_targets"), "search.run"),
        **dict.fromkeys(("per_device", "sweep"), "search.targets"),
        **dict.fromkeys(("Candidate", "SearchResult"), "search.result"),
        "run_demo": "search.demo",
        "write_report": "search.report",
    },
)
