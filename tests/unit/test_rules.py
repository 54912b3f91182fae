"""Which subnets a step trains, in which phase, how fast: rules, phases, schedule."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from ofa.counts import macs
from ofa.errors import OfaError
from ofa.spaces import get_space
from ofa.training.attentive import Attentive
from ofa.training.config import TrainConfig
from ofa.training.phases import make_phases
from ofa.training.rules import Lesson, Sandwich, SinglePath
from ofa.training.schedule import learning_rate

SPACE = get_space("mbv3_tiny_image")
CONFIG = TrainConfig()


def rng(step=0):
    return np.random.default_rng((0, step))


# -- sandwich, single path -----------------------------------------------------------------------------------------


def test_sandwich_teaches_largest_from_labels_and_the_others_from_it():
    lessons = Sandwich(SPACE, CONFIG).lessons(rng())
    assert lessons[0] == Lesson(SPACE.largest, label_weight=1, teacher_weight=0, regularized=True)
    assert lessons[-1].arch == SPACE.smallest
    assert all((lesson.label_weight, lesson.teacher_weight, lesson.regularized) == (0, 1, False) for lesson in lessons[1:])
    assert len({lesson.arch for lesson in lessons}) == 4
    assert Sandwich(SPACE, CONFIG).lessons(rng(7)) == Sandwich(SPACE, CONFIG).lessons(rng(7))


def test_sandwich_without_distillation_teaches_all_from_labels_but_regularises_the_largest_only():
    lessons = Sandwich(SPACE, TrainConfig(distillation="none", num_random=3)).lessons(rng())
    assert len(lessons) == 5
    assert all(lesson.label_weight == 1 and lesson.teacher_weight == 0 for lesson in lessons)
    assert [lesson.regularized for lesson in lessons] == [True, False, False, False, False]


def test_sandwich_of_one_network_is_plain_training():
    lessons = Sandwich(SPACE.restrict(SPACE.smallest), CONFIG).lessons(rng())
    assert lessons == [Lesson(SPACE.smallest, label_weight=1)]


def test_an_external_teacher_joins_the_labels():
    (largest, *others) = Sandwich(SPACE, TrainConfig(kd_ratio=0.5), taught=True).lessons(rng())
    assert (largest.label_weight, largest.teacher_weight) == (1, 0.5)
    assert all(lesson.teacher_weight == 1 for lesson in others)
    (lesson,) = SinglePath(SPACE, TrainConfig(kd_ratio=0.5), taught=True).lessons(rng())
    assert (lesson.label_weight, lesson.teacher_weight) == (1, 0.5)


def test_single_path_draws_every_option_equally_often():
    rule = SinglePath(SPACE, CONFIG)
    drawn = [lesson.arch for step in range(600) for lesson in rule.lessons(rng(step))]
    counts = np.bincount(SPACE.encode(drawn)[:, SPACE.column["resolution"]], minlength=3)
    assert counts.sum() == 600
    assert counts.min() > 150  # 200 expected, standard deviation 11.5


# -- attentive -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefer", "sign"), [("best", 1), ("worst", -1)])
def test_attentive_learns_from_losses_which_subnets_are_good_for_their_size(prefer, sign):
    """Losses rise with the first kernel size only, which hardly changes MACs: BestUp must avoid it, WorstUp seek it."""
    rule = Attentive(SPACE, TrainConfig(recipe="attentive", prefer=prefer))
    column = SPACE.column["stage1.block0.kernel_size"]
    for step in range(60):
        lessons = rule.lessons(rng(step))
        losses = [0.0] + [float(k) for k in SPACE.encode([lesson.arch for lesson in lessons[1:]])[:, column]]
        rule.observe(lessons, losses)
    chosen = SPACE.encode([lesson.arch for step in range(100, 200) for lesson in rule.lessons(rng(step))[1:-1]])[:, column]
    assert (1 - chosen.mean()) * sign > 0.5
    restored = Attentive(SPACE, TrainConfig(recipe="attentive", prefer=prefer))
    restored.load_state(rule.state())
    assert restored.lessons(rng(999)) == rule.lessons(rng(999))


def test_attentive_spreads_over_all_sizes():
    rule = Attentive(SPACE, TrainConfig(recipe="attentive"))
    for step in range(60):
        lessons = rule.lessons(rng(step))
        rule.observe(lessons, [1.0] * len(lessons))
    drawn = [arch for step in range(200) for arch in (lesson.arch for lesson in rule.lessons(rng(step))[1:-1])]
    uniform = SPACE.sample(rng(), 400)
    found, expected = (np.quantile(macs(SPACE, p), [0.1, 0.5, 0.9]) for p in (SPACE.encode(drawn), uniform))
    np.testing.assert_allclose(found, expected, rtol=0.3)


# -- progressive shrinking ------------------------------------------------------------------------------------------


def test_published_phases_at_the_published_length():
    space = get_space("mbv3_small_image")
    config = TrainConfig(recipe="progressive", epochs=605, lr=0.03, batch_size=64)
    phases = make_phases(space, config, total_steps=605 * 10, taught=False)
    assert [(p.name, (p.end - p.start) / 10, p.warmup_steps / 10, pytest.approx(p.lr), p.sort_channels) for p in phases] == [
        ("teacher", 180, 0, 0.03, None),
        ("kernel_size", 125, 5, 0.03, None),
        ("depth 1", 25, 0, 0.03 / 12, None),
        ("depth 2", 125, 5, 0.03 / 4, None),
        ("expand_ratio 1", 25, 0, 0.03 / 12, 0),
        ("expand_ratio 2", 125, 5, 0.03 / 4, 1),
    ]
    assert [len(p.rule.lessons(rng())) for p in phases] == [1, 1, 2, 2, 4, 4]


def test_phases_open_one_kind_of_choice_after_the_other():
    phases = make_phases(SPACE, TrainConfig(recipe="progressive"), total_steps=605, taught=False)
    seen = {}
    for phase in phases:
        archs = [lesson.arch for step in range(300) for lesson in phase.rule.lessons(rng(step))]
        population = SPACE.encode(archs)
        for kind in ("resolution", "kernel_size", "depth", "expand_ratio"):
            columns = [c for c, d in enumerate(SPACE.dimensions) if d.name.endswith(kind)]
            active = SPACE.active(population)[:, columns]
            seen[phase.name, kind] = set(population[:, columns][active].tolist())
    all_three, largest = {0, 1, 2}, {2}
    assert {seen[p.name, "resolution"] == all_three for p in phases} == {True}
    assert [seen[p.name, "kernel_size"] for p in phases] == [largest] + [all_three] * 5
    assert [seen[p.name, "depth"] for p in phases] == [largest] * 2 + [{1, 2}] + [all_three] * 3
    assert [seen[p.name, "expand_ratio"] for p in phases] == [largest] * 4 + [{1, 2}, all_three]


def test_subnets_of_a_shrinking_step_share_their_resolution_and_the_teacher():
    *_, last = make_phases(SPACE, TrainConfig(recipe="progressive"), total_steps=605, taught=False)
    for step in range(20):
        lessons = last.rule.lessons(rng(step))
        assert len({SPACE.resolution(lesson.arch) for lesson in lessons}) == 1
        assert all((lesson.label_weight, lesson.teacher_weight) == (1, 1) for lesson in lessons)


def test_phases_follow_one_another_without_gap_however_short():
    for total in (6, 7, 54, 605):
        phases = make_phases(SPACE, TrainConfig(recipe="progressive"), total_steps=total, taught=False)
        assert phases[0].start == 0
        assert phases[-1].end == total
        assert all(a.end == b.start < b.end for a, b in itertools.pairwise(phases))


def test_skipping_the_teacher_begins_with_kernels_and_width_follows_expansion():
    space = get_space("attentive_nas")
    names = [
        p.name for p in make_phases(space, TrainConfig(recipe="progressive", skip_teacher=True), total_steps=1000, taught=False)
    ]
    assert names[0] == "kernel_size"
    assert names[-1].startswith("width")


# -- schedule ------------------------------------------------------------------------------------------------------


def rates(schedule, floor=0.0):
    return [learning_rate(schedule, s, total_steps=100, warmup_steps=10, peak=0.4, floor=floor) for s in range(101)]


def test_cosine_rises_peaks_and_ends_at_zero():
    found = rates("cosine")
    assert found[0] == pytest.approx(0.04)
    assert found[9] == found[10] == 0.4
    assert found[55] == pytest.approx(0.2)
    assert found[100] == pytest.approx(0, abs=1e-12)


def test_linear_halves_at_half_way():
    assert rates("linear")[55] == pytest.approx(0.2)
    assert rates("linear")[100] == 0


def test_exponential_with_constant_ending_is_that_of_bignas():
    found = rates("exponential", floor=0.05)
    assert found[55] == pytest.approx(0.4 * math.sqrt(0.0222))
    assert rates("exponential")[100] == pytest.approx(0.4 * 0.97 ** (300 / 2.4), rel=0.01)  # 0.97 every 2.4 of 300 epochs
    ending = [s for s, rate in enumerate(found) if rate == pytest.approx(0.4 * 0.05)]
    assert ending == list(range(ending[0], 101))
    assert 80 < ending[0] < 83


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "x"}, "unknown recipe 'x'; known: sandwich, progressive, single_path, attentive"),
        ({"schedule": "step"}, "unknown schedule 'step'; known: cosine, exponential, linear"),
        ({"epochs": 0}, "epochs is 0, expected a number of at least 1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"dropout": 1.0}, "dropout is 1.0, expected a number from 0 to 0.99"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"temperature": 0}, "temperature is 0"),
        ({"mixup": 0.2, "cutmix": 1.0}, "cannot both be on"),
    ],
)
def test_illegal_settings_are_refused(changes, message):
    with pytest.raises(OfaError, match=message):
        TrainConfig(**changes)


def test_settings_cannot_change_once_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.lr = 1
