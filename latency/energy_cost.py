"""Energy of a network on a device: a line from its predicted latency, fitted to a few networks where the machine has a meter."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from deploy.device import DeviceSpec
from deploy.emit import emit, input_shape
from deploy.runtimes import open_session
from latency.energy import Meter, measure_energy_mj
from latency.table import LatencyTable
from ofa.errors import OfaError
from ofa.progress import progress
from ofa.space import ArchConfig, Population, SearchSpace

NETWORKS, SECONDS = 8, 2.0  # of each; counters move every millisecond or slower


@dataclass(frozen=True)
class EnergyCost:
    """Millijoules per batch; a cost model on top of a latency table that holds a line for energy."""

    table: LatencyTable
    quantity: ClassVar[str] = "energy"

    def __post_init__(self) -> None:
        if self.table.energy is None:
            raise OfaError(
                f"the table of {self.table.device} holds no energy: its machine showed no meter; "
                f"limit its latency instead: latency@{self.table.device}"
            )

    @property
    def space(self) -> SearchSpace:
        return self.table.space

    def __call__(self, arch: ArchConfig) -> float:
        return float(self.predict(self.space.encode([arch]))[0])

    def predict(self, population: Population) -> NDArray[np.float64]:
        """Predict the energy of every architecture, (n,) mJ.

        Raises:
            MissingBlockError: as the table does.
        """
        return self._of(self.table.predict(population))

    def price(self, population: Population) -> NDArray[np.float64]:
        """Predict like `predict`, with NaN for architectures that hold an unknown block, (n,) mJ."""
        return self._of(self.table.price(population))

    def upper(self, population: Population) -> NDArray[np.float64]:
        """Return the energy of what 95 % of networks take at most, (n,) mJ; infinity where a block is unknown."""
        return self._of(self.table.upper(population))

    def _of(self, latency_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        assert self.table.energy is not None
        return self.table.energy["watts"] * latency_ms + self.table.energy["offset_mj"]


def with_energy(table: LatencyTable, device: DeviceSpec, meter: Meter) -> LatencyTable:
    """Return the table with a line from milliseconds to millijoules, fitted to some of its networks.

    Args:
        table: as `profile_space` makes it, on this machine.
        device: what the networks run on.
        meter: what counts the energy of it.
    """
    known = sorted(table.provenance["networks"], key=lambda network: float(network["measured_ms"]))
    chosen = [known[i] for i in np.linspace(0, len(known) - 1, min(NETWORKS, len(known))).round().astype(int)]
    ms, mj = [], []
    with progress("measuring energy", len(chosen)) as advance:
        for network in chosen:
            chain = table.space.blocks(table.space.from_values(network["arch"]))
            shape = (device.batch_size, *input_shape(next(iter(chain.values()))))
            images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
            call = open_session(emit(chain, precision=device.graph_precision), device).prepare(images)
            ms.append(float(network["measured_ms"]))
            mj.append(measure_energy_mj(call, meter, SECONDS))
            advance()
    return replace(table, energy={**asdict(EnergyLine.fit(np.array(ms), np.array(mj))), "meter": meter.name})


@dataclass(frozen=True, slots=True)
class EnergyLine:
    """millijoules = watts * milliseconds + offset_mj."""

    watts: float
    offset_mj: float
    rmspe: float  # from measured latency, of each network, the line being fitted to the others

    @classmethod
    def fit(cls, ms: NDArray[np.float64], mj: NDArray[np.float64]) -> EnergyLine:
        """Fit by least squares of relative errors, (n,) each."""

        def line(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
            found, *_ = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]) / y[:, None], np.ones(len(y)), rcond=None)
            return found.astype(np.float64)

        errors = []
        for i in range(len(ms)):
            watts, offset = line(np.delete(ms, i), np.delete(mj, i))
            errors.append((watts * ms[i] + offset) / mj[i] - 1)
        watts, offset = line(ms, mj)
        return cls(float(watts), float(offset), float(np.sqrt(np.mean(np.square(errors)))))
