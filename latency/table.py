"""Latency tables: a measured time for every block of a space, fitted to whole networks, with a statement of its own error.

Blocks timed alone do not add up to a network: each run alone pays for a call and for layout changes at its ends, and finds other
caches. So the sum is calibrated on a few measured whole networks. How far off it then is on other networks is part of the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ofa.artefacts import ArtefactError, is_positive, read_json, write_json
from ofa.block_spec import BlockSpec
from ofa.counts import block_macs
from ofa.errors import OfaError
from ofa.space import ArchConfig, Population, SearchSpace

SCHEMA = "ofa.latency/1"


class MissingBlockError(OfaError):
    """A table has no entry for a block."""


@dataclass(frozen=True, slots=True)
class FitError:
    """Predicted against measured latency on whole networks that were not used for the fit. Errors are shares, not %."""

    n: int
    mape: float  # mean |relative error|
    rmspe: float  # root mean square of relative errors
    within_5: float  # share of networks within 5 %
    within_10: float
    kendall_tau: float  # rank agreement

    @classmethod
    def of(cls, predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> FitError:
        from scipy.stats import kendalltau

        relative = np.abs(predicted / measured - 1)
        tau = float(kendalltau(predicted, measured).statistic)
        return cls(
            len(measured),
            float(relative.mean()),
            float(np.sqrt((relative**2).mean())),
            float((relative <= 0.05).mean()),
            float((relative <= 0.10).mean()),
            tau if np.isfinite(tau) else 0.0,
        )

    def __str__(self) -> str:
        return (
            f"RMSPE {self.rmspe:.1%}, within 5% {self.within_5:.0%}, within 10% {self.within_10:.0%}, "
            f"Kendall tau {self.kendall_tau:.2f} on {self.n} networks"
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """How times of blocks alone become the time of a network, in milliseconds.

    network = sum over blocks (per_ms * time alone + per_block_ms + per_mmac_ms * million MACs) + offset_ms

    per_block_ms is negative where a call costs more than a block inside a network; the MACs take up what layout changes hide.
    """

    per_ms: float
    per_block_ms: float
    per_mmac_ms: float
    offset_ms: float

    @classmethod
    def fit(cls, design: NDArray[np.float64], measured: NDArray[np.float64]) -> Calibration:
        """Fit by least squares of relative errors.

        Args:
            design: (n, 3), for every network the sum of its blocks' times, their number, and its million MACs.
            measured: (n,) milliseconds.
        """
        relative = np.column_stack([design, np.ones(len(design))]) / measured[:, None]
        coefficients, *_ = np.linalg.lstsq(relative, np.ones(len(design)), rcond=None)
        return cls(*coefficients.tolist())

    def predict(self, design: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predict networks from the columns that `fit` takes, (n,) ms."""
        return design @ np.array([self.per_ms, self.per_block_ms, self.per_mmac_ms]) + self.offset_ms


@dataclass(frozen=True)
class LatencyTable:
    """Latency of one device in milliseconds per batch; a cost model."""

    space: SearchSpace
    device: str
    entries: Mapping[BlockSpec, float]  # milliseconds of a block run alone
    calibration: Calibration
    error: FitError  # of this table
    macs_error: FitError  # of a line fitted to MACs alone on the same networks
    margin: float  # share added to a prediction so that 95 % of networks stay below it
    validation: tuple[tuple[float, float], ...]  # (predicted, measured) ms, the networks that `error` is about
    provenance: Mapping[str, Any]
    quantity: ClassVar[str] = "latency"

    @cached_property
    def _values(self) -> NDArray[np.float64]:
        missing = [spec for spec in self.space.all_blocks if spec not in self.entries]
        if missing:
            raise MissingBlockError(
                f"table of {self.device} has no entry for {missing[0]} (and {len(missing) - 1} more of {self.space.name}); "
                f"measure them: ofa profile RUN --device {self.device}"
            )
        design = block_design(self.space.all_blocks, [self.entries[spec] for spec in self.space.all_blocks])
        # one more entry, zero, at the end: index -1 stands for no block
        return np.append(self.calibration.predict(design) - self.calibration.offset_ms, 0.0)

    def __call__(self, arch: ArchConfig) -> float:
        """Predict one architecture's latency in milliseconds."""
        return float(self.predict(self.space.encode([arch]))[0])

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Predict the latency of every architecture in milliseconds, (n,).

        Raises:
            MissingBlockError: naming a block of the space that was not measured.
        """
        return self._values[self.space.block_ids(population)].sum(1) + self.calibration.offset_ms

    def upper(self, population: Population) -> NDArray[np.float64]:
        """Return what 95 % of networks measure at most, (n,) ms: the prediction plus the table's margin."""
        return self.predict(population) * (1 + self.margin)

    def save(self, path: Path) -> None:
        """Write the table as JSON, readable without this code."""
        write_json(
            path,
            {
                "schema": SCHEMA,
                "space": self.space.name,
                "device": self.device,
                "calibration": asdict(self.calibration),
                "margin": self.margin,
                "error": asdict(self.error),
                "macs_error": asdict(self.macs_error),
                "validation": [{"predicted_ms": p, "measured_ms": m} for p, m in self.validation],
                "provenance": dict(self.provenance),
                "entries": [{"block": spec.to_dict(), "ms": ms} for spec, ms in self.entries.items()],
            },
        )

    @classmethod
    def load(cls, path: Path, space: SearchSpace) -> LatencyTable:
        """Read a table.

        Raises:
            ArtefactError: if the file is missing, damaged, of another space, or holds a value that is no latency.
        """
        value = read_json(path, schema=SCHEMA)
        if value.get("space") != space.name:
            raise ArtefactError(
                f"{path}: is a table of space {value.get('space')!r}, expected {space.name!r}; measure this one: ofa profile"
            )
        try:
            entries = {BlockSpec.from_dict(entry["block"]): entry["ms"] for entry in value["entries"]}
            bad = next((f"{spec}: {ms!r}" for spec, ms in entries.items() if not is_positive(ms)), None)
            if bad:
                raise ArtefactError(f"{path}: {bad} is not a positive number; the table is damaged")
            calibration = Calibration(**{name: float(number) for name, number in value["calibration"].items()})
            numbers = [*asdict(calibration).values(), float(value["margin"])]
            if not np.isfinite(numbers).all():
                raise ArtefactError(f"{path}: calibration or margin {numbers} is not finite; the table is damaged")
            return cls(
                space,
                str(value["device"]),
                entries,
                calibration,
                FitError(**value["error"]),
                FitError(**value["macs_error"]),
                float(value["margin"]),
                tuple((float(pair["predicted_ms"]), float(pair["measured_ms"])) for pair in value["validation"]),
                value["provenance"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ArtefactError):
                raise
            raise ArtefactError(f"{path}: incomplete or damaged latency table ({error})") from None


def block_design(blocks: Sequence[BlockSpec], alone_ms: Sequence[float]) -> NDArray[np.float64]:
    """Return what a calibration reads of every block: its time alone, one, its million MACs, (n, 3)."""
    return np.array([(ms, 1.0, block_macs(spec) / 1e6) for spec, ms in zip(blocks, alone_ms, strict=True)])
