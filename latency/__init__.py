"""What a network costs: multiply-adds, parameters, memory, bytes on disk, and milliseconds and millijoules on a device."""

from typing import TYPE_CHECKING

from ofa.lazy import lazy_exports

if TYPE_CHECKING:
    from latency.cost import AdditiveCost, CostModel, CountCost, MemoryCost, SizeCost
    from latency.energy import find_meter, measure_energy_mj
    from latency.expected import ExpectedLatency
    from latency.profile import ProfileConfig, profile_device
    from latency.table import LatencyTable

__all__ = [
    "AdditiveCost",
    "CostModel",
    "CountCost",
    "ExpectedLatency",
    "LatencyTable",
    "MemoryCost",
    "ProfileConfig",
    "SizeCost",
    "find_meter",
    "measure_energy_mj",
    "profile_device",
]

__getattr__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("AdditiveCost", "CostModel", "CountCost", "MemoryCost", "SizeCost"), "latency.cost"),
        **dict.fromkeys(("find_meter", "measure_energy_mj"), "latency.energy"),
        "ExpectedLatency": "latency.expected",
        **dict.fromkeys(("ProfileConfig", "profile_device"), "latency.profile"),
        "LatencyTable": "latency.table",
    },
)
