"""Latency predicted from timings of whole networks, where nobody timed blocks.

What a line through log MACs and log latency leaves over is regressed on the choices, so that a model which learns nothing still
predicts by MACs. The file holds the timings, not the model: at load the same model is fitted to the same numbers again. A pickled
model would run whatever code it holds when it is opened, and break with the next release of the library.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from latency.calibration import Calibration, FitError, interval_margin
from latency.table_file import DeviceName, Error, Pair, validated
from ofa.artefacts import ArtefactError, read_json, write_json
from ofa.counts import macs, params
from ofa.errors import OfaError
from ofa.space import ArchConfig, InvalidArchError, Population, RestrictedSpace, SearchSpace
from ofa.spaces import get_space

SCHEMA = "ofa.latency_predictor/1"
MIN_NETWORKS = 20
MAX_GAUSSIAN_PROCESS = 1000  # its fit takes the cube of the number of networks
FOLDS = 5
Kind = Literal["macs", "ridge", "gaussian_process", "gradient_boosting"]
Predict = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class LatencyPredictor:
    """Latency of one device in milliseconds, by a regression on timed networks; a cost model."""

    space: SearchSpace
    device: str
    kind: Kind
    seed: int
    timed_space: SearchSpace  # of the timed networks: `space`, or what that is restricted from
    timed: Population  # (n, dimensions) of `timed_space`, distinct and canonical
    measured: NDArray[np.float64]  # (n,) ms
    held_out: NDArray[np.float64]  # (n,) ms, each predicted by a model that was fitted without it
    margin: float  # nine networks in ten measure within prediction * (1 +- margin)
    error: FitError  # of `held_out`
    macs_error: FitError  # of a line fitted to MACs alone, on the same folds
    provenance: Mapping[str, Any] = field(default_factory=dict)
    quantity: ClassVar[str] = "latency"

    def __call__(self, arch: ArchConfig) -> float:
        """Predict one architecture's latency in milliseconds."""
        return float(self.predict(self.space.encode([arch]))[0])

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Predict the latency of every architecture in milliseconds, (n,)."""
        if self.space is not self.timed_space:
            population = self.timed_space.encode(self.space.decode(population))
        return self._model(features(self.timed_space, population))

    def interval(self, population: Population) -> NDArray[np.float64]:
        """Return between which values nine architectures in ten measure, (n, 2) ms."""
        return self.predict(population)[:, None] * [max(0.0, 1 - self.margin), 1 + self.margin]

    def upper(self, population: Population) -> NDArray[np.float64]:
        """Return what 95 % of networks measure at most, (n,) ms."""
        return self.predict(population) * (1 + self.margin)

    @property
    def validation(self) -> tuple[tuple[float, float], ...]:
        """(predicted, measured) ms of the networks that `error` is about."""
        return tuple(zip(self.held_out.tolist(), self.measured.tolist(), strict=True))

    @cached_property
    def _model(self) -> Predict:
        return _fit(self.kind, self.seed, features(self.timed_space, self.timed), self.measured)

    # -- the file ------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the timings and what was fitted to them as JSON."""
        archs = self.timed_space.decode(self.timed)
        networks = [
            {"values": list(arch.values), "predicted_ms": predicted, "measured_ms": measured}
            for arch, (predicted, measured) in zip(archs, self.validation, strict=True)
        ]
        write_json(
            path,
            {
                "schema": SCHEMA,
                "space": self.space.name,
                "device": self.device,
                "kind": self.kind,
                "seed": self.seed,
                "margin": self.margin,
                "error": asdict(self.error),
                "macs_error": asdict(self.macs_error),
                "provenance": dict(self.provenance),
                "dimensions": [dimension.name for dimension in self.timed_space.dimensions],
                "networks": networks,
            },
            sealed=True,
        )

    @classmethod
    def load(cls, path: Path, space: SearchSpace) -> LatencyPredictor:
        """Read timings and fit the model to them as it was fitted before.

        Raises:
            ArtefactError: if the file is missing, damaged, of another space, or holds a value that is no latency.
        """
        value = validated(_File, read_json(path, schema=SCHEMA), path)
        if value.space != space.name:
            raise ArtefactError(f"{path}: is of space {value.space!r}, expected {space.name!r}; import timings of this one")
        whole = space if not isinstance(space, RestrictedSpace) else get_space(space.name, num_classes=space.num_classes)
        archs = []
        for i, network in enumerate(value.networks):
            if len(network.values) != len(value.dimensions):
                raise ArtefactError(f"{path}: networks.{i} has {len(network.values)} values, expected {len(value.dimensions)}")
            try:
                archs.append(whole.from_values(dict(zip(value.dimensions, network.values, strict=True))))
            except InvalidArchError as error:
                raise ArtefactError(f"{path}: networks.{i}: {error}") from None
        return cls(
            space=space,
            device=value.device,
            kind=value.kind,
            seed=value.seed,
            timed_space=whole,
            timed=whole.canonical(whole.encode(archs)),
            measured=np.array([network.measured_ms for network in value.networks]),
            held_out=np.array([network.predicted_ms for network in value.networks]),
            margin=value.margin,
            error=FitError(**value.error.model_dump()),
            macs_error=FitError(**value.macs_error.model_dump()),
            provenance=value.provenance,
        )


