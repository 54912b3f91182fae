"""What a device sends back, checked before it is believed, and the table that follows from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from latency import agent
from latency.agent import RESULTS_SCHEMA
from latency.calibration import Calibration, FitError, block_design, interval_margin, leave_one_out_residuals
from latency.table import LatencyTable
from latency.table_file import Day, Milliseconds, RuntimeRecord
from ofa.artefacts import ArtefactError, read_json
from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.space import SearchSpace

MIN_LINKS = 5
MIN_FITTED = 5  # networks; a calibration has four coefficients
ONE_NETWORK = "one network was timed and the table fitted to it, so nothing is left to tell the error by"
Name = Annotated[str, Field(max_length=40)]
Text = Annotated[str, AfterValidator(lambda text: "".join(c for c in agent.first_line(text) if c.isprintable()))]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class PlannedItem(_Part):
    """A graph of the plan: a block alone or a whole network."""

    id: Name
    kind: Literal["block", "network"]
    block: dict[str, Any] | None = None
    arch: dict[str, int | float | str] | None = None
    fitted: bool | None = None


class PlanRecord(_Part):
    """The plan that was measured."""

    schema_: Literal["ofa.plan/1"] = Field(alias="schema")
    id: Annotated[str, Field(max_length=64)]
    space: str
    num_classes: Annotated[int, Field(ge=1)]
    items: list[PlannedItem]


class Timing(_Part):
    """Quantiles of one item, freed of the drift that the anchor saw."""

    n: Annotated[int, Field(ge=1)]
    noisy: bool
    disturbed: Annotated[float, Field(ge=0, le=1)]
    ms: dict[Literal["p0", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p100"], Milliseconds]
    wall_ms: dict[str, Milliseconds]

    @model_validator(mode="after")
    def _is_sorted(self) -> Timing:
        values = list(self.ms.values())
        if len(values) != 9 or values != sorted(values):
            raise ValueError("expected nine quantiles in rising order")
        return self


class Results(_Part):
    """The results of an agent."""

    schema_: Literal["ofa.results/1"] = Field(alias="schema")
    plan: PlanRecord
    device: dict[str, Any]
    runtime: RuntimeRecord
    host: dict[str, Any]
    clock: Literal["cpu", "wall"]
    conditions: dict[str, Any] | None
    measured: Day
    rounds: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    drift: Annotated[float, Field(allow_inf_nan=False)]
    clock_faults: Annotated[int, Field(ge=0)]
    items: dict[Name, Timing]
    failed: dict[Name, Text]

    @model_validator(mode="after")
    def _is_of_its_plan(self) -> Results:
        planned = {item.id for item in self.plan.items}
        strange = sorted((set(self.items) | set(self.failed)) - planned)
        missing = sorted(planned - set(self.items) - set(self.failed))
        both = sorted(set(self.items) & set(self.failed))
        if both:
            raise ValueError(f"{both[0]} is said to be measured and to have failed")
        if strange:
            raise ValueError(f"{strange[0]} was never planned")
        if missing:
            raise ValueError(f"{len(missing)} of {len(planned)} graphs are missing, {missing[0]} first; run the agent again")
        return self


def read_results(path: Path) -> Results:
    """Read what an agent wrote.

    Raises:
        ArtefactError: naming the file and what is wrong with it.
    """
    return check_results(read_json(path, schema=RESULTS_SCHEMA), str(path))


def check_results(value: Mapping[str, Any], source: str) -> Results:
    """Check what an agent measured.

    Raises:
        ArtefactError: naming the field that is wrong.
    """
    try:
        return Results.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        given = f" = {json.dumps(first['input'], default=str)[:60]}" if where else ""
        problem = f"{where}{given}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")
        raise ArtefactError(f"{source}: {problem}; not the results of an agent, or damaged") from None


def measured_blocks(results: Results) -> dict[BlockSpec, float]:
    """Return the milliseconds of every block that was timed alone.

    The lower quartile: a visit finds the caches cold in varying degrees, and this repeats best from session to session.
    """
    planned = [item for item in results.plan.items if item.kind == "block" and item.id in results.items]
    return {BlockSpec.from_dict(item.block): results.items[item.id].ms["p25"] for item in planned}


def fit_table(
    space: SearchSpace,
    results: Results,
    *,
    device: str,
    measured_by: str,
    command: str,
    known: Mapping[BlockSpec, float] | None = None,
) -> LatencyTable:
    """Make a table: calibrate block times on whole networks, and judge it on others.

    Of a space of one network the table has a single factor, and states no error and no margin: nothing measured tells them.

    Args:
        space: the space that was planned for.
        results: what the device measured.
        device: name of the table.
        measured_by: "here", measured by this installation, or "agent".
        command: what makes this table again.
        known: block times of an earlier table of the device; those measured again tell how the two sessions compare.
    Raises:
        OfaError: if the results are of another space or network, or too few networks ran.
    """
    if results.plan.space != space.name:
        raise OfaError(f"results are of space {results.plan.space!r}, this run is of {space.name!r}; make a plan of this run")
    if results.plan.num_classes != space.num_classes:
        raise OfaError(
            f"results are of {results.plan.num_classes} classes, this run has {space.num_classes}; make a plan of this run"
        )
    fresh = measured_blocks(results)
    factor = speed_ratio(known, fresh) if known else 1.0
    entries = {**{spec: ms * factor for spec, ms in (known or {}).items()}, **fresh}
    planned = [item for item in results.plan.items if item.kind == "network" and item.id in results.items]
    is_one = space.size() == 1
    if is_one and any(
        item.arch != space.to_json(space.largest)["values"] for item in results.plan.items if item.kind == "network"
    ):
        raise OfaError(f"results are of other networks of {space.name} than the one of this run; make a plan of this run")
    archs = [space.from_values(item.arch or {}) for item in planned]
    fitted = np.array([bool(item.fitted) for item in planned], dtype=bool)
    held_out = ~fitted
    why = next(iter(results.failed.values()), "the plan holds no more")
    if is_one and not archs:
        raise OfaError(f"the network itself did not run, so its table cannot be fitted ({why})")
    if not is_one and (fitted.sum() < MIN_FITTED or held_out.sum() < MIN_FITTED):
        raise OfaError(
            f"{fitted.sum()} networks to fit a table on and {held_out.sum()} to judge it by did run, "
            f"at least {MIN_FITTED} of each are needed ({why})"
        )
    measured = np.array([results.items[item.id].ms["p50"] for item in planned])

    failed = {
        BlockSpec.from_dict(item.block): results.failed[item.id]
        for item in results.plan.items
        if item.kind == "block" and item.id in results.failed
    }
    bare = LatencyTable(space, device, entries, failed=failed, provenance={"command": command})
    population = space.encode(archs)
    bare.predict(population)  # says what is missing, if anything is
    design = network_design(bare, population)
    return LatencyTable(
        space=space,
        device=device,
        entries=entries,
        **(_fit_one(design[0, 0], measured[0]) if is_one else _fit_and_judge(design, measured, fitted)),
        failed=failed,
        provenance={
            **({"no_error": ONE_NETWORK} if is_one else {}),
            "measured_by": measured_by,
            "command": command,
            "measured": results.measured,
            "device": results.device,
            "runtime": results.runtime.model_dump(),
            "host": results.host,
            "clock": results.clock,
            "rounds": results.rounds,
            "seconds": results.seconds,
            "drift": results.drift,
            "conditions": results.conditions,
            "clock_faults": results.clock_faults,
            "noisy_blocks": sum(
                results.items[i.id].noisy for i in results.plan.items if i.kind == "block" and i.id in results.items
            ),
            "reused_blocks": len(entries) - len(fresh),
            "networks": [
                {"arch": item.arch, "measured_ms": ms, "fitted": bool(used), "interpolated": bool(between)}
                for item, ms, used, between in zip(
                    planned, measured.tolist(), fitted, bare.is_interpolated(population), strict=True
                )
            ],
        },
    )


def _fit_one(alone_ms: float, measured_ms: float) -> dict[str, Any]:
    """Return the fields of a table that follow from its one network."""
    return {"calibration": Calibration.of_one(float(alone_ms), float(measured_ms))}


def _fit_and_judge(design: NDArray[np.float64], measured: NDArray[np.float64], fitted: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the fields of a table that follow from the networks which it is fitted to, and from the others."""
    held_out = ~fitted
    calibration = Calibration.fit(design[fitted], measured[fitted])
    predicted = calibration.predict(design)
    macs = design * [0, 0, 1]
    from_macs = Calibration.fit(macs[fitted], measured[fitted]).predict(macs)
    return {
        "calibration": calibration,
        "margin": interval_margin(leave_one_out_residuals(design[fitted], measured[fitted])),
        "error": FitError.of(predicted[held_out], measured[held_out]),
        "macs_error": FitError.of(from_macs[held_out], measured[held_out]),
        "validation": tuple(zip(predicted[held_out].tolist(), measured[held_out].tolist(), strict=True)),
    }


def network_design(table: LatencyTable, population: NDArray[np.int16]) -> NDArray[np.float64]:
    """Return what a calibration reads of each network: the sum of its blocks' times alone, their number, million MACs, (n, 3)."""
    blocks = table.space.all_blocks
    alone = [table.time_alone(spec) for spec in blocks]
    per_block = np.vstack([block_design(blocks, [np.nan if ms is None else ms for ms in alone]), np.zeros(3)])
    return per_block[table.space.block_ids(population)].sum(1)


def speed_ratio(known: Mapping[BlockSpec, float], fresh: Mapping[BlockSpec, float]) -> float:
    """Return how much slower this session is than an earlier one, which the blocks timed in both tell.

    Raises:
        OfaError: if they have too few blocks in common to tell.
    """
    both = [fresh[spec] / ms for spec, ms in known.items() if spec in fresh and ms > 0]
    if len(both) < MIN_LINKS:
        raise OfaError(f"the table to reuse has {len(both)} blocks in common with this space, at least {MIN_LINKS} are needed")
    return float(np.median(both))
