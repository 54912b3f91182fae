"""MODEL_CARD.md: what model.json and verify.json say, for people (and, in its front matter, for model hubs)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from deploy.model_record import read_blocks


def render_card(record: Mapping[str, Any], proof: Mapping[str, Any] | None = None) -> str:
    """Return the card of an exported file.

    Args:
        record: its model.json.
        proof: its verify.json, once there is one.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; `text` keeps names from being more than text
    )
    environment.filters["text"] = _text
    environment.filters["code"] = lambda value: _printable(value).replace("`", "'")
    return environment.get_template("MODEL_CARD.md.j2").render(
        record=record,
        pre=record["preprocess"],
        proof=proof,
        name=str(record.get("name", "model")),
        data_name=Path(str(record.get("data") or "unknown")).name,
        blocks=read_blocks(record.get("blocks") or {}, Path("model.json")),
    )


def _text(value: object) -> str:
    """Show what came from elsewhere as text: no markup, no table cells, no control characters."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", _printable(value))


def _printable(value: object) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(value))
