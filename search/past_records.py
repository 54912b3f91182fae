"""Searches and menus as the report shows them: what front.json and menu.json hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.limits import Limit
from ofa.space import ArchConfig
from search.result import Candidate
from search.wording import Source, source


@dataclass(frozen=True)
class PredictorFacts:
    """What is known of the predictor that a search relied on."""

    kind: str
    kendall_tau: float | None  # on held-out networks; None = unknown
    macs_tau: float | None  # of ranking the same networks by MACs alone
    held_out: tuple[tuple[float, float], ...]  # (predicted, measured) top-1, each predicted by a model fitted without it


@dataclass(frozen=True)
class Round:
    """The state of a search after a round; None = unknown."""

    evaluations: int
    best_top1: float | None
    front_size: int
    hypervolume: float | None


@dataclass(frozen=True)
class Search:
    """A front.json."""

    name: str
    path: Path
    objectives: tuple[str, ...]
    limits: tuple[Limit, ...]
    strategy: str
    accuracy: str
    evals: int
    new_evaluations: int
    ranges: tuple[Mapping[str, Any], ...]  # limit: Limit; minimum, median, maximum, share: numbers
    feasibility: tuple[str, ...]
    num_candidates: int  # measured networks
    candidates: tuple[Candidate, ...]  # all of them, or of very many some, in the order of measurement
    front: tuple[Candidate, ...]
    best: Candidate
    predictor: PredictorFacts | None
    history: tuple[Round, ...]

    @property
    def source(self) -> Source:
        """What told its accuracies, in words."""
        return source(self.accuracy)

    @property
    def top1(self) -> dict[ArchConfig, float]:
        """Top-1 of every measured network."""
        return {candidate.arch: candidate.top1 for candidate in (*self.candidates, self.best)}

    @property
    def cost_keys(self) -> list[str]:
        """The costs that it limits or minimises."""
        minimised = [text.partition(" ")[2].strip() for text in self.objectives if text.startswith("min ")]
        return list(dict.fromkeys([*(limit.key for limit in self.limits if limit.quantity != "top1"), *minimised]))


@dataclass(frozen=True)
class OldSearch:
    """A front.json that an older version wrote."""

    name: str
    path: Path
    command: str  # that makes it anew


@dataclass(frozen=True)
class Menu:
    """A menu.json, or a <tag>_menu.json."""

    name: str  # of the file, without its ending
    rows: tuple[MenuRow, ...]


@dataclass(frozen=True)
class MenuRow:
    """What one target of a search with several targets gets."""

    name: str
    limits: tuple[Limit, ...]
    best: Candidate | None
    reason: str  # why there is none
