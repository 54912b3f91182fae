"""What a network is: spaces, supernets and their training."""

from typing import TYPE_CHECKING

from ofa.lazy import lazy_exports

if TYPE_CHECKING:
    from ofa.run_dir import Run
    from ofa.space import ArchConfig, BlockSpec, Dimension, SearchSpace
    from ofa.spaces import get_space, list_spaces
    from ofa.supernet import Supernet
    from ofa.training.loop import TrainConfig, train_supernet

__all__ = [
    "ArchConfig",
    "BlockSpec",
    "Dimension",
    "Run",
    "SearchSpace",
    "Supernet",
    "TrainConfig",
    "get_space",
    "list_spaces",
    "train_supernet",
]

__getattr__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("ArchConfig", "BlockSpec", "Dimension", "SearchSpace"), "ofa.space"),
        **dict.fromkeys(("get_space", "list_spaces"), "ofa.spaces"),
        **dict.fromkeys(("TrainConfig", "train_supernet"), "ofa.training.loop"),
        "Run": "ofa.run_dir",
        "Supernet": "ofa.supernet",
    },
)
