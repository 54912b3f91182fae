"""Decision trees of scikit-learn as arrays, and their predictions for many architectures at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.features import Inputs

CHUNK = 256  # architectures at a time: their nodes in all trees stay in the caches


@dataclass(frozen=True)
class Trees:
    """Trees side by side. A node goes on to `children[node]` or, if its feature is above the threshold, to the second one."""

    roots: NDArray[np.int32]  # (trees,)
    feature: NDArray[np.int32]  # (nodes,)
    threshold: NDArray[np.float64]  # (nodes,); infinite at leaves
    children: NDArray[np.int32]  # (nodes, 2); a leaf's are itself
    value: NDArray[np.float64]  # (nodes,)
    depth: int

    @classmethod
    def of(cls, trees: Sequence[Any]) -> Trees:
        """Take the arrays of fitted scikit-learn trees (`estimator.tree_`)."""
        starts = np.cumsum([0, *(tree.node_count for tree in trees)])
        nodes = np.arange(starts[-1])
        offset = np.repeat(starts[:-1], np.diff(starts))
        children = np.concatenate([np.stack([tree.children_left, tree.children_right], 1) for tree in trees])
        leaf = children[:, 0] < 0
        feature = np.where(leaf, 0, np.concatenate([tree.feature for tree in trees]))
        threshold = np.where(leaf, np.inf, np.concatenate([tree.threshold for tree in trees]))
        children = np.where(leaf[:, None], nodes[:, None], children + offset[:, None])
        value = np.concatenate([tree.value[:, 0, 0] for tree in trees])
        depth = max(tree.max_depth for tree in trees)
        roots, feature, children = (array.astype(np.int32) for array in (starts[:-1], feature, children))
        return cls(roots, feature, threshold, children, value, depth)

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], width: int) -> Trees:
        """Make trees of their arrays.

        Raises:
            KeyError, ValueError: if they do not belong together.
        """
        if arrays["depth"].shape != (1,):
            raise ValueError(f"depth of trees is {arrays['depth'].shape}, expected one number")
        own = {name: arrays[name] for name in cls.__dataclass_fields__ if name != "depth"}
        found = cls(**own, depth=int(arrays["depth"][0]))
        nodes = found.feature.size
        shapes = (found.feature.shape, found.threshold.shape, found.value.shape, found.children.shape, found.depth <= nodes)
        if shapes != ((nodes,), (nodes,), (nodes,), (nodes, 2), True):
            raise ValueError("arrays of trees differ in length")
        if found.roots.ndim != 1 or not len(found.roots):
            raise ValueError(f"roots of trees are {found.roots.shape}, expected one axis")
        for name, end in (("roots", nodes), ("children", nodes), ("feature", width)):
            indices = getattr(found, name)
            if indices.dtype.kind != "i" or (indices < 0).any() or (indices >= end).any():
                raise ValueError(f"{name} of trees point nowhere")
        if not np.isfinite(found.value).all() or np.isnan(found.threshold).any():
            raise ValueError("trees hold numbers that are not finite")
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to store."""
        names = (name for name in self.__dataclass_fields__ if name != "depth")
        return {name: getattr(self, name) for name in names} | {"depth": np.array([self.depth])}

    def values(self, inputs: Inputs) -> NDArray[np.float64]:
        """Return the value of the leaf that each architecture reaches in each tree, (n, trees)."""
        found = np.empty((len(inputs), len(self.roots)))
        children = self.children.ravel()
        for start in range(0, len(inputs), CHUNK):
            x = inputs[start : start + CHUNK]
            row = np.arange(len(x), dtype=np.int32)[:, None] * np.int32(x.shape[1])
            flat, node = np.ascontiguousarray(x).ravel(), np.tile(self.roots, (len(x), 1))
            for _ in range(self.depth):
                above = flat.take(row + self.feature.take(node)) > self.threshold.take(node)
                node = children.take(2 * node + above)
            found[start : start + CHUNK] = self.value.take(node)
        return found
