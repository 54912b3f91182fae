"""What a network costs: multiply-adds, parameters, and milliseconds on a device."""

from typing import TYPE_CHECKING

from ofa.lazy import lazy_exports

if TYPE_CHECKING:
    from latency.cost import CostModel, CountCost
    from latency.profile import ProfileConfig, profile_device
    from latency.table import LatencyTable

__all__ = ["CostModel", "CountCost", "LatencyTable", "ProfileConfig", "profile_device"]

__getattr__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("CostModel", "CountCost"), "latency.cost"),
        **dict.fromkeys(("ProfileConfig", "profile_device"), "latency.profile"),
        "LatencyTable": "latency.table",
    },
)
