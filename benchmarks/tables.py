"""NAS-Bench-201 and NAS-Bench-Macro as spaces with tabular accuracies and costs, for the benchmarks of search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ofa.space import Population
from ofa.spaces.nasbench201 import SPACE as NASBENCH201
from search.nasbench_macro import SPACE as NASBENCH_MACRO
from search.tabular import TableRows, TabularCost

DATA_SETS = ("cifar10", "cifar100", "in16")


class Nasbench201:
    """All 15,625 cells: accuracies in [0, 1], MACs, parameters and latencies in milliseconds of six devices."""

    def __init__(self, data: Path) -> None:
        with np.load(data / "nasbench201_accuracy.npz") as table:
            self.columns = {name: table[name] for name in table.files}
        with np.load(data / "nasbench201_devices.npz") as devices:
            if not (devices["ops"] == self.columns["ops"]).all():
                raise ValueError("the two files list the cells in different orders")
            self.latency_ms = {name: devices[name] for name in devices.files if name != "ops"}
        self.space = NASBENCH201
        names = [str(name) for name in self.columns["op_names"]]
        order = [names.index(str(option)) for option in self.space.dimensions[-1].options]
        edges = np.argsort(order)[self.columns["ops"]].astype(np.int16)
        self.population = np.concatenate([np.zeros((len(edges), 1), np.int16), edges], axis=1)  # one resolution
        self.rows = TableRows(self.space, self.population)
        self.counts = {name: TabularCost(name, self.rows, self.columns[name].astype(float)) for name in ("params", "macs")}

    def top1(self, data_set: str, which: str) -> NDArray[np.float64]:
        """Return one column, e.g. which="val_12ep" or "test_200ep", (15625,) shares."""
        return self.columns[f"{data_set}_{which}"].astype(np.float64) / 100

    def find(self, population: Population) -> NDArray[np.int64]:
        return self.rows.find(population)


class NasbenchMacro:
    """All 6,561 networks: mean test accuracy of three trainings, in [0, 1], and MACs."""

    def __init__(self, data: Path) -> None:
        with np.load(data / "nasbench_macro_cifar10.npz") as table:
            self.top1 = table["test_acc"].astype(np.float64).mean(1) / 100
            self.seeds = table["test_acc"].astype(np.float64) / 100
            self.population = table["arch"].astype(np.int16)
            macs, params = table["macs"].astype(float), table["params"].astype(float)
        self.space = NASBENCH_MACRO
        self.rows = TableRows(self.space, self.population)
        self.counts = {"params": TabularCost("params", self.rows, params), "macs": TabularCost("macs", self.rows, macs)}
