"""One architecture in several precisions: what leaving fp32 saved, and what it cost."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ofa.space import ArchConfig
from search.bundles import Export
from search.evidence import Network
from search.precision_plot import Mark, mark_plot
from search.wording import digits, percent

VERDICTS = {"slower": "fail", "no faster": "open", "faster": "pass"}  # beside fp32 -> CSS class


@dataclass(frozen=True, slots=True)
class Loss:
    """Top-1 lost against the fp32 file of the same weights, in points, on the same images."""

    points: float
    low: float | None  # of the 95 % interval; None = not known
    high: float | None
    top1: float
    top1_fp32: float
    agreement: float
    sqnr_db: float
    images: int
    split: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """A file's time over that of the fp32 file that was timed beside it, with the 95 % interval."""

    device: str
    batch_size: int
    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        return "faster" if self.high < 1 else "slower" if self.low > 1 else "no faster"

    def __str__(self) -> str:
        return f"{digits(self.value)} ({digits(self.low)} to {digits(self.high)})"


@dataclass(frozen=True)
class Variant:
    """One of the files."""

    network: Network
    export: Export
    label: str
    loss: Loss | None  # None = it is fp32
    ratios: list[Ratio]  # one a device and batch size; none of fp32


@dataclass(frozen=True, slots=True)
class Speed:
    """Whether one of the files is faster than fp32 on a device, in words."""

    label: str
    device: str
    parts: list[tuple[str, str, str]]  # (CSS class, "slower than fp32", where)


@dataclass(frozen=True)
class Family:
    """The files of one architecture with the same weights."""

    arch: ArchConfig
    variants: list[Variant]  # fp32 first, then the largest file
    speeds: list[Speed]
    plots: list[tuple[Markup, str]]  # with captions

    @property
    def untimed(self) -> str:
        """The command that times all files beside fp32, where one was not and there is an fp32 file; "" = none is needed."""
        precisions = [variant.export.precision for variant in self.variants]
        if precisions[0] != "fp32" or all(variant.ratios for variant in self.variants if variant.export.precision != "fp32"):
            return ""
        return shlex.join(["ofa", "bench", *(str(variant.network.path) for variant in self.variants)])


def families(networks: Iterable[Network]) -> list[Family]:
    """Put the exports of one architecture and the same weights side by side; those that are all in fp32 are left out."""
    groups: dict[tuple[ArchConfig, object], list[tuple[Network, Export]]] = {}
    for network in networks:
        if network.export:
            groups.setdefault((network.arch, network.export.record["weights_sha256"]), []).append((network, network.export))
    return [_family(arch, own) for (arch, _), own in groups.items() if any(e.precision != "fp32" for _, e in own)]


def _family(arch: ArchConfig, files: Sequence[tuple[Network, Export]]) -> Family:
    ordered = sorted(files, key=lambda file: (file[1].order, file[0].name))
    precisions = [export.precision for _, export in ordered]
    variants = []
    for network, export in ordered:
        alone = precisions.count(export.precision) == 1
        label = export.precision if alone else f"{export.precision}, {network.name}"
        variants.append(Variant(network, export, label, _loss(export), _ratios(export)))
    return Family(arch, variants, [speed for each in variants for speed in _speeds(each)], _plots(variants))


def _loss(export: Export) -> Loss | None:
    """Return what was lost on test images, or else on those that the export looked at."""
    found, split = (export.proof.fp32, "test") if export.proof and export.proof.fp32 else (export.rounding, "")
    if found is None:
        return None
    ends = found.drop_interval
    low, high = (None, None) if ends is None else (100 * ends[0], 100 * ends[1])
    return Loss(
        points=100 * (found.top1_fp32 - found.top1),
        low=low,
        high=high,
        top1=found.top1,
        top1_fp32=found.top1_fp32,
        agreement=found.agreement,
        sqnr_db=found.sqnr_db,
        images=found.images,
        split=split or (export.rounding.split if export.rounding else ""),
    )


def _ratios(export: Export) -> list[Ratio]:
    rows = export.bench.rows if export.bench and export.precision != "fp32" else ()
    return [
        Ratio(row.device, row.batch_size, row.fp32_ratio, row.fp32_ratio_low, row.fp32_ratio_high)
        for row in rows
        if row.fp32_ratio is not None and row.fp32_ratio_low is not None and row.fp32_ratio_high is not None
    ]


def _speeds(variant: Variant) -> list[Speed]:
    """Say of every device at which batch sizes a file is faster than fp32 and at which it is not."""
    found = []
    for device in dict.fromkeys(ratio.device for ratio in variant.ratios):
        own = [ratio for ratio in variant.ratios if ratio.device == device]
        parts = []
        for verdict, style in VERDICTS.items():
            sizes = [f"{ratio.batch_size} ({digits(ratio.value)} of its time)" for ratio in own if ratio.verdict == verdict]
            if sizes:
                parts.append((style, f"{verdict} than fp32", f"at batch {' and '.join(sizes)}"))
        found.append(Speed(variant.label, device, parts))
    return found


def _plots(variants: Sequence[Variant]) -> list[tuple[Markup, str]]:
    """Draw what was lost, the sizes and the times."""
    fp32 = next((v.export.size_bytes for v in variants if v.export.precision == "fp32"), None)
    sizes, losses = [], []
    times: dict[str, list[Mark]] = {}
    for variant in variants:
        mib = variant.export.size_bytes / 2**20
        share = f", {percent(variant.export.size_bytes / fp32, 0)} of fp32" if fp32 and variant.export.precision != "fp32" else ""
        sizes.append(Mark(variant.label, f"{digits(mib)} MiB{share}", mib))
        if variant.loss:
            loss = variant.loss
            ends = "" if loss.low is None or loss.high is None else f" ({loss.low:+.2f} to {loss.high:+.2f})"
            losses.append(Mark(variant.label, f"{loss.points:+.2f}{ends}", loss.points, loss.low, loss.high))
        for ratio in variant.ratios:
            label = f"{variant.label}, batch {ratio.batch_size}"
            mark = Mark(label, str(ratio), ratio.value, ratio.low, ratio.high, VERDICTS[ratio.verdict])
            times.setdefault(ratio.device, []).append(mark)
    plots = [(mark_plot(sizes, "Size of the file, MiB", bars=True), "Smaller is better.")]
    if losses:
        text = "Right of the line accuracy was lost. An interval that holds 0 cannot tell the two files apart."
        plots.append((mark_plot(losses, "Top-1 lost against fp32, points, 95% CI", reference=0.0), text))
    for device, marks in times.items():
        text = f"On {device}, in turns with fp32: left of the line it is faster than that, right of it slower."
        plots.append((mark_plot(marks, f"Time over fp32's on {device}, 95% CI", reference=1.0), text))
    return plots
