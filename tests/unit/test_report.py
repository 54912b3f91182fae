"""The report: complete for a complete run, useful at every earlier stage, self-contained, and safe with any text in it."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shlex
import shutil
from dataclasses import asdict, fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from deploy.bench import BENCH_SCHEMA, BenchRow
from deploy.bundle import MODEL_SCHEMA, open_bundle, write_bundle
from deploy.limits import parse_limit
from deploy.verify import REPORT_SCHEMA
from latency.calibration import Calibration, FitError
from latency.cost import CountCost
from latency.table import LatencyTable
from ofa.artefacts import ArtefactError, append_jsonl, format_json, read_json, sha256_of, write_json
from ofa.run_dir import SCHEMA as RUN_SCHEMA
from ofa.run_dir import DataSource, Run
from ofa.spaces import get_space
from ofa.training.config import TrainConfig
from ofa.training.loop import SCHEMA as TRAINING_SCHEMA
from search.agreement import rank_agreement
from search.architectures import show_architectures
from search.evidence import read_exports
from search.menu import MENU_SCHEMA, InfeasibleTarget, save_menu
from search.pareto_plot import place_labels
from search.past_searches import best_of, read_menus, read_searches
from search.plots import nice_ticks, span
from search.precisions import families
from search.report import OF_EXPORTS, write_report
from search.result import FRONT_SCHEMA, Candidate, SearchResult
from search.wording import digits

SECTIONS = (
    "networks",
    "precisions",
    "speed",
    "cards",
    "accuracy-cost",
    "spending",
    "predictions",
    "architectures",
    "training",
    "searches",
    "provenance",
)
BEFORE_EXPORTS = [name for name in SECTIONS if name not in OF_EXPORTS]
DEVICE = "ort_cpu_1t"
HOST = {"cpu": "A processor", "system": "Linux", "torch": "2.9", "onnx": "not installed"}


def make_run(
    path: Path, *, source: str = "digits", classes: tuple[str, ...] = ("cat", "dog"), space: str = "mbv3_tiny_image"
) -> Run:
    data = DataSource(
        source=source,
        num_images=100,
        digest="d" * 64,
        image_size=8,
        classes=classes,
        validation_fraction=0.1,
        seed=0,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        flip=False,
    )
    return Run.create(path, get_space(space, num_classes=len(classes)), data, None)


def add_training(run: Run) -> None:
    write_json(
        run.supernet_dir / "config.json", {"schema": TRAINING_SCHEMA, "recipe": "sandwich", "epochs": 3, "label_smoothing": 0.1}
    )
    for epoch in (1, 2, 3):
        record = {"step": 10 * epoch, "epoch": float(epoch), "lr": 0.1, "loss": 2.5 / epoch, "seconds": 7.0 * epoch}
        append_jsonl(run.supernet_dir / "metrics.jsonl", record | {"top1_largest": 0.2 * epoch, "top1_smallest": 0.1 * epoch})


def add_weights(run: Run) -> None:
    """Write what the report knows of weights: that a checkpoint is there."""
    checkpoint = run.supernet_dir / "step_000030"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")


def add_table(run: Run, device: str = DEVICE) -> None:
    entries = {spec: 0.001 * spec.kernel_size for spec in run.space.all_blocks}
    error, by_macs = FitError(4, 0.03, 0.041, 0.75, 1.0, 0.91), FitError(4, 0.1, 0.123, 0.25, 0.5, 0.67)
    pairs = ((0.02, 0.021), (0.03, 0.029), (0.04, 0.05), (0.05, 0.05))
    LatencyTable(
        run.space,
        device,
        entries,
        Calibration(1.0, 0.0, 0.0, 0.01),
        margin=0.08,
        error=error,
        macs_error=by_macs,
        validation=pairs,
        provenance={"host": HOST, "clock": "cpu"},
    ).save(run.latency_path(device))


def add_search(
    run: Run, tag: str | None, limits: tuple[str, ...] = (f"latency@{DEVICE} <= 0.09ms",), best: int = 3
) -> SearchResult:
    population = run.space.sample(np.random.default_rng(0), 12)
    macs = CountCost("macs", run.space).predict(population)
    candidates = tuple(
        Candidate(arch, 0.5 + 0.01 * i, {"macs": float(macs[i]), f"latency@{DEVICE}": 0.06}, True)
        for i, arch in enumerate(run.space.decode(population))
    )
    result = SearchResult(
        path=run.path / "search" / tag if tag else run.path / "search",
        best=candidates[best],
        candidates=candidates,
        front=candidates[:2],
        limits=tuple(str(parse_limit(text)) for text in limits),
        feasibility=tuple(f"{text}: 12.3% of the space fits" for text in limits),
        predictor={
            "kind": "ridge",
            "kendall_tau": 0.71,
            "macs_tau": 0.52,
            "held_out": [{"predicted": c.top1 + 0.01, "measured": c.top1} for c in candidates],
        },
        new_evaluations=12,
        weights_sha256=None,
        devices={},
        anchors={},
    )
    result.save(run)
    return result


def add_rounds(run: Run, tag: str, limit: str = "macs <= 900K", *, seed: int = 0, **fields: object) -> SearchResult:
    """A search of 8 networks for the design and two rounds of 3, each predicted 2 points too high."""
    archs = run.space.decode(run.space.sample(np.random.default_rng(seed), 40))
    archs = list(dict.fromkeys(archs))[:14]
    macs = CountCost("macs", run.space).predict(run.space.encode(archs)) if run.space.slots else np.arange(14) + 5.0
    rounds = [0] * 8 + [1] * 3 + [2] * 3
    candidates = tuple(
        Candidate(arch, 0.4 + 0.02 * i, {"macs": float(m)}, True, r, 0.42 + 0.02 * i if r else None)
        for i, (arch, m, r) in enumerate(zip(archs, macs, rounds, strict=True))
    )
    result = SearchResult(
        path=run.path / "search" / tag,
        best=candidates[-1],
        candidates=candidates,
        front=candidates[-3:],
        limits=(str(parse_limit(limit)),),
        feasibility=("in words alone",),
        predictor={
            "kind": "gaussian_process",
            "kendall_tau": 0.81,
            "macs_tau": None,
            "held_out": [{"predicted": c.top1, "measured": c.top1 + 0.01} for c in candidates],
        },
        new_evaluations=14,
        weights_sha256=None,
        devices={},
        anchors={},
        strategy="nsga2",
        accuracy="table acc.csv",
        evals=20,
        ranges=({"limit": limit, "minimum": 2e5, "median": 7e5, "maximum": 3e6, "share": 0.25},),
        history=tuple(
            {"evaluations": n, "best_top1": 0.38 + 0.02 * n, "front_size": 3, "hypervolume": 0.1 * n} for n in (8, 11, 14)
        ),
    )
    result = replace(result, **fields)  # type: ignore[arg-type]
    result.save(run)
    return result


LATENCY = {"median_ms": 0.0612, "low_ms": 0.0601, "high_ms": 0.0623, "n": 100, "clock": "cpu", "wall_median_ms": 0.07}


def add_export(
    run: Run, found: SearchResult, folder: Path, *, ok: bool | None = True, proof: Any = None, rows: Any = (), **fields: Any
) -> None:
    """Export the best network of a search, as bytes that are none.

    Args:
        ok: what verification says; None = it was not made.
        proof: fields of verify.json.
        rows: fields of the rows of bench.json; none = it was not timed.
        fields: of model.json.
    """
    content = b"the network of " + os.fsencode(folder.name)
    digest = hashlib.sha256(content).hexdigest()
    pre = {"resolution": 8, "stored_size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "input": "images"}
    record = {
        "schema": MODEL_SCHEMA,
        "sha256": digest,
        "size_bytes": 2**20,
        "precision": "fp32",
        "opset": 17,
        "ir_version": 8,
        "layers": {},
        "space": run.space.name,
        "arch": run.space.to_json(found.best.arch)["values"],
        "blocks": {name: spec.to_dict() for name, spec in run.space.blocks(found.best.arch).items()},
        "bn_eps": run.space.bn_eps,
        "classes": list(run.data.classes),
        "preprocess": pre,
        "weights_sha256": "e" * 64,
        "limits": list(found.limits),
        "predicted": found.best.costs,
        "devices": {DEVICE: {"name": DEVICE, "runtime": "onnxruntime"}},
        "versions": {},
        "host": HOST,
        "parity_error": 1e-7,
        "deviation": 1e-7,
        "quantisation": None,
        "top1_validation": found.best.top1,
        **fields,
    }
    write_bundle(folder, {"model.onnx": content, "model.json": format_json(record)})
    bundle = open_bundle(folder)
    if ok is not None:
        checks = [
            {"name": "parity", "ok": True, "detail": "differs by 1e-07"},
            {"name": f"latency@{DEVICE}", "ok": ok, "detail": "0.0612 ms"},
        ]
        facts = {"sha256": digest, "ok": ok, "top1": 0.512, "top1_interval": [0.48, 0.55], "test_images": 450}
        facts |= {"fp32": None, "latency": {DEVICE: LATENCY}, "anchors": {}, "limits": list(found.limits), "checks": checks}
        bundle.add({"verify.json": format_json({"schema": REPORT_SCHEMA, **facts, "host": HOST, **(proof or {})})})
    if rows:
        bundle.add({"bench.json": format_json({"schema": BENCH_SCHEMA, "host": HOST, "rows": [bench_row(**r) for r in rows]})})


def bench_row(**fields: Any) -> dict[str, Any]:
    times = {"median_ms": 2.0, "low_ms": 1.9, "high_ms": 2.1, "p90_ms": 2.5, "p99_ms": 3.5, "images_per_second": 4321.0}
    what = {"file": "model.onnx", "device": DEVICE, "precision": "fp32", "batch_size": 1, "size_bytes": 2**20}
    return asdict(BenchRow(**{**what, **({} if "error" in fields else {**times, "clock": "cpu"}), **fields}))


ROUNDED = {
    "images": 135,
    "split": "validation",
    "top1": 0.64,
    "top1_fp32": 0.66,
    "agreement": 0.95,
    "sqnr_db": 25.5,
    "drop_interval": [-0.01, 0.05],
    "method": "mse",
    "bias_corrected": True,
    "finetune_epochs": 2,
}
COMPARED = {"images": 449, "top1": 0.5, "top1_fp32": 0.512, "agreement": 0.97, "drop_interval": [0.001, 0.023], "sqnr_db": 28.0}


def change(folder: Path, name: str, **fields: Any) -> None:
    """Change a file of a bundle, and SHA256SUMS with it."""
    path = folder / name
    before = json.loads(path.read_text())
    open_bundle(folder).add({name: format_json({**before, **fields})})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with everything in it: two searches, one of them exported and verified."""
    run = make_run(tmp_path / "r")
    add_training(run)
    add_weights(run)
    add_table(run)
    add_export(run, add_search(run, "small"), run.path / "export" / "small")
    add_search(run, "large", (f"latency@{DEVICE} <= 0.2ms", "params <= 300K"), best=9)
    run.log_command(["ofa", "search", "runs/x", "--where", "params <= 300K"], 12.0)
    return run


