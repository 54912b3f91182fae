"""The report's section on a search by a controller: what was found, the rewards over time, the ranking at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ofa.artefacts import MAX_JSON_BYTES, read_bounded, read_json
from ofa.run_dir import Run
from ofa.space import ARCH_SCHEMA
from search.cells_shown import ShownCell, cells_in, shown_cells
from search.chain_drawing import chain_of, draw_chain
from search.drawing import draw_network, most_channels
from search.joint.candidates import read_candidates, read_held_out
from search.joint.nas_rl import train_commands
from search.joint.record import ARC, FOLDER, SearchRecord, read_search, train_command
from search.plots import curves_plot
from search.reward_plot import CURVES, is_number, points, reward_plot

WORDS = {"reward": "mean of what was rewarded", "best_reward": "best so far", "baseline": "baseline"}
MOST = 20  # candidates that are shown


@dataclass(frozen=True, slots=True)
class Method:
    """What a search by a controller is called, and what its numbers are."""

    name: str
    turn: str  # what a line of its metrics is of
    means: str  # what accuracies are of, and what to do with what was found
    rewards: str  # how a reward is measured


METHODS = {
    "enas": Method(
        "ENAS",
        "epoch",
        "Accuracies here are those with shared weights: what was found must be trained anew. Compare it with random "
        "architectures that are trained alike.",
        "Each reward is measured on one batch of images.",
    ),
    "nas_rl": Method(
        "reinforcement learning, where every network is trained from scratch",
        "update",
        "Networks were trained for a few epochs, and the best of many is partly luck: train the best few longer, and keep the "
        "one that is best then.",
        "Each reward is of a network trained for a few epochs.",
    ),
}


def show_controller(run: Run) -> dict[str, Any] | None:
    """Return what the section shows; None if the run holds no search by a controller."""
    record = read_search(run.path)
    if record is None or not record.is_by_controller:
        return None
    method, config = METHODS[record.method], record.config
    candidates, images = read_candidates(run.path / FOLDER)
    reward, limits = config.get("reward"), config.get("where") or []
    return {
        "method": method,
        "done": record.has_ended,
        "turns": max((int(r["epoch"]) for r in record.metrics if is_number(r.get("epoch"))), default=0),
        "of_turns": _turns(config),
        "variant": config.get("variant"),
        "aim": f"{reward} of the accuracy with {' and '.join(map(str, limits))}" if reward else "accuracy",
        "power": config.get("reward_power", 1),
        "costs_matter": bool(reward),
        "found": _drawn(run, record),
        "texts": [text for text in (_text(run, ARC), record.genotype) if text],
        "rewards": reward_plot(record.metrics, x_title=method.turn.capitalize()),
        "reward_names": [(style, WORDS[name]) for name, style in reversed(CURVES.items()) if points(record.metrics, name)],
        "others": _others(record, method.turn),
        "candidates": candidates[:MOST],
        "left_out": max(0, len(candidates) - MOST),
        "images": images,
        "held_out": read_held_out(run.path / FOLDER),
        "train": _train(run, record) if record.has_ended else [],
    }


def _turns(config: dict[str, Any]) -> int | None:
    """Return how many epochs or updates a search has."""
    if is_number(config.get("epochs")):
        return int(config["epochs"])
    children, together = config.get("children"), config.get("batch_children")
    return int(children / together) if is_number(children) and is_number(together) and together else None


def _train(run: Run, record: SearchRecord) -> list[str]:
    return train_commands(run) if record.method == "nas_rl" else [train_command(run)]


def _drawn(run: Run, record: SearchRecord) -> list[ShownCell]:
    """Draw what was found: its cells, its layers and their skips, or else its blocks."""
    if not record.has_ended:
        return []
    if cells := cells_in(record.genotype or ""):
        return shown_cells(cells)
    arch = run.space.from_json(read_json(run.path / "arch.json", schema=ARCH_SCHEMA))
    if (chain := chain_of(run.space, arch)) is not None:
        return [ShownCell("Network", draw_chain(chain), chain.sentences())]
    blocks = run.space.blocks(arch)
    return [ShownCell("Network", draw_network(blocks, channels=most_channels(blocks)), [])]


def _others(record: SearchRecord, turn: str) -> list[tuple[Markup, str]]:
    """Return further plots, each with its caption."""
    captions = {
        "loss": ("Loss, nats", "Of the shared weights, mean over each epoch: every step has another architecture."),
        "top1": ("Top-1", "Mean of what was drawn."),
        "entropy": ("Entropy, nats", "Of the controller: how undecided it is. At 0 it always writes the same."),
        "skips": ("Share of skips", "Of the possible skip connections those that the controller takes."),
    }
    if record.method == "nas_rl":
        del captions["loss"]  # of the controller
    elif not record.config.get("reward"):
        del captions["top1"]  # it is the reward
    lines = {name: points(record.metrics, name) for name in captions}
    return [
        (curves_plot([("largest", line)], y_title=captions[name][0], x_title=turn.capitalize()), captions[name][1])
        for name, line in lines.items()
        if any(value for _, value in line)  # what is 0 throughout does not exist: skips in a space without any
    ]


def _text(run: Run, name: str) -> str | None:
    path = run.path / name
    if not path.exists():
        return None
    return read_bounded(path, what="an architecture", limit=MAX_JSON_BYTES).decode("utf-8", errors="replace").strip()[:20_000]
