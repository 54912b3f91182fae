"""The report's section on a search by gates: the options that are favoured, their probabilities over time, what comes next."""

from __future__ import annotations

from typing import Any

from ofa.artefacts import ArtefactError, read_jsonl
from ofa.run_dir import Run
from search.alpha_plot import EdgeHistory, draw_edge
from search.joint.record import ALPHAS, FOLDER, read_search, train_command
from search.plots import curves_plot
from search.reward_plot import is_number, points

BRIGHT = 3  # times the probability of an option in a uniform choice: full colour at least
LOSSES = {"loss": "largest", "alpha_loss": "smallest"}  # name in metrics.jsonl -> CSS class


def show_gates(run: Run) -> dict[str, Any] | None:
    """Return what the section shows; None if the run holds no search by gates.

    Raises:
        ArtefactError: if its files are damaged.
    """
    record = read_search(run.path)
    if record is None or record.method != "gates":
        return None
    histories = _histories(run)
    seen = [p for history, _ in histories for row in history.probabilities for p in row]
    most = max([*seen, *(BRIGHT / len(options) for _, options in histories)], default=1.0)
    losses = [(style, points(record.metrics, name)) for name, style in LOSSES.items()]
    return {
        "done": record.has_ended,
        "by_reward": record.config.get("update") == "reinforce",
        "epochs": max((int(r["epoch"]) for r in record.metrics if is_number(r.get("epoch"))), default=0),
        "of_epochs": record.config.get("epochs"),
        "target_ms": record.config.get("target_ms") or 0,
        "top1": next((r["alpha_top1"] for r in reversed(record.metrics) if is_number(r.get("alpha_top1"))), None),
        "expected_ms": next((r["expected_ms"] for r in reversed(record.metrics) if is_number(r.get("expected_ms"))), None),
        "choices": [
            (history, draw_edge(history, options, min(1.0, most), whole="network"), options) for history, options in histories
        ],
        "full": min(1.0, most),
        "losses": curves_plot([line for line in losses if line[1]], y_title="Loss") if any(line for _, line in losses) else None,
        "train": train_command(run) if record.has_ended else None,
    }


def _histories(run: Run) -> list[tuple[EdgeHistory, list[str]]]:
    """Return for each choice its probabilities over the epochs, and its options."""
    lines = list(read_jsonl(run.path / FOLDER / ALPHAS))
    found = []
    try:
        for name in lines[0]["probabilities"] if lines else ():
            options = [str(option) for option in run.whole_space.dimensions[run.whole_space.column[name]].options]
            rows = [[float(p) for p in line["probabilities"][name]] for line in lines]
            if any(len(row) != len(options) for row in rows):
                raise ValueError(f"{name} has not {len(options)} probabilities")
            best = max(range(len(options)), key=rows[-1].__getitem__)
            found.append((EdgeHistory(name, [int(line["epoch"]) for line in lines], rows, options[best]), options))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        damage = f"{type(error).__name__}: {error}"
        raise ArtefactError(f"{run.path / FOLDER}: damaged ({damage}); remove {ALPHAS} to go on without it") from None
    return found
