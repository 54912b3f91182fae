"""What every search's network spends: stacked bars on one scale beside the smallest network, and tables stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from latency.cost import AdditiveCost, CountCost, SizeCost
from latency.energy_cost import EnergyCost
from latency.open import LatencyModel
from latency.table import LatencyTable
from ofa.errors import OfaError
from ofa.run_dir import Run
from search.past_records import Search
from search.plots import CHAR, WIDE_CHAR, Axes, element, image, nice_ticks, shorten
from search.spending import OVERHEAD, Spending, spend, stage_choices, stages
from search.wording import cost_name, evenly, percent, unit_of

ROW = 44  # px from one bar to the next
BAR = 18  # px, height of a bar
COLOURS = 7  # CSS classes of elastic stages; more stages begin again
MOST_BARS = 12  # networks drawn one below the other
FAR = 1.6  # times the largest cost within which a limit is drawn; beyond, it is only written
WIDTHS = (920.0, 380.0)  # px, for wide screens and for phones


def show_spending(run: Run, tables: Iterable[LatencyModel], searches: Sequence[Search]) -> dict[str, Any]:
    """Take the costs of every search's best network apart, beside those of the smallest network.

    Returns:
        plots: one a cost, with title, wide and narrow drawing, and how many networks are not drawn.
        networks: one a search, with its choices and costs stage by stage.
        notes: what could not be taken apart, and why.
    """
    notes: dict[str, None] = {}
    if not run.space.slots:
        return {"plots": [], "networks": [], "order": [], "notes": ["The space is known by its choices alone: it has no blocks."]}
    devices = {table.device: table for table in tables}
    order = [stage for stage in dict.fromkeys(stages(run.space).values()) if stage not in ("stem", "head")]
    found: dict[str, list[Spending]] = {}
    models: dict[str, Any] = {}
    networks = []
    for number, search in enumerate(searches, 1):
        own: list[tuple[str, Spending]] = []
        for key in search.cost_keys or ["macs"]:
            try:
                models.setdefault(key, _sum_of_blocks(run, key, devices))
                limit = next((limit.bound for limit in search.limits if limit.key == key), None)
                own.append((key, spend(search.name, models[key], search.best.arch, limit)))
            except OfaError as error:
                notes[f"{cost_name(key)} is not shown: {error}."] = None
        for key, spent in own:
            found.setdefault(key, []).append(spent)
        networks.append(_stage_table(run, number, search, own))
    plots = []
    for key, rows in found.items():
        drawn = [rows[i] for i in evenly(len(rows), MOST_BARS)]
        try:
            drawn.append(spend("smallest network", models[key], run.space.smallest))
        except OfaError as error:
            notes[f"The smallest network is not shown: {error}."] = None
        scale, unit = unit_of(key, max(row.total for row in drawn))
        title = f"{cost_name(key)}, {unit}"
        wide, narrow = (spending_plot(drawn, title=title, scale=scale, unit=unit, order=order, width=width) for width in WIDTHS)
        overhead = any(OVERHEAD in row.parts for row in drawn)
        facts: dict[str, Any] = {
            "overhead": overhead,
            "margin": any(row.margin > 0 for row in drawn),
            "limited": any(row.limit is not None for row in drawn),
        }
        plots.append({"title": cost_name(key), "wide": wide, "narrow": narrow, "left_out": len(rows) - len(drawn) + 1, **facts})
    return {"plots": plots, "networks": networks, "order": order, "notes": list(notes)}


def _sum_of_blocks(run: Run, key: str, tables: Mapping[str, LatencyModel]) -> AdditiveCost | EnergyCost | LatencyTable:
    """Return the model of a cost that is a sum over blocks.

    Raises:
        OfaError: if it is none, or its table is not there; as the end of a sentence.
    """
    quantity, _, where = key.partition("@")
    if quantity in ("macs", "params", "bitops"):
        return CountCost(quantity, run.space)
    if quantity == "size":
        return SizeCost(run.space, where or "fp32")
    if quantity not in ("latency", "energy"):
        raise OfaError("it is no sum over blocks")
    table = tables.get(where)
    if table is None:
        raise OfaError(f"this run has no table of {where}")
    if not isinstance(table, LatencyTable):
        raise OfaError("it is predicted for whole networks, not for blocks")
    return EnergyCost(table) if quantity == "energy" else table


def _stage_table(run: Run, number: int, search: Search, spent: Sequence[tuple[str, Spending]]) -> dict[str, Any]:
    choices = stage_choices(run.space, search.best.arch)
    units = [unit_of(key, parts.total) for key, parts in spent]
    rows = []
    for stage in dict.fromkeys([*choices, *(stage for _, parts in spent for stage in parts.parts)]):
        words = "; ".join(f"{kind} {' · '.join(map(str, values))}" for kind, values in choices.get(stage, {}).items())
        cells = [
            (f"{parts.parts[stage] * scale:.3g} {unit}", percent(parts.parts[stage] / parts.total, 0))
            if stage in parts.parts
            else None
            for (_, parts), (scale, unit) in zip(spent, units, strict=True)
        ]
        rows.append((stage, words, cells))
    order = {stage: i for i, stage in enumerate(["stem", *dict.fromkeys(stages(run.space).values())])}
    rows.sort(key=lambda row: order.get(row[0], len(order)))  # what costs beside the blocks comes last
    names = [cost_name(key) for key, _ in spent]
    return {"number": number, "name": search.name, "arch": search.best.arch, "columns": names, "rows": rows}


def spending_plot(rows: Sequence[Spending], *, title: str, scale: float, unit: str, order: Sequence[str], width: float) -> Markup:
    """Draw networks as stacked bars, one below the other, all to one scale that begins at zero.

    Args:
        rows: at least one.
        title: the cost with its unit.
        scale: from the cost's own unit to the one that is shown.
        unit: that is shown.
        order: the elastic stages, for their colours.
        width: px of the viewBox.
    """
    ends = [row.total + row.margin for row in rows]
    reach = max(ends)
    reach = max([reach, *(row.limit for row in rows if row.limit is not None and row.limit <= FAR * reach)])
    start = min(0.0, *(sum(v for v in row.parts.values() if v < 0) for row in rows))
    height = ROW * len(rows) + 48
    axes = Axes(width, height, (start * scale, 1.03 * reach * scale), (0, 1), title, "", top=4, left=16, right=16, bottom=44)
    base = height - axes.bottom
    parts = []
    for tick in nice_ticks(*axes.x_range, about=max(4, int(width / 110))):
        x = axes.x(float(tick))
        parts.append(element("line", class_="grid", x1=x, x2=x, y1=axes.top, y2=base))
        parts.append(element("text", tick, class_="tick", x=x, y=base + 16, text_anchor="middle"))
    parts.append(element("text", title, class_="axis-title", x=width - axes.right, y=height - 8, text_anchor="end"))
    for i, row in enumerate(rows):
        parts += _bar(row, axes, axes.top + ROW * i, scale, unit, order)
    return image(f"{title}, stage by stage, of {len(rows)} networks", width, height, *parts)


def _bar(row: Spending, axes: Axes, top: float, scale: float, unit: str, order: Sequence[str]) -> list[Markup]:
    y = top + 20
    parts = []
    cursor = sum(v for v in row.parts.values() if v < 0)
    for stage, value in row.parts.items():
        left, right = axes.x(cursor * scale), axes.x((cursor + max(value, 0.0)) * scale)
        share = f"{value / row.total:.0%}"
        tip = element("title", f"{row.name}: {stage} {value * scale:.3g} {unit}, {share}")
        if value > 0:
            cursor += value
            style = f"part {stage_style(stage, order)}"
            parts.append(element("rect", tip, class_=style, x=left, y=y, width=max(0.5, right - left), height=float(BAR)))
            words = next((w for w in (f"{stage} {share}", share) if CHAR * len(w) + 6 <= right - left), "")
            parts.append(element("text", words, class_="part-text", x=(left + right) / 2, y=y + 13, text_anchor="middle"))
    if row.margin > 0:
        x = axes.x(row.total * scale)
        tip = element("title", f"{row.name}: margin of the prediction {row.margin * scale:.3g} {unit}")
        far = axes.x((row.total + row.margin) * scale)
        parts.append(element("rect", tip, class_="margin", x=x, y=y + 0.5, width=far - x, height=BAR - 1.0))
    if row.limit is not None and row.limit * scale <= axes.x_range[1]:
        x = axes.x(row.limit * scale)
        parts.append(element("line", class_="bound", x1=x, x2=x, y1=y - 4, y2=y + BAR + 4))
    total = f"{row.total * scale:.3g} {unit}"
    margin = f" + {row.margin * scale:.2g} margin" if row.margin > 0 else ""
    bound = "" if row.limit is None else f" of {row.limit * scale:.4g} ({(row.total + row.margin) / row.limit:.0%})"
    room = int((axes.width - 32) / WIDE_CHAR) - 2
    facts = next((f for f in (total + margin + bound, total + bound) if len(f) + len(row.name) <= room), total)
    room -= len(facts)
    words = element("tspan", shorten(row.name, max(8, room)), class_="strong") + f"  {facts}"
    parts.append(element("text", words, x=axes.left, y=y - 6))
    return parts


def stage_style(stage: str, order: Sequence[str]) -> str:
    """Return the CSS class of a stage; `order` holds the elastic ones."""
    if stage == OVERHEAD:
        return "stage-rest"
    return f"stage-{1 + order.index(stage) % COLOURS}" if stage in order else "stage-ends"
