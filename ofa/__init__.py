"""What a network is: spaces, supernets and their training."""

from typing import TYPE_CHECKING

from ofa.lazy import lazy_exports

if TYPE_CHECKING:
    from ofa.block_spec import BlockSpec
    from ofa.run_dir import Run
    from ofa.space import ArchConfig, Dimension, SearchSpace
    from ofa.spaces import get_space, list_spaces
    from ofa.supernet import Supernet
    from ofa.training.config import TrainConfig
    from ofa.training.loop import train_supernet
    from ofa.training.specialize import specialize

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
    "specialize",
    "train_supernet",
]

__getattr__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("ArchConfig", "Dimension", "SearchSpace"), "ofa.space"),
        **dict.fromkeys(("get_space", "list_spaces"), "ofa.spaces"),
        "BlockSpec": "ofa.block_spec",
        "Run": "ofa.run_dir",
        "Supernet": "ofa.supernet",
        "TrainConfig": "ofa.training.config",
        "specialize": "ofa.training.specialize",
        "train_supernet": "ofa.training.loop",
    },
)
