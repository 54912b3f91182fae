"""An exported file under test: opened once, asked one question after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deploy.bundle import Bundle
from deploy.checks import Check, judge, judge_prediction, wilson_interval
from deploy.comparison import Comparison, compare
from deploy.device import DeviceSpec, get_device, list_devices, make_device
from deploy.emit import emit
from deploy.fold import fold
from deploy.footprint import block_file_bytes, network_peak
from deploy.limits import Limit, format_value, parse_limit
from deploy.model_record import read_blocks
from deploy.pack import check_file, preprocessed
from deploy.parity import REFERENCE_DEVICE, TOLERANCE, relative_error
from deploy.precision import activation_bytes, grid_of
from deploy.rounded_parity import file_parity_error
from deploy.runtimes import Session, open_session
from deploy.verify_latency import TimedFile, open_anchor, time_file
from ofa.artefacts import ArtefactError
from ofa.block_spec import BlockSpec
from ofa.blocks import build_network
from ofa.counts import block_bitops, block_params
from ofa.errors import OfaError
from ofa.quantised_layers import has_bits
from ofa.run_dir import cpu_model
from ofa.training.calibration import top1
from ofa.training.data import Images, Preprocessing, load_images

DEFAULT_DEVICE = "ort_cpu_1t"  # of a limit on latency that names none
SLACK = 1.5  # times the deviation at export: other kernels round ties otherwise


class FileUnderTest:
    """An exported file, the network that it holds, and what it must keep."""

    def __init__(self, bundle: Bundle, limits: Sequence[str] | None, devices: Sequence[str]) -> None:
        self.bundle, self.record, self.path = bundle, bundle.record, bundle.path / "model.onnx"
        self.limits = _limits(self.record["limits"] if limits is None else limits, devices)
        self.specs = _devices(self.record, self.of("latency"), devices, self.path)
        self.asked = {Path(name).stem if name.endswith(".toml") else name for name in devices}
        self.content = bundle.read("model.onnx")
        model = check_file(self.content, self.path)  # before a runtime follows any reference
        told = {entry.key: entry.value for entry in model.metadata_props}.get("ofa.precision")
        if told is not None and told != json.dumps(self.record["precision"]):
            raise ArtefactError(f"{self.path}: is {told}, model.json says {self.record['precision']}; export it again")
        self.session = open_session(self.content, get_device(REFERENCE_DEVICE))
        self.resolution = int(self.record["preprocess"]["resolution"])
        self.blocks = read_blocks(self.record.get("blocks") or {}, bundle.path / "model.json")
        self.net = _rebuild(bundle, self.blocks, self.record["bn_eps"]) if self.blocks else None
        self.is_fp32 = self.record["precision"] == "fp32"

    def of(self, *quantities: str) -> list[Limit]:
        return [limit for limit in self.limits if limit.quantity in quantities]

    @cached_property
    def fp32_content(self) -> bytes | None:
        """The network as an fp32 file; None where nothing here can write it."""
        if self.is_fp32:
            return self.content
        if self.net is None:
            return None
        facts = {f"ofa.{name}": json.dumps(self.record[name], sort_keys=True) for name in ("space", "arch")}
        return emit(self.blocks, fold(self.net), metadata=facts)

    @cached_property
    def reference(self) -> Session:
        """The network in fp32; the file itself where nothing else is known."""
        if self.is_fp32 or self.fp32_content is None:
            return self.session
        return open_session(self.fp32_content, get_device(REFERENCE_DEVICE))

    def check_file(self) -> list[Check]:
        """Whether the bundle is whole, and computes on this machine what it did where it was exported."""
        golden = self.bundle.golden
        found = self.session.run(preprocessed(golden["images"], self.record["preprocess"]).numpy())
        off, tolerance = relative_error(found, golden["logits"]), float(golden["tolerance"])
        whole = (
            f"{len(self.content) / 2**20:.2f} MiB, {self.record['precision']}, all {len(self.bundle.digests)} files as exported"
        )
        same = f"{len(found)} images differ from what was exported by {off:.1e} of the largest logit (limit {tolerance:.0e})"
        return [Check("file", True, f"{whole} (SHA-256)"), Check("golden", off <= tolerance, same)]

    def check_parity(self) -> list[Check]:
        """Whether the file computes what the PyTorch network does, to what its precision allows.

        In fp32 on random images, if the network can be built here. In another precision on the golden images, no farther than
        when it was exported; the network built here must then compute what PyTorch computed there.
        """
        if self.is_fp32 and self.net is not None:
            error = file_parity_error(self.net, self.content, self.resolution)
            given = ", given the file's levels" if has_bits(self.net) else ""
            detail = f"differs from PyTorch by {error:.1e} of the largest logit{given} (limit {TOLERANCE:.0e})"
            return [Check("parity", error <= TOLERANCE, detail)]
        golden = self.bundle.golden
        images = preprocessed(golden["images"], self.record["preprocess"])
        off = relative_error(self.session.run(images.numpy()), golden["reference"])
        most = SLACK * self.record["deviation"] + TOLERANCE
        detail = f"differs from PyTorch in fp32 by {off:.2g} of the largest logit on {len(images)} images (limit {most:.2g})"
        ok = off <= most
        if self.net is not None:
            with torch.no_grad():
                weights_off = relative_error(self.net(images).numpy(), golden["reference"])
            limit = float(golden["tolerance"]) if has_bits(self.net) else TOLERANCE  # levels may go either way on another machine
            detail += f"; its weights, rebuilt, by {weights_off:.1e} (limit {limit:.0e})"
            ok = ok and weights_off <= limit
        return [Check("parity", ok, detail)]

    def load_test_images(self, data: str | None) -> Images | None:
        """Load the images that the accuracy is measured on; None where the export knows none and none are named.

        Raises:
            OfaError: if there is a limit on accuracy and no image to tell it.
        """
        source = data or self.record.get("data")
        if source is None:
            if self.of("top1"):
                raise OfaError(f"limit {str(self.of('top1')[0])!r}: this file names no images; name some with --data")
            return None
        pre = self.record["preprocess"]
        return load_images(str(source), "test", size=int(pre["stored_size"]), classes=tuple(self.record["classes"]))

    def accuracy_on(self, test: Images) -> tuple[float, Comparison | None]:
        """Return top-1 of the file, and the file beside fp32 where it is another and the fp32 network is known."""
        pre = self.record["preprocess"]
        how = Preprocessing(tuple(pre["mean"]), tuple(pre["std"]), flip=False)
        if self.reference is not self.session:
            found = compare(self.session, self.reference, test, how, self.resolution)
            return found.top1, found
        by_torch = lambda x: torch.from_numpy(self.session.run(np.ascontiguousarray(x.numpy())))  # noqa: E731
        return top1(by_torch, test, how, self.resolution), None

    def judge_accuracy(self, accuracy: float, fp32: Comparison | None, n: int, data: str | None) -> list[Check]:
        low, high = wilson_interval(accuracy, n)
        detail = f"top-1 {accuracy:.4f} on {n} test images of {data or self.record['data']} (95% CI {low:.4f}-{high:.4f})"
        if fp32 is not None:
            ends = ", ".join(f"{100 * end:+.2f}" for end in fp32.drop_interval)
            detail += f"; the network in fp32 {fp32.top1_fp32:.4f}: {100 * fp32.drop:+.2f} points lost (95% CI {ends})"
        return judge("accuracy", detail, self.of("top1"), accuracy)

    def check_costs(self) -> list[Check]:
        """Hold what follows from the network and the file against its limits."""
        checks = []
        counts = _count(self.net, self.resolution) if self.net is not None and self.of("macs", "params") else {}
        if any(spec.weight_bits for spec in self.blocks.values()):
            counts["bitops"] = float(sum(map(block_bitops, self.blocks.values())))
        for limit in self.of("macs", "params", "bitops"):
            if limit.quantity not in counts:
                tells = "of blocks with bits of their own" if limit.quantity == "bitops" else "of one of our spaces"
                raise OfaError(f"limit {str(limit)!r}: only a file {tells} tells; leave the limit out")
            value = counts[limit.quantity]
            checks += judge(limit.quantity, format_value(limit.quantity, value), [limit], value)
        for limit in self.of("memory", "size"):
            value, how = footprint(limit, self.content, self.record["precision"], self.blocks)
            checks += judge(limit.key, f"{format_value(limit.quantity, value)} ({how})", [limit], value)
        for limit in self.of("energy", "latency"):
            if reason := self._why_unmeasured(limit):
                checks.append(judge_prediction(limit, self.record, reason))
        return checks

    def time_it(self, seconds: float) -> dict[str, TimedFile]:
        """Time the file on every device that it can be timed on."""
        timed = {}
        for name, spec in self.specs.items():
            limits = [limit for limit in self.of("latency") if limit.device == name]
            if name not in self.asked and all(self._why_unmeasured(limit) for limit in limits):
                continue
            same_machine = self.record["host"].get("cpu") == cpu_model()
            fields = self.record.get("anchors", {}).get(name) if same_machine else None
            anchor = open_anchor(fields, spec, self.bundle.path / "model.json")
            timed[name] = time_file(self.content, spec, self.resolution, limits, seconds=seconds, anchor=anchor)
        return timed

    def judge_latency(self, timed: Mapping[str, TimedFile]) -> list[Check]:
        checks = []
        for name, found in timed.items():
            key, detail = f"latency@{name}", str(found)
            if key in self.record["predicted"] and self.specs[name].graph_precision == self.record["precision"]:
                detail += f", predicted {self.record['predicted'][key]:.4g} ms"
            checks += judge(key, detail, [limit for limit in self.limits if limit.key == key], found.high_ms)
        return checks

    def _why_unmeasured(self, limit: Limit) -> str:
        """Say why nothing here can measure a limit; "" where it can."""
        if limit.quantity == "energy":
            return "energy is not measured here"
        if limit.device not in self.specs:
            return f"{limit.device} is not this machine, so the file was not timed on it"
        wanted = self.specs[limit.device].graph_precision
        if grid_of(wanted) is not None and wanted != self.record["precision"] and limit.device not in self.asked:
            return f"{limit.device} is of {wanted} files, this one is {self.record['precision']}, so it was not timed"
        return ""


def footprint(limit: Limit, content: bytes, stored: str, blocks: Mapping[str, BlockSpec]) -> tuple[float, str]:
    """Return a file's size or its network's peak of activations in bytes, and how it is known.

    Args:
        stored: precision of the file, which a limit that names none is about.
        blocks: of its network; empty = not known.

    Raises:
        OfaError: if nothing tells.
    """
    precision = limit.precision or stored
    if limit.quantity == "size" and precision == stored:
        return float(len(content)), "of this file"
    if not blocks:
        raise OfaError(f"limit {str(limit)!r}: only a file of one of our spaces tells; leave the limit out")
    if limit.quantity == "size":
        change = sum(block_file_bytes(spec, precision) - block_file_bytes(spec, stored) for spec in blocks.values())
        return float(len(content) + change), "computed"
    return float(activation_bytes(precision) * network_peak(blocks)), "activations of one image, computed"


def _rebuild(bundle: Bundle, blocks: Mapping[str, BlockSpec], bn_eps: float) -> nn.Module:
    """The PyTorch network that was exported, from its architecture and weights."""
    content = bundle.read("model.safetensors")
    try:
        if 4 * sum(map(block_params, blocks.values())) > len(content):  # or memory for weights that are not there
            raise RuntimeError("too few")
        net = build_network(blocks, bn_eps=bn_eps)
        net.load_state_dict(load(content))
    except (SafetensorError, RuntimeError) as error:
        weights, reason = bundle.path / "model.safetensors", str(error).splitlines()[0]
        raise ArtefactError(f"{weights}: not the weights of this model ({reason})") from None
    return net.eval()


def _limits(texts: Sequence[str], devices: Sequence[str]) -> list[Limit]:
    """Read limits; a latency that names no device is one on each of those that the file is timed on."""
    names = [Path(name).stem if name.endswith(".toml") else name for name in devices] or [DEFAULT_DEVICE]
    return list(dict.fromkeys(parse_limit(text, device=name) for text in texts for name in names))


def _devices(record: dict[str, Any], wanted: list[Limit], further: Sequence[str], path: Path) -> dict[str, DeviceSpec]:
    """The devices to time on, by name: those given as files, those that travel with the model, those that ship."""
    given = {spec.name: spec for spec in map(get_device, (name for name in further if name.endswith(".toml")))}
    here = [limit.device for limit in wanted if limit.device and not _is_elsewhere(limit.device, record)]
    specs = dict(given)
    for name in [*here, *(name for name in further if not name.endswith(".toml"))]:
        if name not in specs:
            specs[name] = make_device(record["devices"][name], path) if name in record["devices"] else get_device(name)
    return specs


def _is_elsewhere(name: str, record: dict[str, Any]) -> bool:
    """Whether a device is one that only a latency table of the run knows: measured on another machine, or imported."""
    return name not in record["devices"] and name not in list_devices() and f"latency@{name}" in record["predicted"]


@torch.no_grad()
def _count(net: nn.Module, resolution: int) -> dict[str, float]:
    """Parameters and multiply-adds by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, resolution, resolution))
    return {"params": float(sum(p.numel() for p in net.parameters())), "macs": counter.get_total_flops() / 2}