class Page(HTMLParser):
    """What a browser would find: tags, attributes, text, and whether all tags are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.shown = ""  # before any <details> is opened, without drawings
        self.codes: list[str] = []
        self.cells: list[str] = []  # texts of tables
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"nav", "style", "script"} & set(self.open):
            self.text += data
            if not {"details", "svg"} & set(self.open):
                self.shown += data
        if self.open and self.open[-1] == "code":
            self.codes.append(data)
        if {"td", "th"} & set(self.open) and data.strip():
            self.cells.append(data.strip())

    @property
    def ids(self) -> list[str | None]:
        return [value for name, value in self.attributes if name == "id"]

    @property
    def sections(self) -> list[str | None]:
        return [value for value in self.ids if not str(value).startswith(("network-", "card-"))]

    @property
    def links(self) -> list[str]:
        """Of the page, besides those to its sections."""
        own = {f"#{name}" for name in SECTIONS}
        return [value for name, value in self.attributes if name == "href" and value is not None and value not in own]


def page_of(run: Run | Path) -> Page:
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_report_of_a_complete_run_has_every_section_and_number(run: Run) -> None:
    path = write_report(run)
    assert path == run.path / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.sections == list(SECTIONS)
    for text in (
        "mbv3_tiny_image on digits, 2 classes",
        "✓ Pass",
        "0.0600 ms",  # predicted
        "0.0612 ms",  # measured
        "0.06010 – 0.06230 ms",
        "53.0%",  # validation
        "51.2%",  # test
        "48.0% – 55.0%",
        "1.00 MiB",
        "not exported yet",
        "small ≤ 0.09 ms",
        "measure within 8.0% of a prediction",
        "4.1%",  # the table's error beside that of MACs alone
        "12.3%",
        "0.71",
        "0.52",
        "Training loss, nats",
        "3 of 3 epochs in 21 s",
        "12 networks newly measured",
        "12.3% of the space fits",
        "ofa search runs/x --where 'params <= 300K'",
        "A processor, Linux, torch 2.9",
        sha256_of(run.path / "export" / "small" / "model.onnx"),
    ):
        assert text in page.text, text
    assert f"ofa export {run.path}/search/large/best -o {run.path}/export/large" in page.text
    assert "not installed" not in page.text


def test_report_opens_offline_and_runs_nothing(run: Run) -> None:
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "xlink:href") or name.startswith("on")]
    targets = {f"#{name}" for name in page.ids}
    assert {value for name, value in page.attributes if name == "href"} <= targets


def test_report_is_equal_for_equal_runs(run: Run, tmp_path: Path) -> None:
    first = write_report(run, tmp_path / "a" / "one.html").read_bytes()
    assert write_report(run.path, tmp_path / "two.html").read_bytes() == first
    assert write_report(str(run.path), str(tmp_path / "three.html")).read_bytes() == first


@pytest.mark.parametrize("stage", ["created", "trained", "profiled", "searched", "searched without a table", "exported"])
def test_report_works_at_every_stage(tmp_path: Path, stage: str) -> None:
    run = make_run(tmp_path / "r")
    order = ["created", "trained", "profiled", "searched", "exported"]
    done = order.index(stage) if stage in order else 3
    if done >= 1:
        add_training(run)
        add_weights(run)
    if done >= 2 and stage in order:
        add_table(run)
    if done >= 3:
        found = add_search(run, None)
    if done >= 4:
        add_export(run, found, run.path / "export" / "x", ok=None)
    page = page_of(run)
    assert page.sections == (list(SECTIONS) if stage == "exported" else BEFORE_EXPORTS)
    expected = {
        "created": [
            "No epoch has been finished",
            f"ofa train --space mbv3_tiny_image --data digits --out {run.path} --resume auto",
        ],
        "trained": [f"ofa profile {run.path} --device {DEVICE}", f"ofa search {run.path} --where 'macs <= "],
        "profiled": [f"ofa search {run.path} --where 'latency@{DEVICE} <= "],
        "searched": [f"ofa export {run.path}/search/best -o {run.path}/export/search", "Predicted latency, ms"],
        "searched without a table": ["Multiply-adds (MACs), millions", f"ofa profile {run.path} --device {DEVICE}"],
        "exported": ["not verified yet", f"ofa verify {run.path}/export/x/model.onnx"],
    }
    for text in expected[stage]:
        assert text in page.text, text


def test_report_repeats_training_with_its_options(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    write_json(run.supernet_dir / "config.json", {"schema": TRAINING_SCHEMA, "epochs": 7, "label_smoothing": 0.2})
    assert "--epochs 7 --label-smoothing 0.2 --resume auto" in page_of(run).text


def parse_train(page: Page) -> dict[str, object]:
    """Read the training command that a report shows as the command line would."""
    from typer.main import get_command

    from search.cli import app

    line = next(text for text in page.codes if text.startswith("ofa train"))
    context = get_command(app).commands["train"].make_context("train", shlex.split(line)[2:])  # type: ignore[attr-defined]
    return dict(context.params)


def test_report_prints_a_training_command_that_parses(tmp_path: Path) -> None:
    space = get_space("mbv3_tiny_image", num_classes=2)
    first = make_run(tmp_path / "first run")
    data = replace(first.data, flip=True, validation_fraction=0.2)  # digits would not be flipped
    run = Run.create(tmp_path / "r", space, data, space.smallest)
    write_json(
        run.path / "run.json",
        read_json(run.path / "run.json", schema=RUN_SCHEMA) | {"init": {"run": "../first run", "weights_sha256": "a" * 64}},
    )
    config = TrainConfig(recipe="progressive", epochs=7, skip_teacher=True)
    facts = {"schema": TRAINING_SCHEMA, **asdict(config), "teacher": "a" * 64, "sync_batchnorm": True}
    write_json(run.supernet_dir / "config.json", facts)
    found = parse_train(page_of(run))
    assert {f.name: found[f.name] for f in fields(TrainConfig)} == asdict(config)
    assert found["space"] == space.name
    assert found["data"] == "digits"
    assert found["out"] == run.path
    assert found["arch"] == str(run.path / "arch.json")
    assert space.from_json(json.loads((run.path / "arch.json").read_text())) == space.smallest
    assert found["init"] == found["teacher"] == first.path
    assert found["flip"] is True
    assert found["validation_fraction"] == 0.2
    assert found["sync_batchnorm"] is True
    assert found["resume"] == "auto"


def test_report_leaves_defaults_out_of_the_training_command(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    config = {"schema": TRAINING_SCHEMA, **asdict(TrainConfig()), "teacher": None, "sync_batchnorm": False}
    write_json(run.supernet_dir / "config.json", config)
    assert f"ofa train --space mbv3_tiny_image --data digits --out {run.path} --resume auto" in page_of(run).codes


def test_report_repeats_the_training_command_that_was_given(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    run.log_command(["ofa", "train", "--space", "a"], 1.0)
    given = ["ofa", "train", "--space", "mbv3_tiny_image", "--data", "my images", "--out", str(run.path), "--teacher", "t.onnx"]
    run.log_command(given, 1.0)
    run.log_command(["ofa", "profile", str(run.path)], 1.0)
    found = parse_train(page_of(run))
    assert (found["data"], found["teacher"], found["resume"]) == ("my images", Path("t.onnx"), "auto")
    run.log_command([*given, "--resume", "auto"], 1.0)
    assert shlex.join([*given, "--resume", "auto"]) in page_of(run).codes


def test_report_of_a_run_without_images_says_what_needs_them(tmp_path: Path) -> None:
    imported = {"file": "mit.pth", "format": "mit_ofa", "sha256": "f" * 64}
    run = Run.create(tmp_path / "r", get_space("mbv3_tiny_image", num_classes=3), None, None, imported=imported)
    for profiled in (False, True):
        if profiled:
            add_table(run)
        page = page_of(run)
        assert page.sections == BEFORE_EXPORTS
        for text in (
            "mbv3_tiny_image, 3 classes",
            "Its weights were imported; no network has been chosen yet.",
            "Search and export need images, and this run was imported without any. Import it again with them:",
            f"ofa import mit.pth --format mit_ofa --space mbv3_tiny_image --data IMAGES --out {run.path}-2",
            "The weights were imported from mit.pth (mit_ofa), SHA-256 " + "f" * 64,
            "none: this run was imported without any",
            f"Latency on {DEVICE}" if profiled else f"ofa profile {run.path} --device {DEVICE}",
        ):
            assert text in page.text, text
        for text in ("ofa train", "ofa search", "not trained"):
            assert text not in page.text, text


def test_report_of_an_imported_run_with_images_asks_for_no_training(tmp_path: Path) -> None:
    data = make_run(tmp_path / "other").data
    imported = {"file": "mit.pth", "format": "mit_ofa", "sha256": "f" * 64}
    run = Run.create(tmp_path / "r", get_space("mbv3_tiny_image", num_classes=2), data, None, imported=imported)
    text = page_of(run).text
    assert f"ofa search {run.path}" in text
    assert "ofa train" not in text


@pytest.mark.parametrize("damage", [{"imported": "x"}, {"imported": {}}, {"init": {}}, {"commands": [{"argv": 1}]}])
def test_report_refuses_a_damaged_record(tmp_path: Path, damage: dict[str, object]) -> None:
    run = make_run(tmp_path / "r")
    write_json(run.path / "run.json", read_json(run.path / "run.json", schema=RUN_SCHEMA) | damage)
    with pytest.raises(ArtefactError, match=r"run\.json: incomplete or damaged"):
        write_report(run)


def test_report_shows_hostile_names_as_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'&"
    run = make_run(tmp_path / "r", source=f"{hostile}/x", classes=(hostile, "</svg><img src=x onerror=alert(1)>"))
    add_table(run)
    folder = "<b onclick=x>&\"'"
    add_export(run, add_search(run, folder), run.path / "export" / folder)
    run.log_command(["ofa", hostile], 1.0)
    page = page_of(run)
    assert hostile in page.text
    assert folder in page.text
    assert not {"script", "img", "b"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_searches_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    found = add_rounds(run, "a")
    (search,) = read_searches(run)
    assert search.candidates == found.candidates
    assert search.front == found.front
    assert search.best == found.best
    assert [(r.evaluations, r.best_top1, r.hypervolume) for r in search.history] == [
        (r["evaluations"], r["best_top1"], r["hypervolume"]) for r in found.history
    ]
    assert [str(r["limit"]) for r in search.ranges] == ["macs <= 900K"]
    assert search.predictor is not None
    assert (search.predictor.kendall_tau, search.predictor.macs_tau) == (0.81, None)
    assert (search.strategy, search.accuracy, search.evals, search.objectives) == ("nsga2", "table acc.csv", 20, ("max top1",))


def test_of_very_many_candidates_some_are_written_with_all_that_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.result.MOST_CANDIDATES", 5)
    run = make_run(tmp_path / "r")
    found = add_rounds(run, "a")  # 14 candidates, the last three of them the front
    (search,) = read_searches(run)
    assert search.num_candidates == 14
    assert search.candidates == tuple(found.candidates[i] for i in (0, 3, 6, 9, 11, 12, 13))
    assert "14 known in all (7 of them in front.json" in page_of(run).text


def test_front_csv_has_every_choice_and_every_cost_with_its_unit(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    front = [
        Candidate(run.space.largest, 0.75, {"macs": 3e6, "latency@pi4": 12.5, "size@int8": 2048.0}, True),
        Candidate(run.space.smallest, 0.5, {"macs": 2e5, "energy@pi4": 1.5}, True),
    ]
    result = add_rounds(run, "a", front=tuple(front))
    with (result.path / "front.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [dimension.name for dimension in run.space.dimensions]
    assert list(rows[0]) == [*names, "top1", "macs", "latency_ms@pi4", "size_bytes@int8", "energy_mj@pi4"]
    assert [rows[0][name] for name in names] == [str(value) for value in run.space.largest.values]
    assert (rows[0]["top1"], rows[0]["latency_ms@pi4"], rows[0]["energy_mj@pi4"]) == ("0.75", "12.5", "")
    assert (rows[1]["macs"], rows[1]["latency_ms@pi4"], rows[1]["energy_mj@pi4"]) == ("200000.0", "", "1.5")


def test_menu_has_a_line_for_every_target_and_says_which_cannot_be_met(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    results = [InfeasibleTarget("none", ("macs <= 1K",), "nothing meets macs <= 1K"), add_rounds(run, "b"), add_rounds(run, "a")]
    path = run.path / "search" / "menu.json"
    save_menu(run, path, results)
    (menu,) = read_menus(run)
    rows = menu.rows
    assert [(row.name, row.reason, row.best) for row in rows] == [
        ("none", "nothing meets macs <= 1K", None),
        ("b", "", results[1].best),  # type: ignore[union-attr]
        ("a", "", results[2].best),  # type: ignore[union-attr]
    ]
    with path.with_suffix(".csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [list(row.values()) for row in table] == [
        ["none", "macs <= 1K", "", "", "nothing meets macs <= 1K"],
        ["b", "macs <= 900K", str(results[1].best.top1), str(results[1].best.costs["macs"]), ""],  # type: ignore[union-attr]
        ["a", "macs <= 900K", str(results[2].best.top1), str(results[2].best.costs["macs"]), ""],  # type: ignore[union-attr]
    ]
    page = page_of(run)
    assert "The menu: 2 of 3 targets met" in page.text
    assert "nothing meets macs <= 1K" in page.text
    assert page.links == ["#network-1", "#network-1"]  # both chose the same network, which is drawn once
    assert "network-1" in page.ids


def test_report_tells_what_active_rounds_gained(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    add_rounds(run, "a")
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    for text in (
        "Active rounds asked for 6 of them, and ",
        "front after the design",
        "active round 1 to 2",
        "active rounds took the best from 54.0% to 66.0%",
        "Strategy: nsga2; accuracy from: table acc.csv.",
        "14 networks newly looked up, 14 known in all",
        "Accuracy, predicted before it was told",
        "-2 points",  # measured minus predicted
        "On 6 networks",
        "+1 points",  # held out
        "Whether it ranks networks better than their MACs do is not known.",
        "25.0%",
        "700K",
        "Best top-1 so far, %",
        "Hypervolume",
    ):
        assert text in page.text, text
    assert html.count('class="design-line" points=') == 2  # wide and narrow
    assert "in words alone" not in page.text  # the table of ranges says it better


def test_accuracies_of_different_sources_are_not_mixed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    found = add_rounds(run, "a")
    scores = tuple(replace(c, top1=-100 * c.top1, predicted=None) for c in found.candidates)
    add_rounds(
        run, "b", accuracy="proxy synflow", candidates=scores, best=scores[0], front=scores[:3], predictor=None, history=()
    )
    page = page_of(run)
    for words in ("Multiply-adds, accuracy from: table acc.csv", "Multiply-adds, accuracy from: proxy synflow", "On 6 networks"):
        assert words in page.text, words
    assert page.text.count("14 networks, ") == 2  # each plot has its own fourteen
    assert "score -40" in page.text
    marks = re.findall(r'class="chosen" d="[^"]*"><title>([^:]*):', write_report(run).read_text(encoding="utf-8"))
    assert marks == ["a", "a", "b", "b"]  # in the plots of their own, wide and narrow
    assert "-4000" not in page.text


def test_a_page_of_very_many_networks_stays_small(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    archs = list(dict.fromkeys(run.space.decode(run.space.sample(np.random.default_rng(0), 6000))))
    macs = CountCost("macs", run.space).predict(run.space.encode(archs))
    rng = np.random.default_rng(0)
    rows = tuple(
        Candidate(arch, float(top1), {"macs": float(m)}, True, 1 + i // 100, float(top1))
        for i, (arch, m, top1) in enumerate(zip(archs, macs, rng.random(len(archs)), strict=True))
    )
    history = tuple({"evaluations": i, "best_top1": 0.5, "front_size": 3, "hypervolume": 0.1 * i} for i in range(3000))
    add_rounds(run, "a", candidates=rows, best=rows[0], front=rows, history=history)
    path = write_report(run)
    assert path.stat().st_size < 2 * 2**20
    text = Page(path.read_text(encoding="utf-8")).text
    assert f"{len(rows):,} networks, " in text
    assert " others are not drawn." in text
    assert f"150 of {len(rows)}, evenly by accuracy" in text


def test_menus_of_tagged_searches_stand_beside_the_untagged_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    found = add_rounds(run, "night_a")
    for name in ("menu.json", "night_menu.json"):
        save_menu(run, run.path / "search" / name, [found])
    assert [menu.name for menu in read_menus(run)] == ["menu", "night_menu"]
    text = page_of(run).text
    assert "The menu: 1 of 1 targets met" in text
    assert "The menu “night”: 1 of 1 targets met" in text
    assert "search/night_menu.csv" in text


def test_report_copes_without_predictor_history_and_rounds(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    found = add_rounds(run, "a")
    design = tuple(replace(c, round=0, predicted=None) for c in found.candidates)
    bare = {"candidates": design, "best": design[0], "front": (), "predictor": None, "history": (), "ranges": (), "limits": ()}
    add_rounds(run, "a", **bare)
    text = page_of(run).text
    for words in (
        "No predictor: every accuracy was asked for.",
        "No search predicted accuracies",
        "Limits: none",
        "in words alone",
    ):
        assert words in text, words
    for words in ("front after the design", "predicted before", "Hypervolume", "What the front chooses", "Active rounds"):
        assert words not in text, words
    assert "Multiply-adds (MACs), M" in text  # what is spent without any limit


@pytest.mark.parametrize("space", ["resnet_small_image", "attentive_nas"])
def test_report_of_other_spaces(tmp_path: Path, space: str) -> None:
    run = make_run(tmp_path / "r", space=space)
    add_rounds(run, "a")
    text = page_of(run).text
    for words in (
        "What the front chooses",
        "stage4",
        "depth",
        "width",
        "expand ratio 6" if space == "attentive_nas" else "expand ratio 0.",
    ):
        assert words in text, words


def test_report_of_a_space_of_choices_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = (
        "from ofa.space import Dimension\nfrom search.choice_space import ChoiceSpace\n"
        "SPACE = ChoiceSpace('choice_lab.cells', tuple(Dimension(f'edge{i}', ('none', 'skip', 'conv')) for i in range(4)))\n"
    )
    (tmp_path / "choice_lab").mkdir()
    (tmp_path / "choice_lab" / "cells.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = make_run(tmp_path / "r", space="choice_lab.cells")
    for stage in ("created", "searched"):
        if stage == "searched":
            add_rounds(run, "a")
        page = page_of(run)
        assert page.sections == BEFORE_EXPORTS
    for words in ("edge3", "conv", "known by its choices alone", "14 networks, "):
        assert words in page.text, words
    assert "ofa profile" not in page.text


def search_alone(path: Path, space: str, accuracy: str, **fields: object) -> Run:
    """A run as `ofa search --space` makes it, with a search in it."""
    run = Run.create(path, get_space(space), None, None)
    add_rounds(run, "a", accuracy=accuracy, **fields)
    return run


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [
        (
            "lab/predictor.npz",
            (
                "Networks whose accuracy predictor.npz predicts: none was measured.",
                "Top-1 predicted, %",
                "as predictor.npz predicts it, which the search chose by",
                "networks newly predicted",
            ),
        ),
        (
            "lab/nb.csv",
            (
                "Networks whose accuracy stands in the table nb.csv.",
                "Top-1 from a table, %",
                "as the table nb.csv states it, which the search chose by",
                "networks newly looked up",
            ),
        ),
        (
            "lab:train",
            (
                "Networks whose accuracy the function lab:train told.",
                "Top-1 told by a function, %",
                "as the function lab:train tells it, which the search chose by",
                "networks newly asked for",
            ),
        ),
        (
            "proxy:naswot",
            (
                "Networks and their scores by the proxy naswot, which rank untrained networks and are no accuracies.",
                "Score of a proxy",
                "The score is that of the proxy naswot: it ranks untrained networks, and is no accuracy.",
                "networks newly scored",
            ),
        ),
    ],
)
def test_accuracy_that_was_not_measured_on_images_is_called_what_it_is(
    tmp_path: Path, accuracy: str, words: tuple[str, ...]
) -> None:
    page = page_of(search_alone(tmp_path / "r", "mbv3_tiny_image", accuracy))
    for text in words:
        assert text in page.text, text
    for text in ("validation", "accuracy was measured", "newly measured", "measured network", "Networks measured"):
        assert text not in page.text, text
    assert ("66.0%" in page.text) == (accuracy != "proxy:naswot")  # a score is no share, even where it lies between 0 and 1


def test_accuracy_of_the_supernet_is_still_called_measured(run: Run) -> None:
    text = page_of(run).text
    for words in (
        "Networks whose accuracy was measured on validation images.",
        "Top-1 on validation images, %",
        "on validation images, which the search chose by, and on test images, which nothing chose by",
        "measured network",
    ):
        assert words in text, words


def test_a_menu_names_the_source_of_its_accuracies(tmp_path: Path) -> None:
    run = search_alone(tmp_path / "r", "mbv3_tiny_image", "nb.csv")
    save_menu(run, run.path / "search" / "menu.json", [add_rounds(run, "a", accuracy="nb.csv")])
    text = page_of(run).text
    assert "Top-1from a table" in text  # two lines of a cell
    assert "validation" not in text


def test_sources_of_chosen_networks_stand_beside_their_accuracies(run: Run) -> None:
    add_rounds(run, "told", accuracy="lab:train")
    text = page_of(run).text.partition("Accuracy against cost")[0]
    for words in ("53.0%on validation images", "66.0%told by a function", "as the function lab:train tells it"):
        assert words in text, words


def test_a_search_without_weights_says_how_to_train_what_it_chose(tmp_path: Path) -> None:
    run = search_alone(tmp_path / "a run", "mbv3_tiny_image", "lab/predictor.npz")
    page = page_of(run)
    assert "A search in a space of 1.2 × 10¹² networks. 1 chosen." in " ".join(page.text.split())
    assert "Nothing can be exported: this run has no weights. Train a chosen architecture on images of yours:" in page.text
    for words in ("ofa export", "One supernet", "imported", "not exported yet", "not verified yet", "No epoch has been finished"):
        assert words not in page.text, words
    assert "" not in page.codes
    found = parse_train(page)
    assert (found["space"], found["data"], found["out"]) == ("mbv3_tiny_image", "IMAGES", tmp_path / "a run-a")
    assert found["arch"] == str(run.path / "search" / "a" / "best" / "arch.json")
    assert run.space.from_json(json.loads(Path(str(found["arch"])).read_text())) == read_searches(run)[0].best.arch


def test_a_search_alone_that_chose_nothing_yet_asks_for_a_search(tmp_path: Path) -> None:
    page = page_of(Run.create(tmp_path / "r", get_space("mbv3_tiny_image"), None, None))
    assert "A search in a space of 1.2 × 10¹² networks." in page.text
    assert any(code.startswith(f"ofa search {tmp_path / 'r'} ") and code.endswith("--accuracy ACCURACY") for code in page.codes)
    assert "imported" not in page.text
    assert "ofa train" not in page.text


def test_a_space_of_choices_shows_what_its_table_knows_and_offers_no_export(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "r", get_space("search.nasbench_macro"), None, None)
    archs = list(dict.fromkeys(run.space.decode(run.space.sample(np.random.default_rng(0), 12))))
    rows = tuple(
        Candidate(arch, 0.5 + 0.01 * i, {"latency@pi4": 5.0 + i, "macs": 1.25e6 * (1 + i), "params": 2.5e3 * (1 + i)}, True)
        for i, arch in enumerate(archs)
    )
    facts: dict[str, object] = {"candidates": rows, "best": rows[3], "front": rows[:4], "predictor": None, "history": ()}
    add_rounds(run, "a", "latency@pi4 <= 8ms", accuracy="nb201.csv", **facts)
    page = page_of(run)
    for words in (
        "A search in a space of 6,561 networks.",
        "Nothing can be exported: the space is known by its choices alone, and has no weights.",
        "Latency from a table",
        "Latency is what the table of accuracies states: the space is known by its choices alone",
        "8.00 ms",
        "each was looked up as it was needed",
    ):
        assert words in page.text, words
    chosen, _, fronts = page.text.partition("Accuracy against cost")
    assert "5 M" in chosen
    assert "10 K" in chosen
    assert re.search(r"5\.00\s*50\.0%\s*1\.25 M\s*2\.5 K", fronts)  # the first row of the front's table
    for words in ("ofa export", "ofa train", "ofa profile"):
        assert words not in page.text, words


@pytest.mark.parametrize("imported", [False, True])
def test_export_is_offered_only_with_weights_and_images(tmp_path: Path, imported: bool) -> None:
    source = {"imported": {"file": "mit.pth", "format": "mit_ofa", "sha256": "f" * 64}} if imported else {}
    data = None if imported else make_run(tmp_path / "other").data
    run = Run.create(tmp_path / "r", get_space("mbv3_tiny_image", num_classes=2), data, None, **source)
    if imported:
        add_weights(run)
    add_rounds(run, "a", accuracy="nb.csv")
    page = page_of(run)
    assert "ofa export" not in page.text
    if imported:
        assert "Nothing can be exported from this run: it was imported without images, which export needs." in page.text
        assert "ofa import mit.pth" in page.text
    else:
        assert "Nothing can be exported before the supernet has weights. Train it with:" in page.text
        add_weights(run)
        assert f"ofa export {run.path}/search/a/best -o {run.path}/export/a" in page_of(run).codes


def test_report_says_that_a_search_is_old_and_how_to_repeat_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    for tag in ("new", "old"):
        add_rounds(run, tag)
    path = run.path / "search" / "old" / "front.json"
    write_json(path, {"schema": "ofa.front/1", "limits": ["macs <= 900K", 3], "best": {}})
    page = page_of(run)
    assert "The search “old” was made by an older version; search again:" in page.text
    assert f"ofa search {run.path} --where 'macs <= 900K' --tag old" in page.codes
    assert [search.name for search in read_searches(run)] == ["new"]
    shutil.rmtree(run.path / "search" / "new")
    write_json(run.path / "search" / "front.json", {"schema": "ofa.front/1"})
    page = page_of(run)
    assert f"ofa search {run.path}" in page.codes
    assert "No search has been made. Make one with" not in page.text


@pytest.mark.parametrize(
    "damage",
    [
        {"space": "another"},
        {"objectives": "max top1"},
        {"limits": ["macs <= 3"]},
        {"limits": "macs <= 3M"},
        {"evals": None},
        {"ranges": [{"limit": "macs <= 3M"}]},
        {"ranges": "keys"},
        {"predictor": {"kind": "ridge"}},
        {"predictor": 3},
        {"history": [{"evaluations": 3}]},
        {"history": [{"evaluations": "3", "best_top1": 0.1, "front_size": 1, "hypervolume": 1}]},
        {"candidates": [{}]},
        {"candidates": [{"round": -1}]},
        {"candidates": [{"top1": None}]},
        {"candidates": [{"top1": True}]},
        {"candidates": [{"predicted": "0.5"}]},
        {"candidates": [{"values": [1, 2]}]},
        {"candidates": [{"costs": {"macs": "1"}}]},
        {"candidates": 7},
        {"front": None},
        {"best": None},
    ],
)
def test_a_damaged_front_is_one_line_that_names_the_file(tmp_path: Path, damage: dict[str, Any]) -> None:
    run = make_run(tmp_path / "r")
    add_rounds(run, "a")
    path = run.path / "search" / "a" / "front.json"
    record = read_json(path, schema=FRONT_SCHEMA)
    if isinstance(damage.get("candidates"), list) and damage["candidates"][0]:
        damage = {"candidates": [record["candidates"][0] | damage["candidates"][0]]}
    write_json(path, record | damage)
    with pytest.raises(ArtefactError, match=r"search/a/front\.json: ") as caught:
        write_report(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"space": "another"},
        {"targets": 3},
        {"targets": [{}]},
        {"targets": [3]},
        {"targets": [{"name": "a", "limits": ["macs < 3"], "best": None, "reason": ""}]},
        {"targets": [{"name": "a", "limits": [], "best": {"values": []}, "reason": ""}]},
        {"schema": "ofa.menu/9"},
    ],
)
def test_a_damaged_menu_is_one_line_that_names_the_file(tmp_path: Path, damage: dict[str, Any]) -> None:
    run = make_run(tmp_path / "r")
    path = run.path / "search" / "menu.json"
    save_menu(run, path, [add_rounds(run, "a")])
    write_json(path, read_json(path, schema=MENU_SCHEMA) | damage)
    with pytest.raises(ArtefactError, match=r"menu\.json: ") as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ArtefactError, match=r"menu\.json: not valid JSON"):
        write_report(run)


def test_a_sweep_of_twenty_stays_small_and_folded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", space="mbv3_small_image")
    add_weights(run)
    add_table(run)
    results = [add_rounds(run, f"n{i}", f"macs <= {20 + i}M", seed=i) for i in reversed(range(20))]
    save_menu(run, run.path / "search" / "menu.json", results)
    path = write_report(run)
    assert path.stat().st_size < 2 * 2**20
    page = Page(path.read_text(encoding="utf-8"))
    assert page.sections == BEFORE_EXPORTS
    assert "20 networks were chosen and not exported yet" in page.text
    assert "The menu: 20 of 20 targets met" in page.text
    assert len(page.links) == 20
    assert {f"#{name}" for name in page.ids} >= set(page.links)
    assert page.shown.count("ofa export") == 0  # twenty commands are folded away
    assert len(page.shown) < 8000
    chart = page.text.partition("Multiply-adds (MACs)\n")[2]
    assert chart.index("n19") < chart.index("n0 ")  # in the menu's order


def test_report_marks_what_failed_and_what_was_verified_as_another_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    for i, name in enumerate(("failed", "changed")):
        add_export(run, add_search(run, name, best=i), run.path / "export" / name, ok=name != "failed")
    change(run.path / "export" / "changed", "verify.json", sha256="0" * 64)
    networks, unusable = read_exports(run)
    assert {network.name: (network.verdict, network.reason) for network in networks} == {
        "failed": ("fail", f"latency@{DEVICE}"),
        "changed": ("fail", "model.onnx changed after it was verified"),
    }
    assert unusable == []
    text = page_of(run).text
    assert "2 chosen: 2 failed." in " ".join(text.split())
    assert "✓ Pass" not in text


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "model.onnx").unlink(), "model.onnx: no such file"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"another"), "model.onnx: SHA-256 is"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "no SHA256SUMS inside"),
        (lambda folder: change(folder, "model.json", space=7), "model.json: space"),
        (lambda folder: change(folder, "model.json", arch={"resolution": 9}), "model.json: "),
        (lambda folder: change(folder, "model.json", quantisation={"images": 3}), "model.json: quantisation"),
        (lambda folder: change(folder, "model.json", quantisation={**ROUNDED, "drop_interval": 3}), "drop_interval"),
    ],
)
def test_a_damaged_export_fails_alone_and_says_why(run: Run, damage: Any, reason: str) -> None:
    """The others are shown, and its search waits for another export."""
    add_export(run, add_search(run, "other", best=7), run.path / "export" / "other", rows=[{}])
    folder = run.path / "export" / "small"
    open_bundle(folder).add({"bench.json": (run.path / "export" / "other" / "bench.json").read_bytes()})
    damage(folder)
    networks, (found,) = read_exports(run)
    assert [network.name for network in networks] == ["other"]
    assert found.damaged
    assert reason in found.reason
    assert "\n" not in found.reason
    page = page_of(run)
    assert f"✗ The export small is damaged: {found.reason}" in page.text
    assert "1 export is damaged." in page.text
    assert page.text.count("✓ Pass") == 1
    assert f"ofa export {run.path}/search/small/best -o {run.path}/export/small" in page.codes


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda folder: (folder / "verify.json").write_bytes((folder / "verify.json").read_bytes()[:40]),
            "verify.json: is not the file",
        ),
        (lambda folder: change(folder, "verify.json", checks=[{"name": "file"}]), "verify.json: incomplete or damaged"),
        (lambda folder: change(folder, "verify.json", top1_interval=None), "top1 and its interval belong together"),
        (lambda folder: change(folder, "verify.json", limits=["latency < 3"]), "verify.json: limit 'latency < 3'"),
        (lambda folder: change(folder, "verify.json", latency={DEVICE: {"median_ms": "soon"}}), "verify.json: incomplete"),
        (
            lambda folder: change(
                folder,
                "verify.json",
                anchors={DEVICE: {"then_ms": 0, "now_ms": 1, "ratio": 1, "ratio_low": 1, "ratio_high": 1}},
            ),
            "an anchor took no time",
        ),
        (lambda folder: change(folder, "verify.json", fp32={"top1": 1}), "verify.json: incomplete"),
        (lambda folder: change(folder, "verify.json", schema="ofa.verification/1"), "verify.json: schema is"),
        (lambda folder: change(folder, "bench.json", rows=[{}]), "bench.json: incomplete or damaged"),
        (
            lambda folder: change(folder, "bench.json", rows=[{**bench_row(), "p90_ms": None}]),
            "neither all its times nor an error",
        ),
        (lambda folder: change(folder, "bench.json", rows=[{**bench_row(), "fp32_ratio": 1.0}]), "neither all its times"),
    ],
)
def test_a_damaged_result_counts_as_not_there_and_says_why(run: Run, damage: Any, reason: str) -> None:
    """The model is whole; what was found out about it can be had again."""
    folder = run.path / "export" / "small"
    open_bundle(folder).add({"bench.json": format_json({"schema": BENCH_SCHEMA, "host": HOST, "rows": [bench_row()]})})
    damage(folder)
    (network,), unusable = read_exports(run)
    assert unusable == []
    assert network.export is not None
    (fault,) = network.export.faults
    assert reason in fault
    assert "\n" not in fault
    page = page_of(run)
    assert f"✗ A result of small cannot be read: {fault}" in page.text
    lost_proof = "verify.json" in fault
    assert (network.verdict, network.reason) == (("open", "not verified yet") if lost_proof else ("pass", "all 2 checks"))
    assert (f"ofa verify {folder}/model.onnx" in page.codes) == lost_proof
    assert (f"ofa bench {folder}" in page.codes) != lost_proof


@pytest.mark.parametrize(("space", "words"), [(None, "of no space"), ("mbv3_small_image", "of the space mbv3_small_image")])
def test_an_export_of_another_space_is_no_network_of_the_run(run: Run, space: str | None, words: str) -> None:
    none = dict.fromkeys(("arch", "blocks", "bn_eps")) if space is None else {}
    change(run.path / "export" / "small", "model.json", space=space, **none)
    networks, (found,) = read_exports(run)
    assert networks == []
    assert not found.damaged
    text = page_of(run).text
    assert f"The export small is not shown: it holds a network {words}, this run is of mbv3_tiny_image." in text
    assert "✗" not in text


def test_exports_of_one_name_are_told_apart_by_their_folders(run: Run) -> None:
    found = add_search(run, "more", best=5)
    for folder in ("export/best", "int8/best"):
        add_export(run, found, run.path / folder)
    run.note_export(run.path / "int8" / "best")
    networks, _ = read_exports(Run(run.path))
    assert {network.name for network in networks} == {"small", "export/best", "int8/best"}


ANCHOR = {"then_ms": 0.1, "now_ms": 0.25, "ratio": 0.6, "ratio_low": 0.58, "ratio_high": 0.62}


def test_report_says_that_the_machine_ran_at_another_speed_than_its_table(run: Run) -> None:
    """0.6 of a network that took 0.1 ms is 0.06 ms, as was predicted."""
    change(run.path / "export" / "small", "verify.json", anchors={DEVICE: ANCHOR})
    text = " ".join(page_of(run).text.split())
    assert "machine at 2.50 × its table's time; at the table's speed 0.0600 ms (0.0580 – 0.0620) 0.0% above predicted" in text
    assert "Where the machine was slower" in text
    change(run.path / "export" / "small", "verify.json", anchors={DEVICE: {**ANCHOR, "now_ms": 0.4}})
    text = page_of(run).text
    assert "not the machine of its latency table: a network of that takes 4.0 times as long here" in text
    assert "above predicted" not in text
    change(run.path / "export" / "small", "verify.json", anchors={DEVICE: {**ANCHOR, "now_ms": 0.101}})
    text = page_of(run).text
    assert "its table's time" not in text
    assert "Where the machine was slower" not in text
    assert "2.0% above predicted" in text  # 0.0612 ms against 0.06


def test_a_prediction_for_fp32_is_not_held_against_a_file_of_another_precision(run: Run) -> None:
    assert "above predicted" in page_of(run).text
    change(run.path / "export" / "small", "model.json", precision="int8", quantisation=ROUNDED)
    text = page_of(run).text
    assert "above predicted" not in text
    assert f"{DEVICE}, fp32" in text
    int8 = {"name": DEVICE, "runtime": "onnxruntime", "precision": "int8"}
    change(run.path / "export" / "small", "model.json", devices={DEVICE: int8})
    assert "above predicted" in page_of(run).text


def test_a_file_that_no_test_image_was_shown_has_no_test_accuracy(run: Run) -> None:
    change(run.path / "export" / "small", "verify.json", top1=None, top1_interval=None, test_images=0)
    text = page_of(run).text
    assert "no test images" in text
    assert "✓ Pass" in text


def add_precisions(run: Run) -> None:
    """One network in fp32, fp16 and int8; fp16 not verified, int8 timed and slower where one image is run."""
    found = add_search(run, "more", best=5)
    layers = {"stage1_block0.depthwise": "fp32", "final": "a16w8"}
    ratios = [
        {"batch_size": 1, "fp32_ratio": 1.4, "fp32_ratio_low": 1.35, "fp32_ratio_high": 1.45},
        {"batch_size": 8, "fp32_ratio": 0.99, "fp32_ratio_low": 0.95, "fp32_ratio_high": 1.02},
        {"batch_size": 32, "fp32_ratio": 0.8, "fp32_ratio_low": 0.78, "fp32_ratio_high": 0.82, "memory_source": "ru_maxrss"},
        {"batch_size": 64, "error": "memory ran out"},
    ]
    for row in ratios[:3]:
        row |= {"precision": "int8", "memory_mib": 13.25, "memory_source": row.get("memory_source", "VmHWM")}
    folder = run.path / "export"
    add_export(run, found, folder / "net", rows=[{"fp32_ratio": 1.0, "fp32_ratio_low": 1.0, "fp32_ratio_high": 1.0}])
    add_export(run, found, folder / "net_fp16", ok=None, precision="fp16", size_bytes=2**19, quantisation=ROUNDED)
    add_export(
        run,
        found,
        folder / "net_int8",
        precision="int8",
        size_bytes=2**18,
        quantisation=ROUNDED,
        layers=layers,
        rows=ratios,
        proof={"fp32": COMPARED},
    )


def test_precisions_of_one_network_stand_side_by_side(run: Run) -> None:
    add_precisions(run)
    networks, _ = read_exports(run)
    (family,) = families(networks)  # the fp32 file of another network is in none
    assert [variant.label for variant in family.variants] == ["fp32", "fp16", "int8"]
    losses = [variant.loss for variant in family.variants]
    assert losses[0] is None
    assert losses[1] is not None
    assert losses[2] is not None
    assert (losses[1].points, losses[1].low, losses[1].split) == (pytest.approx(2.0), pytest.approx(-1.0), "validation")
    assert (losses[2].points, losses[2].high, losses[2].split) == (pytest.approx(1.2), pytest.approx(2.3), "test")
    page = page_of(run)
    text = " ".join(page.text.split())
    for words in (
        f"int8 on {DEVICE}: ✗ slower than fp32 at batch 1 (1.40 of its time); = no faster than fp32 at batch 8 (0.990 of its time); "
        "✓ faster than fp32 at batch 32 (0.800 of its time).",
        "+1.20 points",
        "+0.10 to +2.30",
        "1.40 (1.35 to 1.45)",
        "1 in a16w8: final; 1 in fp32: stage1_block0.depthwise",
        "449 test images",
        "135 validation images",
        "0.250 MiB, 25% of fp32",
    ):
        assert words in text, words
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert f"Time over fp32's on {DEVICE}, 95% CI: int8, batch 1 1.40 (1.35 to 1.45);" in " ".join(map(str, labels))
    files = " ".join(str(run.path / "export" / name) for name in ("net", "net_fp16", "net_int8"))
    assert f"ofa bench {files}" in page.codes  # fp16 has no ratio yet


def test_report_without_other_precisions_says_how_to_get_them(run: Run) -> None:
    page = page_of(run)
    assert "Every exported file is in fp32." in page.text
    assert f"ofa export {run.path}/search/small/best -o {run.path}/export/small_int8 --precision int8" in page.codes


def test_report_shows_times_and_memory_by_batch_size(run: Run) -> None:
    add_precisions(run)
    page = page_of(run)
    text = " ".join(page.text.split())
    for words in (
        f"net_int8, on {DEVICE}",
        f"net, fp32, on {DEVICE}",
        "Batch 1 8 32 64",
        "Median, ms 2.00 2.00 2.00 –",
        "p99, ms 3.50 3.50 3.50 –",
        "Images a second 4,321 4,321 4,321 –",
        "Memory, MiB 13.2 13.2 ≥ 13.2 –",
        "Batch 64 could not be run: memory ran out",
        "small was not timed by batch size.",
    ):
        assert words in text or words in spaced(page), words
    assert f"ofa bench {run.path}/export/small" in page.codes


def test_every_export_has_its_card_with_commands_to_copy(run: Run) -> None:
    add_precisions(run)
    folder = run.path / "export" / "a folder"
    add_export(run, add_search(run, "last", best=8), folder, classes=[f"class {i}" for i in range(30)], parity_error=2e-7)
    page = page_of(run)
    text = " ".join(page.text.split())
    for words in (
        f"cd '{folder}' && python run.py image.jpg",
        f"cd '{folder}' && python run.py --self-test",
        f"ofa verify '{folder}'",
    ):
        assert words in page.codes, words
    for words in (
        "float32 (batch, 3, 8, 8), RGB",
        "minus mean 0.5, 0.5, 0.5, divided by std 0.25, 0.25, 0.25",
        "float32 (batch, 30)",
        "class 18, class 19 and 10 more, all in labels.txt",
        "differs by 2.0e-07 of the largest logit",
        "int8: top-1 64.0% on 135 validation images, fp32 66.0%; the same class on 95.0% of them; signal to rounding noise 25.5 dB; "
        "ranges of activations by mse, biases corrected, fine-tuned for 2 epochs; "
        "layers of another precision: 1 in a16w8: final; 1 in fp32: stage1_block0.depthwise",
        "✓ parity: differs by 1e-07",
    ):
        assert words in text, words
    names = {f"#{name}" for name in page.ids}
    cards = {link for link in page.links if link.startswith("#card-")}
    assert len(cards) == 5
    assert cards <= names


def test_report_shows_the_latency_of_every_block(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    add_table(run)
    add_table(run, "pi4")
    found = add_search(run, "a")
    ((drawn,), notes) = show_architectures(run, [best_of(run, s) for s in read_searches(run)], tables_of(run))
    blocks = run.space.blocks(found.best.arch)
    assert notes == []
    assert [latency.device for latency in drawn.latencies] == [DEVICE, "pi4"]
    for latency in drawn.latencies:
        assert latency.blocks_ms == {name: pytest.approx(0.001 * spec.kernel_size) for name, spec in blocks.items()}
        assert latency.total_ms == pytest.approx(tables_of(run)[0](found.best.arch))
        assert (latency.scale, latency.unit) == (1e3, "µs")  # all are shorter than 0.1 ms
    page = page_of(run)
    text = " ".join(page.text.split())
    total = 1e3 * drawn.latencies[0].total_ms
    assert f"{digits(total)} µs on {DEVICE}" in text
    assert f"{len(blocks)} blocks as text, with their latency" in text
    name, spec = list(blocks.items())[3]
    share = f"{spec.kernel_size / total:.0%}"
    assert f"{name} {digits(spec.kernel_size)} {share} {digits(spec.kernel_size)} {share} {spec}" in spaced(page)


def test_blocks_that_a_table_lacks_are_named_in_a_sentence(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    add_table(run)
    found = add_search(run, "a")
    spec = next(iter(run.space.blocks(found.best.arch).values()))
    table = tables_of(run)[0]
    replace(table, entries={s: ms for s, ms in table.entries.items() if s != spec}).save(run.latency_path(DEVICE))
    text = page_of(run).text
    assert "Latency block by block is not known: table of" in text
    assert "blocks as text" in text
    assert "with their latency" not in text


def tables_of(run: Run) -> list[LatencyTable]:
    return [LatencyTable.load(path, run.space) for path in sorted((run.path / "latency").glob("*.json"))]


def spaced(page: Page) -> str:
    """The cells of tables with a space between them."""
    return " ".join(page.cells)


def test_report_finds_exports_elsewhere_and_passes_over_lost_ones(run: Run, tmp_path: Path) -> None:
    away = tmp_path / "elsewhere" / "phone"
    add_export(run, add_search(run, "large", best=9), away)
    record = json.loads((run.path / "run.json").read_text())
    write_json(
        run.path / "run.json", record | {"exports": [str(away), str(tmp_path / "gone"), str(run.path / "export" / "small")]}
    )
    page = page_of(run)
    assert page.text.count("✓ Pass") == 2
    assert "not exported yet" not in page.text
    assert str(away / "model.onnx") in page.text


def test_report_shows_every_device(run: Run) -> None:
    add_table(run, "pi4")
    text = page_of(run).text
    assert "Latency on pi4" in text
    assert f"Latency on {DEVICE}" in text


def test_report_names_limits_beyond_the_plot(run: Run) -> None:
    add_search(run, "huge", (f"latency@{DEVICE} <= 900ms",))
    caption = page_of(run).text.partition("Limits beyond the axis: ")[2].partition(".\n")[0]
    assert "huge ≤ 900 ms" in caption
    assert "small ≤ 0.09 ms" not in caption


def test_report_counts_a_network_once_across_searches(run: Run) -> None:
    assert "12 networks, " in page_of(run).text  # not 24: both searches know the same twelve
    assert [search.name for search in read_searches(run)] == ["large", "small"]


@pytest.mark.parametrize("name", ["search/small/front.json", f"latency/{DEVICE}.json"])
@pytest.mark.parametrize("damage", ["cut", "emptied"])
def test_report_refuses_damaged_files_and_keeps_the_old_report(run: Run, name: str, damage: str) -> None:
    before = write_report(run).read_bytes()
    path = run.path / name
    content = path.read_bytes()
    path.write_bytes(
        content[: len(content) // 2] if damage == "cut" else json.dumps({"schema": json.loads(content)["schema"]}).encode()
    )
    with pytest.raises(ArtefactError, match=Path(name).name):
        write_report(run)
    assert (run.path / "report.html").read_bytes() == before


def test_report_survives_a_cut_metrics_line_and_a_resumed_clock(run: Run) -> None:
    with (run.supernet_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "epoch": 4.0, "loss": 0.5, "seconds": 5.0}\n{"step": 50, "epo')
    assert "4 of 3 epochs in 26 s" in page_of(run).text


def test_report_of_a_run_of_one_architecture(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole")
    run = Run.create(tmp_path / "one", whole.space, whole.data, whole.space.smallest)
    add_training(run)
    text = page_of(run).text
    assert "holds 1 network." in text
    assert f"ofa export {run.path}/arch.json -o {run.path}/export/network" in text
    assert "ofa search" not in text  # which refuses a run of one network
    shutil.rmtree(run.path / "supernet")
    assert "not trained yet" in page_of(run).text


def test_rank_agreement_is_kendalls_tau_b() -> None:
    rng = np.random.default_rng(0)
    for n, levels in [(3, 2), (5, 3), (40, 6), (300, 1000)]:
        for _ in range(20):
            a, b = rng.integers(0, levels, (2, n)).astype(float).tolist()
            expected = kendalltau(a, b).statistic
            found = rank_agreement(a, b)
            assert (found is None) == np.isnan(expected)
            assert found is None or found == pytest.approx(expected, abs=1e-12)
    assert rank_agreement([1.0, 2.0], [1.0, 2.0]) is None
    assert rank_agreement([1.0, 2.0, 3.0], [1.0, 2.0]) is None


@pytest.mark.parametrize(
    ("value", "written"), [(0.99999, "1.00"), (0.9949, "0.995"), (12.345, "12.3"), (0.0, "0"), (-0.00039649, "-0.000396")]
)
def test_numbers_are_written_with_three_digits_and_no_exponent(value: float, written: str) -> None:
    assert digits(value) == written


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (12.0, 57.0, ["20", "30", "40", "50"]),
        (0.0, 124.0, ["0", "25", "50", "75", "100"]),
        (0.0312, 0.0424, ["0.032", "0.034", "0.036", "0.038", "0.040", "0.042"]),
    ],
)
def test_ticks_are_round_numbers_with_equal_decimals(low: float, high: float, expected: list[str]) -> None:
    assert nice_ticks(low, high) == expected


def test_ticks_keep_the_least_distance() -> None:
    assert nice_ticks(0.9, 3.1, least=1) == ["1", "2", "3"]
    assert nice_ticks(*span([1.0]), least=1) == ["1"]


def test_labels_do_not_overlap_and_stay_inside() -> None:
    anchors = [(100.0 + 3 * i, 100.0, f"network {i}") for i in range(4)] + [(195.0, 20.0, "at the corner")]
    placed = place_labels(anchors, [(x, y) for x, y, _ in anchors], (0, 0, 200, 200))
    boxes = [(x, y - 11, x + 7 * len(text), y + 4) for x, y, text in placed]
    assert min(min(box) for box in boxes) >= 0
    assert max(max(box) for box in boxes) <= 200
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
