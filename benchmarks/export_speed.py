"""How fast an exported file runs and how long writing it takes, against the usual way, for the same network in the same run.

    OMP_NUM_THREADS=1 python benchmarks/export_speed.py [--sessions 6] [--rounds 15]

The network is torchvision's MobileNetV3-Large with 1000 classes, batch 1 at 224 px, one thread, CPU time:
emitted      our blocks, folded and emitted (deploy.emit)
exported     torchvision's module through our door for any module (deploy.torch_export)
reference    torchvision's module through torch's exporter as it comes (TorchScript, opset 17, dynamic batch)
eager        torchvision's module in PyTorch, and in the memory layout that suits it better
Every session opens all files anew, since a session keeps the memory layout that it drew. Ratios are medians of each round's
ratio of times to those of the emitted file, with a 95 % interval; the emitted file stands twice, to show what no difference is.
"""

from __future__ import annotations

import argparse
import io
import time
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import torch
from torch import nn
from torchvision.models import MobileNetV3, mobilenet_v3_large

from deploy.device import get_device
from deploy.emit import emit
from deploy.fold import fold
from deploy.interleave import Samples, interleave, paired_ratio
from deploy.parity import parity_error
from deploy.runtimes import open_session
from deploy.timing import Call, median_interval
from deploy.torch_export import onnx_of_module
from ofa.formats.torchvision import load_network
from ofa.spaces import get_space
from ofa.training.calibration import calibrate

DEVICE = get_device("ort_cpu_1t")
RESOLUTION, RUNS = 224, 4
BARS = {"reference": 0.98, "eager": 2.0}  # times of these over those of the emitted file, at least
EMIT_BAR_S = 0.5
CPU = 0  # column of samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=6, help="how often the files are opened anew")
    parser.add_argument("--rounds", type=int, default=15, help="of each session")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = mobilenet_v3_large()
    calibrate(net, [torch.randn(8, 3, RESOLUTION, RESOLUTION) for _ in range(2)])
    net.eval()
    files = write(net)
    run(net, files, args.sessions, args.rounds)


def write(net: MobileNetV3) -> dict[str, bytes]:
    """Write the network in every way; print how long each takes and how far it is from PyTorch."""
    space = get_space("mobilenet_v3_large")
    blocks, chain = space.blocks(space.largest), load_network(net.state_dict(), space)
    shape = (3, RESOLUTION, RESOLUTION)
    ways: dict[str, Callable[[], bytes]] = {
        "emitted": lambda: emit(blocks, fold(chain)),
        "exported": lambda: onnx_of_module(net, shape),
        "reference": lambda: reference(net),
    }
    print("| file | first s | median of 9 s | MB | nodes | largest relative error |\n|---|---|---|---|---|---|")
    files, slowest_s = {}, {}
    for name, way in ways.items():
        seconds = []
        for _ in range(10):
            began = time.process_time()
            files[name] = way()
            model = onnx.load_from_string(files[name])
            onnx.checker.check_model(model, full_check=True)
            seconds.append(time.process_time() - began)
        error = parity_error(net, open_session(files[name], DEVICE), RESOLUTION)
        print(
            f"| {name} | {seconds[0]:.2f} | {np.median(seconds[1:]):.2f} | {len(files[name]) / 1e6:.2f} "
            f"| {len(model.graph.node)} | {error:.1e} |",
            flush=True,
        )
        slowest_s[name] = max(seconds)
    took = slowest_s["emitted"]
    print(f"folding, emitting and checking: {took:.2f} s at most, bar {EMIT_BAR_S} s: {verdict(took <= EMIT_BAR_S)}\n")
    return files


def reference(net: nn.Module) -> bytes:
    buffer = io.BytesIO()
    batch = {"images": {0: "batch"}, "logits": {0: "batch"}}
    images = torch.randn(2, 3, RESOLUTION, RESOLUTION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (images,),
            buffer,
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes=batch,
        )
    return buffer.getvalue()


def run(net: MobileNetV3, files: dict[str, bytes], sessions: int, rounds: int) -> None:
    """Time the files and PyTorch side by side; print times and ratios."""
    images = np.random.default_rng(0).standard_normal((1, 3, RESOLUTION, RESOLUTION), dtype=np.float32)
    contents = {"emitted": files["emitted"], "emitted again": files["emitted"], **files}
    samples: dict[str, list[Samples]] = {}
    for number in range(sessions):
        calls: dict[str, Call] = {name: open_session(content, DEVICE).prepare(images) for name, content in contents.items()}
        calls["eager"] = eager(net, torch.from_numpy(images), torch.contiguous_format)
        calls["eager, channels last"] = eager(net, torch.from_numpy(images), torch.channels_last)
        rng = np.random.default_rng(number)
        for name, found in zip(calls, interleave(list(calls.values()), [RUNS] * len(calls), rounds=rounds, rng=rng), strict=True):
            samples.setdefault(name, []).append(found)
    print("| | CPU ms | 95 % interval | times the emitted file's | 95 % interval | bar |\n|---|---|---|---|---|---|")
    emitted = np.concatenate(samples["emitted"])
    for name, parts in samples.items():
        own = np.concatenate(parts)
        medians = np.median(own[:, :, CPU], axis=1)
        low_ms, high_ms = median_interval(medians)
        ratio, low, high = paired_ratio(own, emitted, CPU)
        bar = f">= {BARS[name]}: {verdict(ratio >= BARS[name])}" if name in BARS else ""
        print(
            f"| {name} | {np.median(medians):.2f} | {low_ms:.2f}-{high_ms:.2f} | {ratio:.3f} | {low:.3f}-{high:.3f} | {bar} |",
            flush=True,
        )


def eager(net: MobileNetV3, images: torch.Tensor, layout: torch.memory_format) -> Call:
    placed, images = mobilenet_v3_large(), images.contiguous(memory_format=layout)
    placed.load_state_dict(net.state_dict())
    placed.eval().to(memory_format=layout)

    @torch.inference_mode()
    def call() -> object:
        return placed(images)

    return call


def verdict(kept: bool) -> str:
    return "kept" if kept else "BROKEN"


if __name__ == "__main__":
    main()
