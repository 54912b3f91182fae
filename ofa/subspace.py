"""A space with some options left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from ofa.space import Dimension, InvalidArchError, Population, SearchSpace, Slot, Value


class SubSpace(SearchSpace):
    """A space with some options left out, such as the input sizes that a latency table does not hold."""

    def __init__(self, space: SearchSpace, options: Mapping[str, Collection[Value]]) -> None:
        self.whole = space
        self.name, self.num_classes = space.name, space.num_classes
        self.bn_eps, self.kernel_transforms = space.bn_eps, space.kernel_transforms
        unknown = sorted(set(options) - set(space.column))
        if unknown:
            raise InvalidArchError(f"{space.name} has no dimension {unknown[0]!r}; it has: {', '.join(space.column)}")
        kept = {d.name: [i for i, v in enumerate(d.options) if v in options.get(d.name, d.options)] for d in space.dimensions}
        dimensions = []
        for d in space.dimensions:
            if not kept[d.name]:
                raise InvalidArchError(f"{space.name}: no option of {d.name} is left, expected some of {d.options}")
            requires = d.requires and (d.requires[0], sum(i < d.requires[1] for i in kept[d.requires[0]]))
            dimensions.append(Dimension(d.name, tuple(d.options[i] for i in kept[d.name]), requires))
        self._dimensions = tuple(dimensions)
        self._kept = [np.array(kept[d.name], dtype=np.int16) for d in space.dimensions]

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        return self._dimensions

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self.whole.slots

    def widen(self, population: Population) -> Population:
        """Return the same architectures as option indices of the whole space, canonical."""
        columns = [kept[population[:, c]] for c, kept in enumerate(self._kept)]
        return self.whole.canonical(np.stack(columns, axis=1))

    def narrow(self, population: Population) -> Population:
        """Return the option indices of those architectures of the whole space that this one has, canonical."""
        inside = np.ones(len(population), dtype=bool)
        active = self.whole.active(population)
        columns = []
        for c, kept in enumerate(self._kept):
            index = np.searchsorted(kept, population[:, c]).clip(max=len(kept) - 1)
            inside &= (kept[index] == population[:, c]) | ~active[:, c]
            columns.append(index.astype(np.int16))
        return self.canonical(np.stack(columns, axis=1)[inside])

    def with_num_classes(self, num_classes: int) -> SearchSpace:
        return SubSpace(self.whole.with_num_classes(num_classes), {d.name: d.options for d in self.dimensions})
