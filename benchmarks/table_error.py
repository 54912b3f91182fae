"""How well a latency table predicts whole networks, against the ways that people write first, in the same run.

    python benchmarks/table_error.py [--space ofa_mbv3_w1_0] [--sessions 3] [--other openvino_bf16_1t]

A session profiles the device as `ofa profile` does (20 networks to fit the table to), with random networks to judge it by. Beside
the table: a line fitted to MACs alone, a table of blocks timed in a hot loop with the same calibration, and a Gaussian process on
40 whole networks. The networks are the same in every session, which tells how repeatable a measurement is, and how good the table
of one session is in another. --other does it on a second device too: how differently it ranks the networks, and what the table of
the first says of it.
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
from latency.plan import Networks, reachable_blocks, timed_resolutions
from latency.profile import profile_space
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
    tables: list[LatencyTable] = []
    truths: list[NDArray[np.float64]] = []
    coverage: list[float] = []
    fitted = Networks.spread(space, np.random.default_rng(3), FIT, 0).fitted
    for session in range(args.sessions):
        table, own_ms, truth = profiled(space, device, fitted, drawn, seed=session, budget_s=args.budget)
        tables.append(table)
        truths.append(truth)
        predictions = {
            "table": table.predict(drawn),
            "MACs and a line": on_macs(table, fitted, own_ms, drawn),
            "hot loop, calibrated": hot_loop(table, fitted, own_ms, drawn),
            f"Gaussian process on {2 * FIT} networks": gaussian_process(
                space, np.concatenate([fitted, drawn[args.networks :]]), np.concatenate([own_ms, truth[args.networks :]]), drawn
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
    for (first, then), (_, now) in itertools.permutations(zip(tables, truths, strict=True), 2):
        six = np.argsort(then)[np.linspace(0, len(then) - 1, 6).round().astype(int)]  # what `--check` would time again
        factor = float(np.median(now[six] / then[six]))
        errors.setdefault("table of another session", []).append(FitError.of(first.predict(drawn)[judged], now[judged]))
        put_right = FitError.of(factor * first.predict(drawn)[judged], now[judged])
        errors.setdefault("the same, put right by six networks (--check)", []).append(put_right)
    print(f"\n{args.space}, {device.description}: median of {args.sessions} sessions, {args.networks} random networks")
    print("| | RMSPE | within 5 % | within 10 % | Kendall tau |\n|---|---|---|---|---|")
    for name, found in errors.items():
        rmspe, within_5, within_10, tau = np.median([(e.rmspe, e.within_5, e.within_10, e.kendall_tau) for e in found], axis=0)
        print(f"| {name} | {rmspe:.1%} | {within_5:.0%} | {within_10:.0%} | {tau:.3f} |")
    pairs = list(itertools.combinations(truths, 2))
    if pairs:
        raw = np.mean([np.abs(a / b - 1).mean() for a, b in pairs])
        common = np.mean([np.abs((a / b) / np.median(a / b) - 1).mean() for a, b in pairs])
        tau = np.mean([kendalltau(a, b).statistic for a, b in pairs])
        print(f"two sessions, the same networks: {raw:.1%} mean difference, {common:.1%} but for a common factor, tau {tau:.3f}")
    seconds = np.median([table.provenance["seconds"] for table in tables])
    print(f"profiling, with calibration and {len(drawn)} judged networks: {seconds:.0f} s")
    print(f"90 % intervals hold {np.mean(coverage):.0%}")
    if args.other:
        compare(space, tables[-1], truths[-1], get_device(args.other), fitted, drawn)


def profiled(
    space: SearchSpace, device: DeviceSpec, fitted: Any, drawn: Any, *, seed: int, budget_s: float
) -> tuple[LatencyTable, NDArray[np.float64], NDArray[np.float64]]:
    """Profile a device; return its table and the milliseconds of the fitted and of the other networks."""
    with tempfile.TemporaryDirectory() as folder:
        config, networks = ProfileConfig(budget_s=budget_s, seed=seed), Networks(fitted, drawn)
        table = profile_space(space, device, config, journal=Path(folder) / "table.jsonl", networks=networks)
    measured = {
        use: np.array([n["measured_ms"] for n in table.provenance["networks"] if n["fitted"] is use]) for use in (True, False)
    }
    return table, measured[True], measured[False]


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


def compare(
    space: SearchSpace, table: LatencyTable, truth: NDArray[np.float64], other: DeviceSpec, fitted: Any, drawn: Any
) -> None:
    """The same networks on a second device, and what the first device's table says of them, but for a common factor."""
    own, _, there = profiled(space, other, fitted, drawn, seed=0, budget_s=60)
    guess = table.predict(drawn)
    guess *= np.median(there / guess)
    print(f"\n{other.name}: {np.median(there / truth):.2f} times as long in the median ({(there / truth).min():.2f}", end="")
    print(f" to {(there / truth).max():.2f}); Kendall tau between the devices {kendalltau(there, truth).statistic:.3f}")
    print(f"its own table:                     {FitError.of(own.predict(drawn), there)}")
    print(f"table of {table.device}, rescaled: {FitError.of(guess, there)}")


if __name__ == "__main__":
    main()
