"""Accuracy predictor: from measured subnets to all others, with its rank correlation on subnets it was not fitted to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from latency.cost import CostModel
from ofa.errors import OfaError
from ofa.space import Population, SearchSpace
from search.features import Features, Inputs
from search.regressors import Regressor, get_regressor
from search.scale import Scale

# The first is kept unless another ranks better by more than chance. The process holds the ridge as a special case, and is at the
# front on every table; MACs alone come last, since they teach a search nothing new. The others take longer to fit or to predict
# (blend, random_forest, gradient_boosting, mlp, torch_mlp) or are often lucky with few networks (ridge_pairs): ask by name.
DEFAULT_KINDS = ("gaussian_process", "ridge", "macs")
MIN_NETWORKS = 10
FEW = 60  # networks, up to which ten folds are used instead of five
CHUNK = 4096  # architectures encoded at a time

Values = NDArray[np.float64]


@dataclass(frozen=True)
class AccuracyPredictor:
    """A regression from architectures to top-1.

    `kendall_tau` compares cross-validated predictions with measured accuracy: every subnet is predicted by a model that was
    fitted without it. `macs_tau` is what ranking by multiply-adds alone would have given, NaN where they are unknown.
    """

    features: Features
    kind: str
    regressor: Regressor
    scale: Scale
    widening: tuple[float, float]  # factor on the regression's own spread, and deviation added to it; of scores
    taus: Mapping[str, float]  # of every kind that was tried
    macs_tau: float
    held_out: tuple[tuple[float, float], ...] = field(repr=False)  # (predicted, measured) top-1, cross-validated

    @property
    def kendall_tau(self) -> float:
        """Rank correlation on subnets that the model was not fitted to."""
        return self.taus[self.kind]

    def predict(self, population: Population) -> Values:
        """Predict top-1 of every architecture, (n,)."""
        found = [self.scale.to_top1(self.regressor.predict(inputs)) for inputs in self._chunks(population)]
        return np.concatenate(found) if found else np.empty(0)

    def uncertainty(self, population: Population) -> Values:
        """Return the standard deviation of measured minus predicted top-1, (n,).

        It holds the measurement's own noise, and is scaled to the errors that cross-validation has seen.
        """
        factor, added = self.widening
        found = []
        for inputs in self._chunks(population):
            scores = self.regressor.predict(inputs)
            deviation = np.hypot(factor * self.regressor.spread(inputs), added)
            found.append((self.scale.to_top1(scores + deviation) - self.scale.to_top1(scores - deviation)) / 2)
        return np.concatenate(found) if found else np.empty(0)

    def save(self, path: Path | str) -> None:
        """Write <path> (JSON: what was fitted, and how well) and the arrays beside it (.safetensors)."""
        from search.predictor_file import save_predictor

        save_predictor(self, Path(path))

    @staticmethod
    def load(path: Path | str, space: SearchSpace, *, costs: Mapping[str, CostModel] | None = None) -> AccuracyPredictor:
        """Read a predictor that `save` wrote.

        Args:
            costs: as in fit_predictor, if it was given any.
        Raises:
            ArtefactError: if a file is missing, damaged or of another space.
        """
        from search.predictor_file import load_predictor

        return load_predictor(Path(path), Features(space, costs))

    def _chunks(self, population: Population) -> list[Inputs]:
        return [self.features(population[start : start + CHUNK]) for start in range(0, len(population), CHUNK)]


def fit_predictor(
    space: SearchSpace,
    population: Population,
    measured: Values,
    *,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
    costs: Mapping[str, CostModel] | None = None,
) -> AccuracyPredictor:
    """Fit several kinds of model and keep the most welcome of those that rank held-out subnets as well as any.

    With the default kinds, 300 subnets take about 1 s on one thread, and 100 a third of that.

    Args:
        population: (n, dimensions), n >= 10.
        measured: (n,) top-1.
        kinds: names of search.regressors, the most welcome first; None = DEFAULT_KINDS that suit the space.
        costs: costs that help to predict accuracy, by name; None = parameters and MACs where the space has blocks.
    Raises:
        ValueError: for fewer than ten subnets, or numbers that are not finite.
        OfaError: for an unknown kind, or one that does not suit the space.
    """
    if len(population) < MIN_NETWORKS:
        raise ValueError(f"{len(population)} measured subnets, expected at least {MIN_NETWORKS} to fit a predictor")
    measured = np.asarray(measured, dtype=np.float64)
    if not np.isfinite(measured).all():
        raise ValueError(f"measured top-1 is {measured[~np.isfinite(measured)][0]} in one place, expected finite numbers")
    features = Features(space, costs)
    inputs = features(population)
    found = {kind: _cross_validate(kind, features, inputs, measured, seed) for kind in _suitable(features, kinds)}
    kind = list(found)[_first_of_the_best([held_out.top1 for held_out in found.values()], measured)]
    scale = Scale.of(measured)
    column = features.layout.column("macs")
    return AccuracyPredictor(
        features=features,
        kind=kind,
        regressor=get_regressor(kind).fit(inputs, scale.to_scores(measured), features.layout, seed),
        scale=scale,
        widening=found[kind].widening(),
        taus={name: kendall_tau(held_out.top1, measured) for name, held_out in found.items()},
        macs_tau=np.nan if column is None else kendall_tau(inputs[:, column], measured),
        held_out=tuple(zip(found[kind].top1.tolist(), measured.tolist(), strict=True)),
    )


def kendall_tau(predicted: NDArray[np.floating], measured: Values) -> float:
    """Return the rank correlation; 0 where all are equal and there is no ranking."""
    tau = float(kendalltau(predicted, measured).statistic)
    return tau if np.isfinite(tau) else 0.0


@dataclass(frozen=True)
class _HeldOut:
    """What models say of networks that they were not fitted to, (n,) each."""

    top1: Values
    errors: Values  # measured minus predicted, in scores
    spread: Values  # of the prediction, in scores

    def widening(self) -> tuple[float, float]:
        """Return what makes the spread as large as the errors: a factor and an added deviation."""
        seen, claimed = float(np.mean(self.errors**2)), float(np.mean(self.spread**2))
        if seen < claimed:
            return math.sqrt(seen / claimed), 0.0
        return 1.0, math.sqrt(seen - claimed)


def _suitable(features: Features, kinds: Sequence[str] | None) -> list[str]:
    if kinds is None:
        return [kind for kind in DEFAULT_KINDS if not get_regressor(kind).supports(features.layout)]
    if not kinds:
        raise OfaError("no kind of predictor given, expected at least one")
    for kind in kinds:
        reason = get_regressor(kind).supports(features.layout)
        if reason:
            raise OfaError(f"predictor {kind!r} does not suit space {features.space.name}: {reason}")
    return list(dict.fromkeys(kinds))


def _cross_validate(kind: str, features: Features, inputs: Inputs, measured: Values, seed: int) -> _HeldOut:
    n, whole = len(measured), Scale.of(measured)
    fold = np.random.default_rng(0).permutation(n) % (10 if n <= FEW else 5)
    found = _HeldOut(np.empty(n), np.empty(n), np.empty(n))
    for f in range(fold.max() + 1):
        train, test = fold != f, fold == f
        scale = Scale.of(measured[train])
        model = get_regressor(kind).fit(inputs[train], scale.to_scores(measured[train]), features.layout, seed)
        scores = model.predict(inputs[test])
        # One scale reads the scores of all folds. Each fold's own would lie a little lower where good networks are left out, and
        # a model that knows nothing would seem to rank them backwards.
        found.top1[test] = whole.to_top1(scores)
        found.errors[test] = scale.to_scores(measured[test]) - scores
        found.spread[test] = model.spread(inputs[test])
    return found


def _first_of_the_best(predicted: Sequence[Values], measured: Values) -> int:
    """Return the first of several that ranks worse than the best by no more than two standard errors of their difference."""
    order = np.sign(measured[:, None] - measured)
    # share of the other networks to which each one is ranked right minus those to which it is ranked wrong
    agreed = [(np.sign(p[:, None] - p) * order).sum(1) / (len(measured) - 1) for p in predicted]
    best = agreed[int(np.argmax([a.mean() for a in agreed]))]
    errors = [2 * (best - a).std() / len(measured) ** 0.5 for a in agreed]  # doubled, since every pair counts in two rows
    return next(i for i, a in enumerate(agreed) if best.mean() - a.mean() <= 2 * errors[i])