def fit_latency(
    space: SearchSpace,
    device: str,
    population: Population,
    measured: NDArray[np.float64],
    *,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> LatencyPredictor:
    """Fit every kind of model and keep the one with the smallest error on networks held out of its fit.

    Args:
        space: the space of the timed networks.
        device: name of the device.
        population: (n, dimensions) distinct and canonical, n >= MIN_NETWORKS.
        measured: (n,) ms.
        seed: of the folds and of boosting.
        provenance: where the timings come from.
    Raises:
        OfaError: for too few networks.
    """
    if len(population) < MIN_NETWORKS:
        raise OfaError(
            f"{len(population)} different networks timed, expected at least {MIN_NETWORKS} to fit a predictor; time more"
        )
    inputs = features(space, population)
    kinds = [kind for kind in get_args(Kind) if kind != "gaussian_process" or len(population) <= MAX_GAUSSIAN_PROCESS]
    found = {kind: _hold_out(partial(_fit, kind, seed), inputs, measured, seed) for kind in kinds}
    errors = {kind: FitError.of(predicted, measured) for kind, predicted in found.items()}
    best = min(kinds, key=lambda kind: (errors[kind].rmspe, -errors[kind].kendall_tau))
    return LatencyPredictor(
        space=space,
        device=device,
        kind=best,
        seed=seed,
        timed_space=space,
        timed=population,
        measured=measured,
        held_out=found[best],
        margin=interval_margin(measured / found[best] - 1),
        error=errors[best],
        macs_error=FitError.of(_hold_out(_fit_line, inputs, measured, seed), measured),
        provenance=provenance or {},
    )


def features(space: SearchSpace, population: Population) -> NDArray[np.float64]:
    """Encode architectures: one-hot choices (zeros if without effect), MACs and parameters in millions, (n, options + 2)."""
    counts = [count(space, population) / 1e6 for count in (macs, params)]
    return np.column_stack([space.one_hot(population), *counts])


def _fit(kind: Kind, seed: int, inputs: NDArray[np.float64], measured: NDArray[np.float64]) -> Predict:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    slope, *_ = np.linalg.lstsq(_log_macs(inputs), np.log(measured), rcond=None)
    rest = np.log(measured) - _log_macs(inputs) @ slope
    with warnings.catch_warnings():  # a kernel parameter at its bound is a legitimate optimum here
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = make_pipeline(StandardScaler(), _regressor(kind, seed, inputs.shape[1])).fit(inputs, rest)
    return lambda inputs: np.exp(_log_macs(inputs) @ slope + model.predict(inputs))


def _regressor(kind: Kind, seed: int, num_inputs: int) -> Any:
    from sklearn.dummy import DummyRegressor
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
    from sklearn.linear_model import RidgeCV

    if kind == "macs":
        return DummyRegressor()
    if kind == "ridge":
        return RidgeCV(alphas=np.logspace(-4, 4, 25))
    if kind == "gradient_boosting":
        return GradientBoostingRegressor(n_estimators=300, max_depth=3, learning_rate=0.05, subsample=0.8, random_state=seed)
    # inputs are standardised, so distances grow with the square root of their number
    kernel = ConstantKernel(1.0) * RBF(num_inputs**0.5, (1, 1e3)) + WhiteKernel(0.1, (1e-5, 1e1))
    return GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)


def _log_macs(inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack([np.log(inputs[:, -2]), np.ones(len(inputs))])  # see `features`


def _fit_line(inputs: NDArray[np.float64], measured: NDArray[np.float64]) -> Predict:
    only_macs = np.array([0.0, 0.0, 1.0])  # of the three columns that a calibration reads
    line = Calibration.fit(inputs[:, [-2]] * only_macs, measured)
    return lambda inputs: line.predict(inputs[:, [-2]] * only_macs)


def _hold_out(
    fit: Callable[[NDArray[np.float64], NDArray[np.float64]], Predict],
    inputs: NDArray[np.float64],
    measured: NDArray[np.float64],
    seed: int,
) -> NDArray[np.float64]:
    """Predict every network by a model that was fitted to the other folds, (n,) ms."""
    from sklearn.model_selection import KFold

    predicted = np.empty(len(measured))
    for train, test in KFold(FOLDS, shuffle=True, random_state=seed).split(inputs):
        predicted[test] = fit(inputs[train], measured[train])(inputs[test])
    return predicted


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Network(Pair):
    values: list[int | float | str]


class _File(_Part):
    schema_: Literal["ofa.latency_predictor/1"] = Field(alias="schema")
    space: str
    device: DeviceName
    kind: Kind
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    error: Error
    macs_error: Error
    provenance: dict[str, Any] = {}
    dimensions: list[str]
    networks: list[_Network] = Field(min_length=MIN_NETWORKS)
