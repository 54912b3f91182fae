"""Accuracy predictors: what they learn, admit and remember; MIT's predictors against their published answers."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency.cost import CountCost
from ofa.artefacts import ArtefactError, read_json
from ofa.errors import OfaError
from ofa.formats.mit_ofa import to_arch
from ofa.space import Dimension
from ofa.spaces import get_space
from search.choice_space import ChoiceSpace
from search.features import Features
from search.formats import load_mit_predictor
from search.predictor import DEFAULT_KINDS, AccuracyPredictor, fit_predictor, kendall_tau
from search.predictor_file import SCHEMA
from search.regressors import get_regressor, list_regressors
from search.scale import Scale

SPACE = get_space("mbv3_tiny_image")
CHOICES = ChoiceSpace("chain", tuple(Dimension(f"layer{i}", ("identity", "k3", "k5")) for i in range(6)))
DATA = Path(__file__).parents[3] / "shared" / "data"
MIT = DATA / "mit_ofa"
QUICK = sorted(set(list_regressors()) - {"mlp", "torch_mlp"})


def teach(space, rng, n, noise=0.003):
    """Networks and a top-1 with main effects, an interaction and measurement noise."""
    population = space.sample(rng, n)
    worth = np.random.default_rng(99).normal(0, 0.01, sum(space.num_options))
    top1 = 0.8 + space.one_hot(population) @ worth + 0.02 * (population[:, 0] == population[:, 1])
    return population, top1 + rng.normal(0, noise, n)


# -- spaces of choices alone -----------------------------------------------------------------------------------------


def test_a_choice_space_samples_and_counts_but_builds_nothing():
    assert CHOICES.size() == 3**6
    assert len(np.unique(CHOICES.sample(np.random.default_rng(0), 20_000), axis=0)) == 3**6
    with pytest.raises(OfaError, match="chain is known by its choices alone: no network can be built"):
        CHOICES.blocks(CHOICES.largest)
    with pytest.raises(OfaError, match="no dimensions"):
        ChoiceSpace("empty")
    assert CHOICES.with_num_classes(10).num_classes == 10


# -- features and scale ----------------------------------------------------------------------------------------------


def test_features_are_the_choices_and_the_logarithms_of_counted_costs():
    population = SPACE.sample(np.random.default_rng(0), 50)
    found, layout = Features(SPACE)(population), Features(SPACE).layout
    np.testing.assert_array_equal(found[:, : layout.num_one_hot], SPACE.one_hot(population))
    for name in ("params", "macs"):
        np.testing.assert_allclose(found[:, layout.column(name)], np.log(CountCost(name, SPACE).predict(population)), rtol=1e-6)
    assert Features(CHOICES).layout.costs == ()
    sizes = [SPACE.dimensions[d].options for d in sorted(set(layout.dimension))]
    assert [layout.dimension.count(d) for d in range(len(sizes))] == [len(options) for options in sizes]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40), st.lists(st.floats(-1, 2), min_size=2, max_size=10))
@settings(deadline=None)
def test_scales_keep_the_order_and_read_back(measured, others):
    scale = Scale.of(np.array(measured))
    assert (np.diff(scale.to_scores(np.sort(np.array([*measured, *others])))) >= 0).all()
    np.testing.assert_allclose(scale.to_top1(scale.to_scores(np.array(measured))), measured, atol=1e-9)


def test_a_tail_of_poor_networks_leaves_room_for_the_good_ones_on_the_scale():
    good = np.linspace(0.90, 0.94, 95)
    measured = np.concatenate([good, [0.1, 0.2, 0.3, 0.4, 0.5]])
    scores = Scale.of(measured).to_scores(good)
    plain = (good - measured.mean()) / measured.std()
    assert np.ptp(scores) > 10 * np.ptp(plain)


# -- fitting ---------------------------------------------------------------------------------------------------------


def test_predictor_learns_what_macs_cannot_tell_and_reports_held_out_tau():
    rng = np.random.default_rng(0)
    population = SPACE.sample(rng, 80)
    truth = 0.9 - 0.05 * (population[:, SPACE.column["resolution"]] == 0) + 0.002 * population[:, SPACE.column["stage3.depth"]]
    measured = truth + rng.normal(0, 1e-3, len(truth))
    predictor = fit_predictor(SPACE, population, measured)
    assert predictor.kendall_tau > predictor.macs_tau
    fresh = SPACE.sample(rng, 200)
    low = fresh[:, SPACE.column["resolution"]] == 0
    predicted = predictor.predict(fresh)
    assert (predicted[low][:, None] < predicted[~low]).mean() > 0.999


def test_predictor_of_noise_admits_that_it_ranks_nothing():
    rng = np.random.default_rng(0)
    predictor = fit_predictor(SPACE, SPACE.sample(rng, 60), rng.random(60))
    assert abs(predictor.kendall_tau) < 0.35


def test_predictor_of_equal_accuracies_predicts_them():
    population = SPACE.sample(np.random.default_rng(0), 20)
    predictor = fit_predictor(SPACE, population, np.full(20, 0.7))
    np.testing.assert_allclose(predictor.predict(population), 0.7)
    assert predictor.kendall_tau == 0


def test_predictor_needs_ten_subnets():
    with pytest.raises(ValueError, match="at least 10"):
        fit_predictor(SPACE, SPACE.sample(np.random.default_rng(0), 9), np.zeros(9))


def test_predictor_refuses_accuracy_that_is_no_number():
    with pytest.raises(ValueError, match="top-1 is nan"):
        fit_predictor(SPACE, SPACE.sample(np.random.default_rng(0), 12), np.array([0.5] * 11 + [math.nan]))


def test_predictor_refuses_kinds_that_do_not_exist_or_do_not_suit():
    population, top1 = teach(CHOICES, np.random.default_rng(0), 20)
    with pytest.raises(OfaError, match="unknown kind of predictor 'oracle'; known: blend, gaussian_process, "):
        fit_predictor(CHOICES, population, top1, kinds=["oracle"])
    with pytest.raises(OfaError, match="'macs' does not suit space chain: the MACs of this space are unknown"):
        fit_predictor(CHOICES, population, top1, kinds=["macs"])
    with pytest.raises(OfaError, match="at least one"):
        fit_predictor(CHOICES, population, top1, kinds=[])


def suiting(space, kinds):
    """Kinds that a space has the inputs for."""
    return [kind for kind in kinds if not get_regressor(kind).supports(Features(space).layout)]


@pytest.mark.parametrize(
    ("space", "kind"),
    [(SPACE, kind) for kind in suiting(SPACE, QUICK) if kind != "macs"]
    + [(CHOICES, kind) for kind in suiting(CHOICES, list_regressors())],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_every_kind_ranks_networks_that_it_never_saw(space, kind, monkeypatch):
    monkeypatch.setattr("search.regressors.torch_mlp.STEPS", 150)  # enough here, a quarter of the time
    population, top1 = teach(space, np.random.default_rng(1), 60)
    features = Features(space)
    scale = Scale.of(top1)
    fitted = get_regressor(kind).fit(features(population), scale.to_scores(top1), features.layout, 0)
    fresh, truth = teach(space, np.random.default_rng(2), 500, noise=0)
    assert kendall_tau(fitted.predict(features(fresh)), truth) > 0.35
    restored = get_regressor(kind).restore(fitted.arrays(), features.layout)
    np.testing.assert_array_equal(restored.predict(features(fresh)), fitted.predict(features(fresh)))
    np.testing.assert_array_equal(restored.spread(features(fresh)), fitted.spread(features(fresh)))


def test_predictor_without_macs_says_so_and_uses_costs_that_it_is_given():
    rng = np.random.default_rng(3)
    population = CHOICES.sample(rng, 60)
    worth = np.random.default_rng(4).random(18)  # what an option costs says how good it is

    class Cost:
        quantity, space = "macs", CHOICES

        def predict(self, population):
            return 1e6 * np.exp(CHOICES.one_hot(population) @ worth)

    top1 = 0.5 + 0.1 * np.tanh(np.log(Cost().predict(population)) - 15)
    blind, seeing = fit_predictor(CHOICES, population, top1), fit_predictor(CHOICES, population, top1, costs={"macs": Cost()})
    assert math.isnan(blind.macs_tau)
    assert seeing.macs_tau == pytest.approx(1)
    assert seeing.kendall_tau > blind.kendall_tau
    Cost.predict = lambda self, population: np.zeros(len(population))
    with pytest.raises(OfaError, match=r"macs of a network is 0\.0, expected a number above 0"):
        seeing.predict(population)


def test_simplest_kind_is_kept_unless_another_is_better_by_more_than_chance():
    rng = np.random.default_rng(5)
    population = CHOICES.sample(rng, 80)
    additive = CHOICES.one_hot(population) @ np.random.default_rng(6).normal(0, 0.01, 18) + rng.normal(0, 1e-3, 80)
    # the best choice of each layer depends on its neighbour: no sum over choices can say it
    pairs = (population[:, ::2] == population[:, 1::2]) @ np.array([0.01, 0.02, 0.03]) + rng.normal(0, 1e-3, 80)
    kinds = ["ridge", "ridge_pairs"]
    assert fit_predictor(CHOICES, population, additive, kinds=kinds).kind == "ridge"
    found = fit_predictor(CHOICES, population, pairs, kinds=kinds)
    assert found.kind == "ridge_pairs"
    assert found.kendall_tau == found.taus["ridge_pairs"] > found.taus["ridge"]


def test_predictor_is_deterministic_and_its_held_out_pairs_give_its_tau():
    population, top1 = teach(SPACE, np.random.default_rng(7), 40)
    first, second = (fit_predictor(SPACE, population, top1, seed=3) for _ in range(2))
    fresh = SPACE.sample(np.random.default_rng(8), 100)
    np.testing.assert_array_equal(first.predict(fresh), second.predict(fresh))
    assert kendall_tau(*map(np.array, zip(*first.held_out, strict=True))) == pytest.approx(first.kendall_tau)
    assert set(first.taus) == {kind for kind in DEFAULT_KINDS if not get_regressor(kind).supports(first.features.layout)}


@pytest.mark.parametrize("kind", ["ridge", "gaussian_process", "random_forest", "gradient_boosting", "blend"])
def test_uncertainty_covers_held_out_networks(kind):
    measured, fresh = (
        teach(CHOICES, np.random.default_rng(9), 100, noise=0.01),
        teach(CHOICES, np.random.default_rng(10), 600, noise=0.01),
    )
    predictor = fit_predictor(CHOICES, *measured, kinds=[kind])
    error, deviation = np.abs(predictor.predict(fresh[0]) - fresh[1]), predictor.uncertainty(fresh[0])
    assert 0.55 < (error < deviation).mean() < 0.85  # 0.68 of a normal distribution; 600 draws and one fit scatter around it
    assert (error < 2 * deviation).mean() > 0.88


def test_predictor_predicts_nothing_for_nobody():
    population, top1 = teach(SPACE, np.random.default_rng(0), 12)
    predictor = fit_predictor(SPACE, population, top1, kinds=["ridge"])
    assert predictor.predict(population[:0]).shape == predictor.uncertainty(population[:0]).shape == (0,)


# -- files -----------------------------------------------------------------------------------------------------------


def test_macs_alone_follow_macs():
    population = SPACE.sample(np.random.default_rng(1), 60)
    macs = CountCost("macs", SPACE).predict(population)
    predictor = fit_predictor(SPACE, population, 0.5 + 0.01 * np.log(macs), kinds=["macs"])
    assert predictor.macs_tau == pytest.approx(1)
    assert predictor.kendall_tau > 0.95  # lines through other networks cross a little


def test_uncertainty_grows_away_from_the_measured_networks():
    population, top1 = teach(CHOICES, np.random.default_rng(9), 200)
    near = (population[:, :3] == 0).sum(1) >= 2
    for kind in ("gaussian_process", "ridge"):
        predictor = fit_predictor(CHOICES, population[near], top1[near], kinds=[kind])
        far = (population[:, :3] == 0).sum(1) == 0
        assert predictor.uncertainty(population[far]).mean() > 1.1 * predictor.uncertainty(population[near]).mean()


@pytest.mark.parametrize("kind", suiting(SPACE, QUICK))
def test_a_loaded_predictor_predicts_as_before(tmp_path, kind):
    population, top1 = teach(SPACE, np.random.default_rng(11), 40)
    fitted = fit_predictor(SPACE, population[:20], top1[:20], kinds=[kind])
    fitted.save(tmp_path / "predictor.json")
    loaded = AccuracyPredictor.load(tmp_path / "predictor.json", SPACE)
    fresh = SPACE.sample(np.random.default_rng(12), 200)
    np.testing.assert_allclose(loaded.predict(fresh), fitted.predict(fresh), atol=1e-6)
    np.testing.assert_allclose(loaded.uncertainty(fresh), fitted.uncertainty(fresh), atol=1e-6)
    assert (loaded.kind, loaded.taus, loaded.held_out) == (kind, fitted.taus, fitted.held_out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["predictor.json", "predictor.safetensors"]


def test_a_predictor_of_another_space_or_without_its_costs_is_refused(tmp_path):
    population, top1 = teach(CHOICES, np.random.default_rng(13), 20)
    fit_predictor(CHOICES, population, top1, kinds=["ridge"]).save(tmp_path / "p.json")
    assert math.isnan(AccuracyPredictor.load(tmp_path / "p.json", CHOICES).macs_tau)
    with pytest.raises(ArtefactError, match="predictor of space 'chain', expected 'mbv3_tiny_image'"):
        AccuracyPredictor.load(tmp_path / "p.json", SPACE)
    longer = ChoiceSpace("chain", (*CHOICES.dimensions, Dimension("layer6", ("identity", "k3"))))
    with pytest.raises(ArtefactError, match="its choices or costs are not those of this chain"):
        AccuracyPredictor.load(tmp_path / "p.json", longer)


def damaged(path, record):
    path.write_text(json.dumps(record))
    with pytest.raises(ArtefactError) as caught:
        AccuracyPredictor.load(path, SPACE)
    assert "\n" not in str(caught.value)
    assert str(path.parent) in str(caught.value)


@pytest.mark.parametrize("kind", ["gaussian_process", "random_forest", "ridge"])
def test_damaged_predictors_are_one_line(tmp_path, kind):
    path = tmp_path / "p.json"
    population, top1 = teach(SPACE, np.random.default_rng(14), 15)
    fit_predictor(SPACE, population, top1, kinds=[kind]).save(path)
    record, arrays = read_json(path, schema=SCHEMA), path.with_suffix(".safetensors").read_bytes()
    for name in record:
        damaged(path, {n: v for n, v in record.items() if n != name} if name != "kendall_tau" else record | {"schema": "x"})
    for change in (
        {"kind": "macs"}, {"kind": "oracle"}, {"kind": ["ridge"]}, {"taus": []}, {"taus": {"macs": 0.1}}, {"taus": {kind: "high"}},
        {"widening": [1.0]}, {"widening": [1.0, None]}, {"held_out": [{"predicted": 1}]}, {"held_out": 3}, {"macs_tau": "none"},
        {"arrays_sha256": "0" * 64}, {"inputs": None},
    ):  # fmt: skip
        damaged(path, record | change)
    for cut in (arrays[:-1], arrays[: len(arrays) // 2], b"", arrays + b"0"):
        path.with_suffix(".safetensors").write_bytes(cut)
        damaged(path, record)
        damaged(path, record | {"arrays_sha256": hashlib.sha256(cut).hexdigest()})
    path.with_suffix(".safetensors").unlink()
    damaged(path, record)


@pytest.mark.parametrize("kind", suiting(SPACE, QUICK))
def test_arrays_that_do_not_belong_together_are_refused(kind):
    features = Features(SPACE)
    population, top1 = teach(SPACE, np.random.default_rng(15), 15)
    arrays = get_regressor(kind).fit(features(population), Scale.of(top1).to_scores(top1), features.layout, 0).arrays()
    for name in arrays:
        with pytest.raises((KeyError, ValueError)):
            get_regressor(kind).restore({n: a for n, a in arrays.items() if n != name}, features.layout)
        with pytest.raises((KeyError, ValueError)):
            get_regressor(kind).restore(arrays | {name: np.concatenate([arrays[name], arrays[name]])[:, None]}, features.layout)


# -- MIT's predictors ------------------------------------------------------------------------------------------------

W12, RESNET = get_space("ofa_mbv3_w1_2"), get_space("ofa_resnet50d")
needs_mit = pytest.mark.skipif(not MIT.exists(), reason="../shared/data is not here: mit_ofa")


def made_up(path, inputs, last="b3", hidden=8):
    rng = np.random.default_rng(0)
    arrays = {}
    for i, (outputs, width) in enumerate([(hidden, inputs), (hidden, hidden), (hidden, hidden), (1, hidden)]):
        arrays |= {f"w{i}": rng.normal(size=(outputs, width)).astype("f"), f"b{i}": rng.normal(size=outputs).astype("f")}
    arrays[last] = arrays.pop("b3")
    np.savez(path, **arrays)
    return arrays


def perceptron(arrays, features):
    """The network as MIT's code runs it, in double precision."""
    hidden = features
    for i in range(3):
        hidden = np.maximum(hidden @ arrays[f"w{i}"].T.astype(float) + arrays[f"b{i}"], 0)
    return (hidden @ arrays["w3"].T.astype(float))[:, 0] + (arrays["b3"] if "b3" in arrays else arrays["base_acc"])


