"""Guards against collapse: a differentiable search left alone ends in cells of skip connections, which train fast and do little.

On NAS-Bench-201 plain DARTS finds the cell of six skips (Dong and Yang 2020, arXiv 2001.00326: 54.30 % on CIFAR-10). All
guards are off unless asked for: without them the search is the published one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ofa.errors import OfaError


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """What to do against skips.

    | guard         | what                                                             | source                            |
    |---------------|------------------------------------------------------------------|-----------------------------------|
    | max_skips     | the derived normal cell has at most so many skips: the weakest   | Chen et al. 2019 (P-DARTS,        |
    |               | are struck out and the cell derived again                        | arXiv 1904.12760), section 3.3    |
    | stop_skips    | the search ends with the first epoch after which the normal      | Liang et al. 2019 (DARTS+,        |
    |               | cell, derived without max_skips, would have so many              | arXiv 1909.06035), who stop at 2  |
    | warmup_epochs | weights train alone for so many epochs before the first alpha    | P-DARTS, section 4.1.2: 10 of 25  |
    |               | step                                                             |                                   |
    | skip_drop     | an edge's skip is left out for this share of the images, which   | P-DARTS, section 3.3: there       |
    |               | falls in a line to 0 at the end of the search                    | elements, and the fall is faster  |
    """

    max_skips: int | None = None
    stop_skips: int | None = None
    warmup_epochs: int = 0
    skip_drop: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("max_skips", 0), ("stop_skips", 1), ("warmup_epochs", 0)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise OfaError(f"{name} is {value!r}, expected a whole number of at least {least}")
        if not isinstance(self.skip_drop, int | float) or not 0 <= self.skip_drop < 1:
            raise OfaError(f"skip_drop is {self.skip_drop!r}, expected a share of at least 0 and below 1")

    def drop_rate(self, step: int, total_steps: int) -> float:
        """Return the share of images that lose a skip in a step."""
        return self.skip_drop * (1 - step / total_steps)

    def decides(self, epoch: int) -> bool:
        """Tell whether alphas learn in an epoch, counted from 0."""
        return epoch >= self.warmup_epochs

    def ends(self, epoch: int, skips: Mapping[str, int]) -> str | None:
        """Return why the search ends after an epoch, counted from 0; None = it goes on.

        Args:
            skips: number of skips in each cell as derived without `max_skips`; the first cell counts.
        """
        if self.stop_skips is None or not self.decides(epoch):  # alphas that never learned are noise
            return None
        cell, found = next(iter(skips.items()))
        return f"{found} skips in the {cell} cell, stop_skips is {self.stop_skips}" if found >= self.stop_skips else None
