"""The report's section on a search by a controller: what was found, the rewards over time, the ranking at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from ofa.artefacts import MAX_JSON_BYTES, read_bounded
from ofa.run_dir import Run
from search.cells_shown import cells_in, shown_cells
from search.joint.candidates import read_candidates
from search.joint.record import ARC, FOLDER, SearchRecord, read_search, train_command
from search.plots import curves_plot
from search.reward_plot import CURVES, is_number, points, reward_plot

METHODS = {"enas": "ENAS", "nas_rl": "reinforcement learning with networks trained from scratch"}
WORDS = {"reward": "mean of what was rewarded", "best_reward": "best so far", "baseline": "baseline"}
MOST = 20  # candidates that are shown


def show_controller(run: Run) -> dict[str, Any] | None:
    """Return what the section shows; None if the run holds no search by a controller."""
    record = read_search(run.path)
    if record is None or not record.is_by_controller:
        return None
    candidates, images = read_candidates(run.path / FOLDER)
    reward, limits = record.config.get("reward"), record.config.get("where") or []
    return {
        "method": METHODS[record.method],
        "done": record.has_ended,
        "epochs": max((int(r["epoch"]) for r in record.metrics if is_number(r.get("epoch"))), default=0),
        "of_epochs": record.config.get("epochs"),
        "variant": record.config.get("variant"),
        "aim": f"{reward} of the accuracy with {' and '.join(map(str, limits))}" if reward else "accuracy",
        "costs_matter": bool(reward),
        "cells": shown_cells(cells_in(record.genotype or "")),
        "arc": _text(run, ARC),
        "genotype": record.genotype,
        "rewards": reward_plot(record.metrics),
        "reward_names": [(style, WORDS[name]) for name, style in reversed(CURVES.items()) if points(record.metrics, name)],
        "others": _others(record),
        "candidates": candidates[:MOST],
        "left_out": max(0, len(candidates) - MOST),
        "images": images,
        "train": train_command(run) if record.has_ended else None,
    }


def _others(record: SearchRecord) -> list[tuple[Markup, str]]:
    """Return further plots, each with its caption."""
    captions: Mapping[str, tuple[str, str]] = {
        "loss": ("Loss, nats", "Of the shared weights, mean over each epoch: every step has another architecture."),
        "entropy": ("Entropy, nats", "Of the controller: how undecided it is. At 0 it always writes the same."),
        "skips": ("Share of skips", "Of the possible skip connections those that the controller takes."),
    }
    return [
        (curves_plot([("largest", points(record.metrics, name))], y_title=title), caption)
        for name, (title, caption) in captions.items()
        if points(record.metrics, name)
    ]


def _text(run: Run, name: str) -> str | None:
    path = run.path / name
    if not path.exists():
        return None
    return read_bounded(path, what="an architecture", limit=MAX_JSON_BYTES).decode("utf-8", errors="replace").strip()[:20_000]
