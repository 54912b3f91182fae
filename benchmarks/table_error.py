"""How well a latency table predicts whole networks, against the ways that people write first, in the same run.

    python benchmarks/table_error.py [--space ofa_mbv3_w1_0] [--sessions 3] [--other openvino_bf16_1t]

A session profiles the device as `ofa profile` does (20 networks to fit, 60 s), then times random networks that nothing was fitted
to, and predicts those. Beside the table: a line fitted to MACs alone, a table of blocks timed in a hot loop with the same
calibration, and a Gaussian process on 40 whole networks. The networks are the same in every session, which tells how
repeatable a measurement is at all. --other times them on a second device too: how differently it ranks them, and what the
table of the first says of it.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from deploy import get_device
from deploy.device import DeviceSpec
from deploy.emit import emit, input_shape
from deploy.runtimes import open_session
from deploy.timing import visit
from latency import ProfileConfig
from latency.calibration import Calibration, FitError
from latency.plan import Networks, make_plan, reachable_blocks, timed_resolutions
from latency.profile import measure_here, profile_space
from latency.results import network_design
from latency.table import LatencyTable
from ofa import SearchSpace, get_space

FIT, HOT_RUNS = 20, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="ofa_mbv3_w1_0")
    parser.add_argument("--device", default="ort_cpu_1t")
    parser.add_argument("--other", help="a second device")
    parser.add_argument("--networks", type=int, default=40, help="networks that are judged")
    parser.add_argument("--sessions", type=int, default=3)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of profiling")
    args = parser.parse_args()
    space, device = get_space(args.space), get_device(args.device)
    drawn = space.sample(np.random.default_rng(7), args.networks + FIT)
    judged = np.arange(args.networks)  # the other twenty are further training networks of the Gaussian process
    errors: dict[str, list[FitError]] = {}
    truths, seconds, coverage = [], [], []
    for session in range(args.sessions):
        with tempfile.TemporaryDirectory() as folder:
            config = ProfileConfig(budget_s=args.budget, seed=session)
            table = profile_space(space, device, config, journal=Path(folder) / "table.jsonl")
            truth = time_networks(space, device, drawn, Path(folder), seed=session)
        truths.append(truth)
        seconds.append(table.provenance["seconds"])
        own, own_ms = fitted_networks(table)
        predictions = {
            "table": table.predict(drawn),
            "MACs and a line": on_macs(table, own, own_ms, drawn),
            "hot loop, calibrated": hot_loop(table, own, own_ms, drawn),
            f"Gaussian process on {2 * FIT} networks": gaussian_process(
                space, np.concatenate([own, drawn[args.networks :]]), np.concatenate([own_ms, truth[args.networks :]]), drawn
            ),
        }
        for name, predicted in predictions.items():
            errors.setdefault(name, []).append(FitError.of(predicted[judged], truth[judged]))
        between = judged[table.is_interpolated(drawn)[judged]]
        if len(between):
            name = f"table, the {len(between)} networks at input sizes that were not timed"
            errors.setdefault(name, []).append(FitError.of(predictions["table"][between], truth[between]))
        low, high = table.interval(drawn).T
        coverage.append(float(((low <= truth) & (truth <= high)).mean()))
        print(f"session {session + 1}: {errors['table'][-1]}; interval +-{table.margin:.1%} holds {coverage[-1]:.0%}", flush=True)
    print(f"\n{args.space}, {device.description}: median of {args.sessions} sessions, {args.networks} random networks")
    print("| | RMSPE | within 5 % | within 10 % | Kendall tau |\n|---|---|---|---|---|")
    for name, found in errors.items():
        rmspe, within_5, within_10, tau = np.median([(e.rmspe, e.within_5, e.within_10, e.kendall_tau) for e in found], axis=0)
        print(f"| {name} | {rmspe:.1%} | {within_5:.0%} | {within_10:.0%} | {tau:.3f} |")
    pairs = list(itertools.combinations(truths, 2))
    if pairs:
        difference = np.mean([np.abs(a / b - 1).mean() for a, b in pairs])
        tau = np.mean([kendalltau(a, b).statistic for a, b in pairs])
        print(f"two sessions, the same networks: {difference:.1%} mean difference, tau {tau:.3f}")
    print(f"profiling, calibration included: {np.median(seconds):.0f} s; 90 % intervals hold {np.mean(coverage):.0%}")
    if args.other:
        compare(space, table, truths[-1], get_device(args.other), drawn)


def time_networks(space: SearchSpace, device: DeviceSpec, drawn: Any, folder: Path, *, seed: int) -> NDArray[np.float64]:
    """Time whole networks as profiling does, (n,) ms."""
    plan = make_plan(space, device, [], Networks(drawn, drawn[:0]), seed=seed)
    found = measure_here(plan, device, ProfileConfig(seed=seed), folder / f"{device.name}.networks.jsonl")
    return np.array([found.items[item.id].ms["p50"] for item in found.plan.items])


def fitted_networks(table: LatencyTable) -> tuple[Any, NDArray[np.float64]]:
    """The networks that the table was calibrated on, and their times."""
    space = table.space
    used = [n for n in table.provenance["networks"] if n["fitted"]]
    return space.encode([space.from_values(n["arch"]) for n in used]), np.array([n["measured_ms"] for n in used])


def on_macs(table: LatencyTable, own: Any, own_ms: NDArray[np.float64], drawn: Any) -> NDArray[np.float64]:
    only = np.array([0, 0, 1])
    return Calibration.fit(network_design(table, own) * only, own_ms).predict(network_design(table, drawn) * only)


def hot_loop(table: LatencyTable, own: Any, own_ms: NDArray[np.float64], drawn: Any) -> NDArray[np.float64]:
    """A table whose blocks were timed the usual way, calibrated like ours."""
    device = get_device(table.device)
    times = {}
    for spec in reachable_blocks(table.space, timed_resolutions(table.space)):
        inputs = np.random.default_rng(0).standard_normal((1, *input_shape(spec)), dtype=np.float32)
        call = open_session(emit({"block": spec}), device).prepare(inputs)
        times[spec] = float(np.median([cpu for cpu, _ in visit(call, warm_up=5, runs=HOT_RUNS)]))
    hot = LatencyTable(table.space, table.device, times)
    return Calibration.fit(network_design(hot, own), own_ms).predict(network_design(hot, drawn))


def gaussian_process(space: SearchSpace, train: Any, train_ms: NDArray[np.float64], drawn: Any) -> NDArray[np.float64]:
    """What is learnt from whole networks alone: choices as one-hot, and MACs."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    from ofa.counts import macs

    def features(population: Any) -> NDArray[np.float64]:
        cost = macs(space, population) / macs(space, space.encode([space.largest]))
        return np.column_stack([space.one_hot(population), 10 * cost])

    kernel = ConstantKernel() * RBF(3.0) + WhiteKernel(1e-3)
    model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=3, random_state=0)
    model.fit(features(train), np.log(train_ms))
    return np.exp(model.predict(features(drawn)))


def compare(space: SearchSpace, table: LatencyTable, truth: NDArray[np.float64], other: DeviceSpec, drawn: Any) -> None:
    """The same networks on a second device, and what the first device's table says of them, but for a common factor."""
    with tempfile.TemporaryDirectory() as folder:
        there = time_networks(space, other, drawn, Path(folder), seed=0)
        own = profile_space(space, other, ProfileConfig(), journal=Path(folder) / "table.jsonl")
    guess = table.predict(drawn)
    guess *= np.median(there / guess)
    print(f"\n{other.name}: {np.median(there / truth):.2f} times as long in the median ({(there / truth).min():.2f}", end="")
    print(f" to {(there / truth).max():.2f}); Kendall tau between the devices {kendalltau(there, truth).statistic:.3f}")
    print(f"its own table:                     {FitError.of(own.predict(drawn), there)}")
    print(f"table of {table.device}, rescaled: {FitError.of(guess, there)}")


if __name__ == "__main__":
    main()
