"""From times of blocks alone to the time of a network: a line fitted to a few whole networks, and how far off it is on others.

Blocks timed alone do not add up to a network: each run alone pays for a call and for layout changes at its ends, and finds other
caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ofa.block_spec import BlockSpec
from ofa.counts import block_macs


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
    Without arguments it is the plain sum.
    """

    per_ms: float = 1.0
    per_block_ms: float = 0.0
    per_mmac_ms: float = 0.0
    offset_ms: float = 0.0

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

    @classmethod
    def of_one(cls, alone_ms: float, measured_ms: float) -> Calibration:
        """Fit what a single network allows: one factor, of what it measured over the sum of its blocks' times, both above 0."""
        return cls(per_ms=measured_ms / alone_ms)

    def predict(self, design: NDArray[np.float64]) -> NDArray[np.float64]:
        """Predict networks from the columns that `fit` takes, (n,) ms."""
        return design @ np.array([self.per_ms, self.per_block_ms, self.per_mmac_ms]) + self.offset_ms

    def scaled(self, factor: float) -> Calibration:
        """Return the calibration of a device that became slower by a factor, with block times as they are."""
        return Calibration(self.per_ms * factor, self.per_block_ms * factor, self.per_mmac_ms * factor, self.offset_ms * factor)


def block_design(blocks: Sequence[BlockSpec], alone_ms: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a calibration reads of every block: its time alone, one, its million MACs, (n, 3)."""
    return np.array([(ms, 1.0, block_macs(spec) / 1e6) for spec, ms in zip(blocks, alone_ms, strict=True)]).reshape(-1, 3)


def leave_one_out_residuals(design: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return measured / predicted - 1 for every network, the calibration being fitted to the others."""
    others = ~np.eye(len(measured), dtype=bool)
    predicted = [Calibration.fit(design[k], measured[k]).predict(design[~k])[0] for k in others]
    return measured / np.array(predicted) - 1


def interval_margin(residuals: NDArray[np.float64], level: float = 0.9) -> float:
    """Return the share to add to and take from a prediction so that `level` of networks lie between.

    Args:
        residuals: of leave-one-out, (n,); they hold the error of the fit as well as that of the network.
    """
    from scipy.stats import t

    freedom = max(1, len(residuals) - 4)  # a calibration has four coefficients
    return float(t.ppf((1 + level) / 2, freedom) * np.sqrt((residuals**2).mean()))
