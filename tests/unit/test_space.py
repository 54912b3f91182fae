"""Populations and architectures: what sampling, mutation, crossover and encoding promise."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofa.block_spec import BlockSpec
from ofa.errors import OfaError
from ofa.mobilenet import MobileNetSpace, Stage
from ofa.space import ArchConfig, Dimension, InvalidArchError

SMALL = MobileNetSpace(
    name="small",
    resolutions=(8, 16),
    stem_width=8,
    stem_stride=1,
    first_width=8,
    stages=(Stage(8, 2, "relu", se=False, depths=(1, 2)), Stage(16, 1, "h_swish", se=True, depths=(1,))),
    final_width=16,
    feature_width=0,
    kernel_sizes=(3, 5),
    expand_ratios=(3, 6),
    num_classes=3,
)
seeds = st.integers(0, 2**32 - 1)


def all_rows(space):
    return np.array(list(itertools.product(*(range(len(d.options)) for d in space.dimensions))), dtype=np.int16)


def test_size_counts_distinct_canonical_architectures():
    assert SMALL.size() == len(np.unique(SMALL.canonical(all_rows(SMALL)), axis=0))


def test_canonical_forms_differ_exactly_when_blocks_differ():
    rows = all_rows(SMALL)
    forms = {}
    for arch, canonical in zip(SMALL.decode(rows), SMALL.decode(SMALL.canonical(rows)), strict=True):
        chain = tuple(SMALL.blocks(arch).items())
        assert forms.setdefault(canonical, chain) == chain
    assert len(set(forms.values())) == len(forms)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_sample_mutate_crossover_stay_canonical_and_legal(seed):
    rng = np.random.default_rng(seed)
    first, second = SMALL.sample(rng, 20), SMALL.sample(rng, 20)
    before = first.copy()
    for population in (first, SMALL.mutate(first, rng, 0.3), SMALL.crossover(first, second, rng)):
        assert (population >= 0).all()
        assert (population < SMALL.num_options).all()
        np.testing.assert_array_equal(SMALL.canonical(population), population)
        for arch in SMALL.decode(population):
            SMALL.check(arch)
    np.testing.assert_array_equal(first, before)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_encode_decode_and_json_return_the_same_architecture(seed):
    population = SMALL.sample(np.random.default_rng(seed), 5)
    archs = SMALL.decode(population)
    np.testing.assert_array_equal(SMALL.encode(archs), population)
    for arch in archs:
        assert SMALL.from_json(json.loads(json.dumps(SMALL.to_json(arch)))) == arch


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_block_ids_name_the_blocks_of_each_architecture(seed):
    population = SMALL.sample(np.random.default_rng(seed), 5)
    for arch, ids in zip(SMALL.decode(population), SMALL.block_ids(population), strict=True):
        assert [SMALL.all_blocks[i] for i in ids if i >= 0] == list(SMALL.blocks(arch).values())


def test_crossover_takes_every_active_choice_from_a_parent():
    rng = np.random.default_rng(0)
    first, second = SMALL.sample(rng, 500), SMALL.sample(rng, 500)
    child = SMALL.crossover(first, second, rng)
    active = SMALL.active(child)
    assert ((child == first) | (child == second) | ~active).all()
    differ = active & (first != second)
    assert 0.4 < (child == first)[differ].mean() < 0.6


def test_mutation_redraws_about_the_asked_share():
    rng = np.random.default_rng(0)
    parents = np.repeat(SMALL.encode([SMALL.largest]), 20_000, axis=0)
    changed = (SMALL.mutate(parents, rng, 0.4)[:, SMALL.column["resolution"]] != parents[:, 0]).mean()
    assert changed == pytest.approx(0.2, abs=0.02)  # 0.4 redrawn, half of them to the same of two options


def test_sample_is_uniform_over_the_options_of_a_free_dimension():
    drawn = SMALL.sample(np.random.default_rng(0), 20_000)[:, SMALL.column["stage1.depth"]]
    assert drawn.mean() == pytest.approx(0.5, abs=0.02)


def test_one_hot_marks_active_choices_and_leaves_others_empty():
    shallow = SMALL.arch(stage1__depth=1)
    encoded = SMALL.one_hot(SMALL.canonical(SMALL.encode([shallow])))[0]
    active = SMALL.active(SMALL.encode([shallow]))[0]
    assert encoded.sum() == active.sum() == len(SMALL.dimensions) - 2


def test_restricted_space_holds_one_network():
    arch = SMALL.smallest
    only = SMALL.restrict(arch)
    assert only.size() == 1
    assert only.largest == only.smallest == arch
    assert only.blocks(arch) == SMALL.blocks(arch)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resolution": 9}, "resolution = 9 is not one of: 8, 16"),
        ({"colour": 1}, "no dimension 'colour'"),
        ({"resolution": True}, "is not one of"),
        ({"resolution": [8]}, "is not a number or a word"),
        ({"resolution": None}, "is not a number or a word"),
    ],
)
def test_from_json_names_what_is_illegal(values, message):
    good = SMALL.to_json(SMALL.largest)
    with pytest.raises(InvalidArchError, match=message.replace("[", r"\[")):
        SMALL.from_json({**good, "values": {**good["values"], **values}})


def test_from_json_refuses_other_schema_space_and_missing_values():
    good = SMALL.to_json(SMALL.largest)
    for bad in ({**good, "schema": "x"}, {**good, "space": "x"}, {**good, "values": 3}, {**good, "values": {}}, {}):
        with pytest.raises(InvalidArchError):
            SMALL.from_json(bad)


def test_check_refuses_foreign_and_short_architectures():
    with pytest.raises(InvalidArchError, match="belongs to space"):
        SMALL.blocks(ArchConfig("other", SMALL.largest.values))
    with pytest.raises(InvalidArchError, match="values, expected"):
        SMALL.blocks(ArchConfig("small", (8,)))


def test_dimension_refuses_options_out_of_order():
    """ "largest" is the last option: another order would train nonsense."""
    for options in ((16, 8), (3, 3), ()):
        with pytest.raises(OfaError, match="expected distinct ones, the smallest first"):
            Dimension("resolution", options)


def test_block_spec_round_trips_and_refuses_foreign_fields():
    spec = next(iter(SMALL.blocks(SMALL.largest).values()))
    assert BlockSpec.from_dict(spec.to_dict()) == spec
    for bad in (3, {**spec.to_dict(), "x": 1}, {"kind": "conv"}, {**spec.to_dict(), "stride": "2"}, {**spec.to_dict(), "se": 1}):
        with pytest.raises(OfaError):
            BlockSpec.from_dict(bad)
