"""Limits on memory, size and energy: how they are read and written, and who judges them. (Others: test_search.py.)"""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.emit import emit
from deploy.file_under_test import footprint
from deploy.fold import fold
from deploy.limits import PRECISIONS, UNITS, LimitError, format_value, parse_limit
from latency.cost import MemoryCost, SizeCost
from latency.table import LatencyTable
from ofa.blocks import build_network
from ofa.errors import OfaError
from ofa.spaces import get_space
from search.constraints import Constraints, InfeasibleError

SPACE = get_space("mbv3_tiny_image")


@pytest.fixture
def run(tmp_path):
    """What constraints read of a run."""
    return SimpleNamespace(space=SPACE, path=tmp_path, latency_path=lambda device: tmp_path / "latency" / f"{device}.json")


# -- reading and writing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "bound"),
    [
        ("memory <= 4MiB", "memory", 4 * 2**20),
        ("memory@int8 <= 300KB", "memory@int8", 300e3),
        ("size <= 2MB", "size", 2e6),
        ("size@fp32 <= 1.5GiB", "size", 1.5 * 2**30),
        ("size@int8<=1 MiB", "size@int8", 2**20),
        ("size@fp16 <= 12345B", "size@fp16", 12345),
        ("energy@pi4 <= 5mJ", "energy@pi4", 5),
        ("energy@pi4 <= 250uJ", "energy@pi4", 0.25),
        ("energy@pi4 <= 1.5J", "energy@pi4", 1500),
    ],
)
def test_limits_are_read_with_their_units(text, key, bound):
    limit = parse_limit(text)
    assert (limit.key, limit.bound) == (key, pytest.approx(bound))
    again = parse_limit(str(limit))
    assert (again.key, again.precision, again.bound) == (key, limit.precision, pytest.approx(bound, rel=1e-9))
    assert str(again) == str(limit)


def test_a_limit_is_written_in_the_units_in_which_it_is_shorter():
    for text in ("size <= 2MB", "size <= 2MiB", "memory <= 640KiB", "memory@int8 <= 64KB", "size <= 1.5GB", "energy@x <= 5mJ"):
        assert str(parse_limit(text)) == text
    assert [format_value("size", value) for value in (512, 2**18, 2426140, 5e6)] == ["512B", "256KiB", "2.31MiB", "5MB"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory <= 4M", "unknown unit 'M'; write the number with one of: B, KB, MB, GB, KiB, MiB, GiB"),
        ("size <= 1000000", "no unit"),
        ("size@int4 <= 1MB", "unknown precision 'int4'; known: fp32, fp16, int8"),
        ("memory@pi4 <= 1MB", "unknown precision 'pi4'"),
        ("size >= 1MB", "size takes <="),
        ("memory <= 0KiB", "above zero"),
        ("energy <= 5mJ", "energy needs a device, e.g. energy@ort_cpu_1t"),
        ("energy@pi4 <= 5ms", "unknown unit 'ms'; write the number with one of: uJ, mJ, J"),
    ],
)
def test_a_limit_that_cannot_be_read_says_why(text, message):
    with pytest.raises(LimitError, match=message):
        parse_limit(text)


@given(st.sampled_from(["memory", "size"]), st.sampled_from(sorted(PRECISIONS)), st.floats(1, 1e12))
def test_bytes_read_back_as_they_were_written(quantity, precision, value):
    limit = parse_limit(f"{quantity}@{precision} <= {value!r}B")
    again = parse_limit(str(limit))
    assert (again.key, again.bound) == (limit.key, pytest.approx(value, rel=1e-9))
    assert parse_limit(f"{quantity} <= {format_value(quantity, value)}").bound == pytest.approx(value, rel=0.01)


@given(st.sampled_from(["latency", "energy"]), st.floats(1e-4, 1e6))
def test_what_a_device_takes_reads_back_as_it_was_written(quantity, value):
    limit = parse_limit(f"{quantity}@x <= {format_value(quantity, value, digits=10)}")
    assert limit.bound == pytest.approx(value, rel=1e-9)
    assert parse_limit(str(limit)) == parse_limit(str(parse_limit(str(limit))))