def mobilenet_features(arch):
    """MIT's 128 inputs of an architecture, one by one."""
    values = dict(zip((d.name for d in W12.dimensions), arch.values, strict=True))
    features = np.zeros(128)
    for block in range(20):
        stage, b = f"stage{block // 4 + 1}", block % 4
        if b < values[f"{stage}.depth"]:
            features[3 * block + (3, 5, 7).index(values[f"{stage}.block{b}.kernel_size"])] = 1
            features[60 + 3 * block + (3, 4, 6).index(values[f"{stage}.block{b}.expand_ratio"])] = 1
    if values["resolution"] % 16 == 0:
        features[120 + (values["resolution"] - 112) // 16] = 1
    return features


def resnet_features(arch):
    """MIT's 82 inputs of an architecture: resolution, stem, widths, expand ratios."""
    values = dict(zip((d.name for d in RESNET.dimensions), arch.values, strict=True))
    features, sides = np.zeros(82), (128, 144, 160, 176, 192, 224, 240, 256)
    if values["resolution"] in sides:
        features[sides.index(values["resolution"])] = 1
    features[8 + values["stem.depth"]] = 1
    widths = [(24, None, 32), (40, 48, 64), (168, 208, 256), (336, 408, 512), (664, 816, 1024), (1328, 1640, 2048)]
    names = ["stem.mid.width", "stem.out.width", *(f"stage{s}.width" for s in range(1, 5))]
    for i, (name, options) in enumerate(zip(names, widths, strict=True)):
        features[10 + 3 * i + options.index(values[name])] = 1
    at = 28
    for stage, most in enumerate((4, 4, 6, 4), 1):
        for b in range(most):
            if b < values[f"stage{stage}.depth"]:
                features[at + (0.2, 0.25, 0.35).index(values[f"stage{stage}.block{b}.expand_ratio"])] = 1
            at += 3
    return features


@pytest.mark.parametrize(
    ("space", "inputs", "last", "encode", "known"),
    [
        (W12, 128, "b3", mobilenet_features, (160, 176, 192, 208, 224)),
        (RESNET, 82, "base_acc", resnet_features, (128, 144, 160, 176, 192, 224)),
    ],
    ids=["mbv3", "resnet50"],
)
def test_mit_predictor_equals_the_network_on_mit_s_inputs(tmp_path, space, inputs, last, encode, known):
    arrays = made_up(tmp_path / "p.npz", inputs, last)
    predictor = load_mit_predictor(tmp_path / "p.npz", space)
    archs = [*space.decode(space.sample(np.random.default_rng(1), 700)), space.smallest, space.largest]
    expected = perceptron(arrays, np.stack([encode(arch) for arch in archs]))
    unknown = np.array([space.resolution(arch) not in known for arch in archs])
    assert 0.5 < unknown.mean() < 0.95
    expected[unknown] = np.nan
    np.testing.assert_allclose(predictor(archs), expected, rtol=1e-4, atol=1e-4)  # float32 sums of terms of about 10


def test_mit_predictor_without_its_dead_units_is_the_same_network(tmp_path):
    arrays = made_up(tmp_path / "p.npz", 82, "base_acc", hidden=12)
    arrays["w0"][:5] = 1e-40  # without inputs: a constant
    arrays["w1"][:, 6] = -1e-39  # nobody listens
    arrays["w2"][3:8] = 0
    np.savez(tmp_path / "p.npz", **arrays)
    predictor = load_mit_predictor(tmp_path / "p.npz", RESNET)
    assert [w.shape[1] for w in predictor.weights] == [6, 12, 7, 1]
    archs = [a for a in RESNET.decode(RESNET.sample(np.random.default_rng(2), 900)) if RESNET.resolution(a) in (160, 192, 224)]
    expected = perceptron(arrays, np.stack([resnet_features(arch) for arch in archs]))
    np.testing.assert_allclose(predictor(archs), expected, rtol=1e-4, atol=1e-4)


@needs_mit
def test_mit_predictor_gives_mit_s_own_answers():
    cases = json.loads((MIT / "predictor_cases.json").read_text())
    archs = [to_arch(W12, {name: case[name] for name in ("ks", "e", "d", "r")}) for case in cases]
    found = load_mit_predictor(MIT / "acc_predictor_mbv3_w1.2.npz", W12)(archs)
    # both are float32 sums of 400 terms, in another order: a few units in the last place of 0.8
    np.testing.assert_allclose(found, [case["pred_top1"] for case in cases], rtol=0, atol=5e-7)


@needs_mit
def test_mit_resnet_predictor_is_sane_and_almost_all_dead():
    predictor = load_mit_predictor(MIT / "acc_predictor_resnet50.npz", RESNET)
    assert max(w.shape[1] for w in predictor.weights) < 200
    smallest, largest = predictor([RESNET.smallest, RESNET.largest])
    assert 0.7 < smallest < largest < 0.85
    with np.load(MIT / "acc_predictor_resnet50.npz", allow_pickle=False) as file:
        arrays = dict(file)
    archs = [a for a in RESNET.decode(RESNET.sample(np.random.default_rng(3), 400)) if RESNET.resolution(a) in (160, 192, 224)]
    expected = perceptron(arrays, np.stack([resnet_features(arch) for arch in archs]))
    np.testing.assert_allclose(predictor(archs), expected, rtol=0, atol=5e-7)


def test_mit_predictor_refuses_other_spaces_and_files(tmp_path):
    good = made_up(tmp_path / "good.npz", 128)
    with pytest.raises(OfaError, match="ofa_mbv3_w1_0: MIT's accuracy predictors are for ofa_mbv3_w1_2 and ofa_resnet50d"):
        load_mit_predictor(tmp_path / "good.npz", get_space("ofa_mbv3_w1_0"))
    data = (tmp_path / "good.npz").read_bytes()
    wrong = {
        "resnet's": (RESNET, data),
        "cut": (W12, data[: len(data) // 2]),
        "empty": (W12, b""),
        "text": (W12, b"w0,b0\n1,2\n"),
        "flipped": (W12, data[:200] + bytes([data[200] ^ 0xFF]) + data[201:]),
    }
    for name, change in {
        "missing": {"b1": None},
        "extra": {"w4": np.ones((1, 1), "f")},
        "shape": {"w1": good["w1"][:, :5]},
        "nan": {"b2": np.full_like(good["b2"], np.nan)},
        "integers": {"b0": np.ones(8, int)},
        "objects": {"b0": np.array([{}], object)},
        "axes": {"b0": np.ones((1, 1, 8), "f")},
    }.items():
        np.savez(tmp_path / "made.npz", **{n: a for n, a in (good | change).items() if a is not None})
        wrong[name] = W12, (tmp_path / "made.npz").read_bytes()
    for name, (space, content) in wrong.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(ArtefactError) as caught:
            load_mit_predictor(path, space)
        assert "\n" not in str(caught.value), name
        assert str(path) in str(caught.value)
    with pytest.raises(ArtefactError, match="no such file"):
        load_mit_predictor(tmp_path / "none.npz", W12)
