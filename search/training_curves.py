"""Training as it went: curves of the loss and of the accuracy that was looked at on the way."""

from __future__ import annotations

import math
from typing import Any

from ofa.artefacts import read_jsonl
from ofa.run_dir import Run
from search.plots import curves_plot
from search.wording import duration

LOOKED_AT = {"largest": "largest", "smallest": "smallest", "random_1": "random", "random_2": "random"}  # subnet -> CSS class


def show_training(run: Run) -> dict[str, Any] | None:
    """Return the training curves and their last values; None before the first epoch."""
    records = [r for r in read_jsonl(run.supernet_dir / "metrics.jsonl") if _is_number(r.get("epoch"))]
    lines = {
        name: [(float(r["epoch"]), float(r[name]) * (1 if name == "loss" else 100)) for r in records if _is_number(r.get(name))]
        for name in ("loss", *(f"top1_{subnet}" for subnet in LOOKED_AT))
    }
    if not lines["loss"]:
        return None
    seconds = [float(r["seconds"]) for r in records if _is_number(r.get("seconds"))]
    # the clock starts again whenever training is resumed
    total = sum(now - before if now >= before else now for before, now in zip([0.0, *seconds], seconds, strict=False))
    top1 = [(style, lines[f"top1_{subnet}"]) for subnet, style in LOOKED_AT.items()]
    phases = dict.fromkeys(str(r["phase"]) for r in records if "phase" in r)
    return {
        "epochs": records[-1]["epoch"],
        "phases": list(phases),
        "duration": duration(total),
        "last": {name: line[-1][1] for name, line in lines.items() if line},
        "loss": curves_plot([("loss", lines["loss"])], y_title="Training loss, nats"),
        "top1": curves_plot(top1, y_title="Top-1 on validation images, %") if any(line for _, line in top1) else None,
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