@given(st.sampled_from(sorted(UNITS)), st.floats(1e-3, 1), st.data())
def test_every_unit_is_read(quantity, number, data):
    unit = data.draw(st.sampled_from(sorted(UNITS[quantity])))
    where = {"latency": "@x", "energy": "@x"}.get(quantity, "")
    text = f"{quantity}{where} {'>=' if quantity == 'top1' else '<='} {number!r}{unit}"
    assert parse_limit(text).bound == pytest.approx(number * UNITS[quantity][unit])


# -- search ---------------------------------------------------------------------------------------------------------


def test_search_judges_memory_and_size_by_their_cost_models(run):
    limits = Constraints.for_run(run, ["memory <= 32KiB", "memory@int8 <= 8KiB", "size@int8 <= 300KB", "size <= 1MB"])
    population = SPACE.sample(np.random.default_rng(0), 50)
    costs = {
        "memory": (MemoryCost(SPACE), 2**15),
        "memory@int8": (MemoryCost(SPACE, "int8"), 2**13),
        "size@int8": (SizeCost(SPACE, "int8"), 3e5),
        "size": (SizeCost(SPACE), 1e6),
    }
    assert limits.costs.keys() == costs.keys()
    excess = [np.maximum(0, cost.predict(population) / bound - 1) for cost, bound in costs.values()]
    np.testing.assert_allclose(limits.violation(population), sum(excess))
    assert (limits.violation(limits.require_feasible()) == 0).all()


def test_memory_that_nothing_fits_into_names_what_would_do(run):
    with pytest.raises(InfeasibleError, match="nearest feasible value: memory <= ") as caught:
        Constraints.for_run(run, ["memory <= 1KiB"]).require_feasible()
    nearest = str(caught.value).rpartition(": ")[2]
    assert len(Constraints.for_run(run, [nearest]).require_feasible()) > 0


def test_energy_is_refused_while_tables_hold_none(run):
    with pytest.raises(OfaError, match=r"no latency table of device 'pi4'"):
        Constraints.for_run(run, ["energy@pi4 <= 5mJ"])
    LatencyTable(space=SPACE, device="pi4", entries={SPACE.all_blocks[0]: 1.0}).save(run.latency_path("pi4"))
    with pytest.raises(OfaError, match="the table of pi4 holds no energy: its machine showed no meter"):
        Constraints.for_run(run, ["energy@pi4 <= 5mJ"])


# -- verify ---------------------------------------------------------------------------------------------------------


def test_verify_takes_the_size_of_the_file_itself_and_computes_the_rest():
    arch = SPACE.smallest
    content = emit(SPACE.blocks(arch), fold(build_network(SPACE.blocks(arch)).eval()))

    def found(limit, stored="fp32"):
        return footprint(parse_limit(limit), content, stored, SPACE.blocks(arch))

    assert found("size <= 1MB") == found("size <= 1MB", "int8") == (len(content), "of this file")
    assert found("size@fp32 <= 1MB", "int8")[1] == found("size@int8 <= 1MB")[1] == "computed"
    assert found("memory <= 1MB", "a4w4")[0] == MemoryCost(SPACE, "int8")(arch)
    assert found("size@int8 <= 1MB", "int8") == (len(content), "of this file")
    size, how = found("size@int8 <= 1MB")
    assert how == "computed"
    assert size == pytest.approx(SizeCost(SPACE, "int8")(arch), rel=0.02)  # this content has no metadata
    for precision in PRECISIONS:
        for value, how in (found(f"memory@{precision} <= 1MB"), found("memory <= 1MB", precision)):
            assert value == MemoryCost(SPACE, precision)(arch)
            assert "computed" in how
    with pytest.raises(OfaError, match="only a file of one of our spaces tells"):
        footprint(parse_limit("memory <= 1MB"), content, "fp32", {})
