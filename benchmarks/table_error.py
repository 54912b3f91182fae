"""How well a latency table predicts whole networks, against the ways that people write first, in the same run.

    python benchmarks/table_error.py [--space mbv3_small_image] [--networks 40] [--sessions 3]

cold table: what `ofa profile` does. hot loop: every block run many times in a row, calibrated in the same way. MACs: a line
fitted to MACs alone. All are calibrated on the same 20 networks and judged on the same others.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy import emit, get_device
from deploy.emit import input_shape
from deploy.runtimes import open_session
from deploy.timing import visit
from latency import ProfileConfig
from latency.profile import profile_space
from latency.table import Calibration, FitError, LatencyTable, block_design
from ofa import get_space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="mbv3_small_image")
    parser.add_argument("--networks", type=int, default=40, help="networks that are judged")
    parser.add_argument("--sessions", type=int, default=3)
    args = parser.parse_args()
    device = get_device("ort_cpu_1t")
    found: dict[str, list[FitError]] = {"cold table": [], "hot loop": [], "MACs": []}
    for session in range(args.sessions):
        with tempfile.TemporaryDirectory() as folder:
            config = ProfileConfig(num_validation=args.networks, seed=session)
            table = profile_space(get_space(args.space), device, config, journal=Path(folder) / "journal.jsonl")
        found["cold table"].append(table.error)
        found["hot loop"].append(hot_loop_error(table))
        found["MACs"].append(table.macs_error)
    print(f"{args.space}, {device.description}: median of {args.sessions} sessions, {args.networks} networks each")
    print("| | RMSPE | within 5 % | within 10 % | Kendall tau |\n|---|---|---|---|---|")
    for name, errors in found.items():
        rmspe, within_5, within_10, tau = np.median([(e.rmspe, e.within_5, e.within_10, e.kendall_tau) for e in errors], axis=0)
        print(f"| {name} | {rmspe:.1%} | {within_5:.0%} | {within_10:.0%} | {tau:.3f} |")


def hot_loop_error(table: LatencyTable) -> FitError:
    """The error of a table whose blocks were timed the usual way, on the networks that `table` measured."""
    space = table.space
    networks = table.provenance["networks"]
    population = space.encode([space.from_values(n["arch"]) for n in networks])
    measured = np.array([n["measured_ms"] for n in networks])
    fitted = np.array([n["fitted"] for n in networks])
    per_block = np.vstack([block_design(space.all_blocks, hot_times(table)), np.zeros(3)])
    design: NDArray[np.float64] = per_block[space.block_ids(population)].sum(1)
    return FitError.of(Calibration.fit(design[fitted], measured[fitted]).predict(design[~fitted]), measured[~fitted])


def hot_times(table: LatencyTable) -> list[float]:
    times = []
    for spec in table.space.all_blocks:
        inputs = np.random.default_rng(0).standard_normal((1, *input_shape(spec)), dtype=np.float32)
        call = open_session(emit({"block": spec}), get_device(table.device)).prepare(inputs)
        times.append(float(np.median([cpu for cpu, _ in visit(call, warm_up=5, runs=50)])))
    return times


if __name__ == "__main__":
    main()
