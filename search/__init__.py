"""Which network to take: accuracy, predictor, strategies, and the report."""

from typing import TYPE_CHECKING

from ofa.lazy import lazy_exports

if TYPE_CHECKING:
    from search.accuracy import AccuracyModel, SupernetAccuracy
    from search.demo import run_demo
    from search.report import write_report
    from search.result import Candidate, SearchResult
    from search.run import SearchConfig, search_run

__all__ = [
    "AccuracyModel",
    "Candidate",
    "SearchConfig",
    "SearchResult",
    "SupernetAccuracy",
    "run_demo",
    "search_run",
    "write_report",
]

__getattr__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("AccuracyModel", "SupernetAccuracy"), "search.accuracy"),
        **dict.fromkeys(("SearchConfig", "search_run"), "search.run"),
        **dict.fromkeys(("Candidate", "SearchResult"), "search.result"),
        "run_demo": "search.demo",
        "write_report": "search.report",
    },
)
