"""The phases of a training: one for most recipes, the published sequence for progressive shrinking.

Progressive shrinking (Cai et al. 2020, section 3.2, and the released script): the largest network first, then kernel sizes,
depths and widths become elastic one after the other, the networks of a step being taught by the largest one. A kind of choice
that a space lacks has no phase; a kind that the publication lacks (the width of a stage) follows in the same manner.

| phase       | becomes elastic | subnets a step | epochs (+ warm-up) | rate, of the peak |
|-------------|-----------------|----------------|--------------------|-------------------|
| teacher     | -               | 1              | 180                | 1                 |
| kernel_size | all kernels     | 1              | 120 (+5)           | 1                 |
| depth 1     | one less        | 2              | 25                 | 1/12              |
| depth 2     | all             | 2              | 120 (+5)           | 1/4               |
| expand 1    | one less        | 4              | 25                 | 1/12              |
| expand 2    | all             | 4              | 120 (+5)           | 1/4               |

At `--epochs 605 --lr 0.03 --batch-size 64` (a GPU) these are the published numbers; other totals scale the epochs. The length of
the first phase is that of the paper, as the script of the teacher was not released.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ofa.errors import OfaError
from ofa.space import SearchSpace
from ofa.training.attentive import Attentive
from ofa.training.config import TrainConfig
from ofa.training.rules import Rule, Sandwich, Shrinking, SinglePath

TEACHER = "teacher"
SHORT, LONG = (25.0, 0.0, 1 / 12), (125.0, 5.0, 1 / 4)  # epochs, of these warm-up, share of the peak rate
SUBNETS = {"kernel_size": 1, "depth": 2, "expand_ratio": 4, "width": 4}  # in the order of their phases


@dataclass(frozen=True)
class Phase:
    """Steps [start, end) of a training, with their own optimiser state and rise and fall of the learning rate."""

    name: str
    rule: Rule
    start: int
    end: int
    warmup_steps: int
    lr: float  # peak
    sort_channels: int | None = None  # re-sort at the start, this many trained widths keeping their order; None = leave


def make_phases(space: SearchSpace, config: TrainConfig, *, total_steps: int, taught: bool) -> list[Phase]:
    """Return the phases of a training; `taught` tells whether the user gave an external teacher.

    Raises:
        OfaError: if there is nothing to train.
    """
    taught = taught and config.distillation != "none"
    if config.recipe == "progressive":
        return _progressive(space, config, total_steps, taught)
    kinds: dict[str, Callable[..., Rule]] = {"sandwich": Sandwich, "single_path": SinglePath, "attentive": Attentive}
    warmup = max(1, round(total_steps * config.warmup)) if config.warmup else 0
    return [Phase(config.recipe, kinds[config.recipe](space, config, taught=taught), 0, total_steps, warmup, config.lr)]


def _progressive(space: SearchSpace, config: TrainConfig, total_steps: int, taught: bool) -> list[Phase]:
    plan: list[tuple[str, Rule, float, float, float, int | None]] = []
    kinds = np.array([d.name.rpartition(".")[2] for d in space.dimensions])
    last = space.num_options - 1
    least = np.where(kinds == "resolution", 0, last)  # the resolution is elastic from the start
    if not config.skip_teacher:
        rule = Shrinking(space, config, taught=taught, least=least, num_subnets=1)
        plan.append((TEACHER, rule, 180.0, 0.0, 1.0, None))
    distils = config.distillation != "none"
    for kind, num_subnets in SUBNETS.items():
        smaller = int(last[kinds == kind].max(initial=0))  # how many options there are below the largest
        whole = kind == "kernel_size"  # all kernels become elastic at once
        for level in range(smaller if whole else 1, smaller + 1) if smaller else ():
            least = np.where(kinds == kind, np.maximum(0, last - level), least)
            rule = Shrinking(space, config, taught=distils, least=least, num_subnets=num_subnets)
            epochs, warmup, rate = LONG if level == smaller else SHORT
            sort = level - 1 if kind == "expand_ratio" else None
            plan.append((kind if whole else f"{kind} {level}", rule, epochs, warmup, 1.0 if whole else rate, sort))
    if not plan:
        raise OfaError(
            f"progressive shrinking has nothing to do: {space.name} has no elastic choice here, and the teacher is skipped"
        )
    ends = np.array(list(accumulate(entry[2] for entry in plan)))
    bounds = [0, *(int(v) for v in np.round(ends / ends[-1] * total_steps))]
    return [
        Phase(name, rule, start, end, round((end - start) * warmup / epochs), config.lr * rate, sort)
        for (name, rule, epochs, warmup, rate, sort), start, end in zip(plan, bounds[:-1], bounds[1:], strict=True)
        if end > start
    ]
