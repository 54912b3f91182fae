"""Populations and architectures: what sampling, mutation, crossover and encoding promise."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency.cost import CountCost
from ofa import bignas, resnet
from ofa.bignas import BigNasSpace
from ofa.block_spec import IMAGES, BlockSpec, wiring
from ofa.errors import OfaError
from ofa.mobilenet import MobileNetSpace, Stage
from ofa.resnet import ResNetSpace
from ofa.space import ArchConfig, Dimension, InvalidArchError
from ofa.spaces import get_space, list_image_spaces
from ofa.subspace import SubSpace

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
SMALL_RESNET = ResNetSpace(
    name="small_resnet",
    resolutions=(9, 16),
    stem_mid_widths=(8, 16),
    stem_out_widths=(16,),
    stem_stride=2,
    max_pool=True,
    stages=(resnet.Stage((32, 48), depths=(1, 2), stride=1), resnet.Stage((64,), depths=(1,), stride=2)),
    expand_ratios=(0.25, 0.5),
    num_classes=3,
)
SMALL_BIGNAS = BigNasSpace(
    name="small_bignas",
    resolutions=(9, 16),
    stem_widths=(8, 16),
    stem_stride=2,
    stages=(
        bignas.Stage((8, 16), depths=(1, 2), kernel_sizes=(3, 5), expand_ratios=(1,), stride=1, se=False),
        bignas.Stage((16, 24), depths=(1,), kernel_sizes=(3,), expand_ratios=(3, 6), stride=2, se=True),
    ),
    final_expand_ratio=4,
    feature_widths=(16, 32),
    num_classes=3,
)
seeds = st.integers(0, 2**32 - 1)
families = pytest.mark.parametrize("space", [SMALL, SMALL_RESNET, SMALL_BIGNAS], ids=lambda space: space.name)


def all_rows(space):
    return np.array(list(itertools.product(*(range(len(d.options)) for d in space.dimensions))), dtype=np.int16)


@families
def test_size_counts_distinct_canonical_architectures(space):
    assert space.size() == len(np.unique(space.canonical(all_rows(space)), axis=0))


@families
def test_canonical_forms_differ_exactly_when_blocks_differ(space):
    rows = all_rows(space)
    forms = {}
    for arch, canonical in zip(space.decode(rows), space.decode(space.canonical(rows)), strict=True):
        chain = tuple(space.blocks(arch).items())
        assert forms.setdefault(canonical, chain) == chain
    assert len(set(forms.values())) == len(forms)


@families
@given(seeds)
@settings(max_examples=30, deadline=None)
def test_sample_mutate_crossover_stay_canonical_and_legal(space, seed):
    rng = np.random.default_rng(seed)
    first, second = space.sample(rng, 20), space.sample(rng, 20)
    before = first.copy()
    for population in (first, space.mutate(first, rng, 0.3), space.crossover(first, second, rng)):
        assert (population >= 0).all()
        assert (population < space.num_options).all()
        np.testing.assert_array_equal(space.canonical(population), population)
        for arch in space.decode(population):
            space.check(arch)
    np.testing.assert_array_equal(first, before)


@families
@given(seeds)
@settings(max_examples=30, deadline=None)
def test_encode_decode_and_json_return_the_same_architecture(space, seed):
    population = space.sample(np.random.default_rng(seed), 5)
    archs = space.decode(population)
    np.testing.assert_array_equal(space.encode(archs), population)
    for arch in archs:
        assert space.from_json(json.loads(json.dumps(space.to_json(arch)))) == arch


@families
@given(seeds)
@settings(max_examples=30, deadline=None)
def test_block_ids_name_the_blocks_of_each_architecture(space, seed):
    population = space.sample(np.random.default_rng(seed), 5)
    for arch, ids in zip(space.decode(population), space.block_ids(population), strict=True):
        assert [space.all_blocks[i] for i in ids if i >= 0] == list(space.blocks(arch).values())


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


@families
def test_restricted_space_holds_one_network(space):
    arch = space.smallest
    only = space.restrict(arch)
    assert only.size() == 1
    assert only.largest == only.smallest == arch
    assert only.blocks(arch) == space.blocks(arch)


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


# -- every space that ships, but for tables of what can stand in a slot where that depends on too much -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_image_spaces())
def test_spaces_keep_their_promises(name):
    space = get_space(name)
    assert space.name == name
    assert {d.name.rpartition(".")[2].rstrip("0123456789") for d in space.dimensions} <= {
        *("resolution", "depth", "kernel_size", "expand_ratio", "width"),
        *("inputs", "op", "concat"),  # of a cell's nodes
        *("from", "skip"),  # earlier layers or states that are read
        *("choice", "scale", "bits"),  # of a choice block
        *("filter_height", "filter_width", "filters", "stride"),  # of a convolution
    }
    stages = [slot.stage for slot in space.slots]
    staged = [stage for stage in stages if stage]
    assert staged == sorted(staged)
    assert set(staged) == set(range(1, max(staged, default=0) + 1))
    population = space.sample(np.random.default_rng(0), 20)
    ids = space.block_ids(population) if space.is_tabulated else itertools.repeat(None)
    for arch, row in zip(space.decode(population), ids, strict=False):
        chain = list(space.blocks(arch).values())
        assert row is None or [space.all_blocks[i] for i in row if i >= 0] == chain
        assert space.from_json(json.loads(json.dumps(space.to_json(arch)))) == arch
        blocks = space.blocks(arch)
        unread = set(blocks)
        for block, sources in wiring(blocks).items():
            widths = [3 if source == IMAGES else blocks[source].out_channels for source in sources]
            sides = {space.resolution(arch) if source == IMAGES else blocks[source].out_resolution for source in sources}
            stacks = blocks[block].kind == "concat"
            assert {blocks[block].in_channels} == ({sum(widths)} if stacks else set(widths))
            assert sides == {blocks[block].resolution}
            unread -= set(sources)
        assert chain[-1].out_channels == space.num_classes
        assert list(blocks)[-1] in unread


@pytest.mark.parametrize("name", list_image_spaces())
def test_number_of_classes_is_free(name):
    space = get_space(name, num_classes=3)
    assert space.blocks(space.smallest)["classifier"].out_channels == 3
    only = space.restrict(space.smallest).with_num_classes(5)
    assert only.blocks(space.smallest)["classifier"].out_channels == 5
    assert only.size() == 1


# -- keys, everything, spaces with options left out ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mbv3_tiny_image", "ofa_mbv3_w1_2"])  # exact keys, hashed keys
def test_keys_are_equal_exactly_where_rows_are(name):
    space = get_space(name)
    drawn = space.sample(np.random.default_rng(0), 2000)
    drawn[1000:1500] = drawn[:500]
    rows = np.unique(drawn, axis=0)
    assert len(np.unique(space.keys(drawn))) == len(rows)
    distinct = space.distinct(drawn)
    np.testing.assert_array_equal(np.unique(distinct, axis=0), rows)
    np.testing.assert_array_equal(distinct[:1000], drawn[:1000][: len(distinct[:1000])])


def test_everything_is_every_canonical_architecture_once():
    space = SMALL
    rows = space.everything()
    assert len(rows) == space.size() == len(np.unique(rows, axis=0))
    np.testing.assert_array_equal(space.canonical(rows), rows)


def test_a_subspace_has_the_networks_that_use_its_options_alone():
    space = SMALL
    left = SubSpace(space, {"resolution": [16], "stage1.depth": [1], "stage2.block0.kernel_size": [5]})
    index = space.column
    expected = {
        arch
        for arch in space.decode(space.everything())
        if arch.values[index["resolution"]] == 16
        and arch.values[index["stage1.depth"]] == 1
        and arch.values[index["stage2.block0.kernel_size"]] == 5
    }
    rows = left.everything()
    assert len(rows) == left.size() == len(expected)
    wide = left.widen(rows)
    assert set(space.decode(wide)) == expected
    np.testing.assert_array_equal(left.narrow(wide), rows)
    assert len(left.narrow(space.everything())) == len(expected)
    blocks = [tuple(left.blocks(arch).values()) for arch in left.decode(rows)]
    assert blocks == [tuple(space.blocks(arch).values()) for arch in space.decode(wide)]
    np.testing.assert_array_equal(
        CountCost("macs", left).predict(rows), CountCost("macs", space).predict(wide)
    )  # tables of blocks follow


def test_a_subspace_names_what_it_cannot_leave():
    with pytest.raises(InvalidArchError, match="no option of resolution is left"):
        SubSpace(SMALL, {"resolution": [99]})
    with pytest.raises(InvalidArchError, match="has no dimension 'size'"):
        SubSpace(SMALL, {"size": [99]})
