"""Accuracy without measuring: tables, zero-cost proxies, and the words that a command line has for every source."""

import itertools
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from latency.cost import CostModel
from ofa.artefacts import ArtefactError
from ofa.errors import OfaError
from ofa.space import Dimension
from ofa.spaces import get_space
from search.accuracy import AccuracyModel, PopulationAccuracy
from search.callable_accuracy import CallableAccuracy
from search.choice_space import ChoiceSpace
from search.engine import Engine
from search.journal import Journal
from search.proxies import PROXIES, ProxyAccuracy, naswot, synflow
from search.sources import open_accuracy
from search.tabular import TableRows, TabularAccuracy, TabularCost, read_accuracy_csv

ROOT = Path(__file__).parents[2]
TINY = get_space("mbv3_tiny_image")
SMALL = ChoiceSpace(
    "small",
    (
        Dimension("depth", (1, 2)),
        Dimension("width", (0.5, 1.0, 2.0)),
        Dimension("second.op", ("conv", "pool", "skip"), ("depth", 1)),
    ),
)
MIT = Path(__file__).parents[3] / "shared" / "data" / "mit_ofa" / "acc_predictor_mbv3_w1.2.npz"


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [SMALL, TINY], ids=["dense", "hashed"])
@given(data=st.data())
def test_a_table_finds_what_a_dictionary_finds(space, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    population = space.distinct(space.sample(rng, data.draw(st.integers(0, 40))))
    values = rng.random(len(population))
    oracle = dict(zip(map(tuple, population.tolist()), values, strict=True))
    rows = TableRows(space, population)
    assert rows.dense == (space is SMALL)
    asked = np.stack([rng.integers(0, space.num_options) for _ in range(30)]).astype(np.int16)  # not canonical
    asked = np.concatenate([asked, population])
    expected = [oracle.get(tuple(row), math.nan) for row in space.canonical(asked).tolist()]
    np.testing.assert_array_equal(TabularAccuracy(rows, values).predict(asked), expected)
    np.testing.assert_array_equal(TabularCost("macs", rows, values).predict(asked), expected)


def test_a_table_holds_a_network_once():
    population = np.array([[0, 1, 0], [0, 1, 2]], dtype=np.int16)  # the second block does not stand: the same network
    with pytest.raises(OfaError, match="holds the same network twice"):
        TableRows(SMALL, population)


def test_a_hundred_thousand_networks_are_looked_up_in_a_moment():
    population = TINY.distinct(TINY.sample(np.random.default_rng(0), 100_000))
    model = TabularAccuracy(TableRows(TINY, population), np.linspace(0, 1, len(population)))
    model.predict(population[:1])
    began = time.process_time()
    np.testing.assert_array_equal(model.predict(population), np.linspace(0, 1, len(population)))
    assert time.process_time() - began < 1.0
    assert isinstance(model, AccuracyModel)
    assert isinstance(model, PopulationAccuracy)
    arch = TINY.decode(population[7:8])
    assert model(arch).tolist() == [np.linspace(0, 1, len(population))[7]]


HEADER = "depth,width,second.op,top1,latency_ms@pi4,macs\n"


def write(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def test_a_csv_table_is_read(tmp_path, capsys):
    text = (
        "\ufeffwidth, depth ,second.op,note,top1_percent,latency_ms@pi4,energy_mj@pi4,macs,params\n"
        "1,2,conv,best,91.5,3.5,1e1,5e6,1000\n\n"
        '0.50,1,"",no second block,12,,,,\n'
        "5e-1,1.0,pool,the same again,12,,,,\n"
    )
    table = read_accuracy_csv(write(tmp_path, text), SMALL)
    archs = [SMALL.arch(depth=2, width=1.0, second__op="conv"), SMALL.arch(depth=1, width=0.5), SMALL.largest]
    np.testing.assert_allclose(table(archs), [0.915, 0.12, math.nan])
    assert table.costs.keys() == {"latency@pi4", "energy@pi4", "macs", "params"}
    latency: CostModel = table.costs["latency@pi4"]
    assert latency.quantity == "latency"
    assert latency(archs[0]) == 3.5
    np.testing.assert_array_equal(table.costs["macs"].predict(SMALL.encode(archs)), [5e6, math.nan, math.nan])
    assert "not used: note" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("depth,width,top1\n1,1,0.5\n", "no column 'second.op' (1 missing)"),
        ("depth,width,second.op\n1,1,conv\n", "expected one column top1 or top1_percent"),
        ("depth,width,second.op,top1,top1_percent\n", "expected one column top1 or top1_percent"),
        ("depth,depth,width,second.op,top1\n", "column 'depth' stands twice"),
        (HEADER + "1,1,conv,0.5\n", "line 2 has 4 cells, expected 6"),
        (HEADER + "1,1,conv,0.5,1,1\n\n3,1,conv,0.5,1,1\n", "line 4, depth = '3': expected one of: 1, 2"),
        (HEADER + "2,1,sepconv,0.5,1,1\n", "line 2, second.op = 'sepconv': expected one of: conv, pool, skip"),
        (HEADER + "2,,conv,0.5,1,1\n", "line 2, width = '': expected one of: 0.5, 1.0, 2.0"),
        (HEADER + "2,nan,conv,0.5,1,1\n", "line 2, width = 'nan'"),
        (HEADER + "1,1,conv,97.3,1,1\n", "line 2, top1 = '97.3': expected a number from 0 to 1"),
        (HEADER.replace("top1", "top1_percent") + "1,1,conv,101,1,1\n", "top1_percent = '101': expected a number from 0 to 100"),
        (HEADER + "1,1,conv,,1,1\n", "line 2, top1 = ''"),
        (HEADER + "1,1,conv,nan,1,1\n", "line 2, top1 = 'nan'"),
        (HEADER + "1,1,conv,0.5,-1,1\n", "line 2, latency_ms@pi4 = '-1': expected a number above 0"),
        (HEADER + "1,1,conv,0.5,nan,1\n", "line 2, latency_ms@pi4 = 'nan'"),
        (HEADER + "1,1,conv,0.5,1,many\n", "line 2, macs = 'many'"),
        (HEADER + "1,1,conv,0.5,1,1\n1,1,skip,0.6,1,1\n", "line 3, top1 = 0.6: line 2 says 0.5 of the same network"),
        (HEADER + "1,1,conv,0.5,1,1\n1,1,skip,0.5,,1\n", "line 3, latency_ms@pi4 = nan: line 2 says 1 of the same network"),
        (HEADER + '1,1,"conv,0.5,1,1\n', "not CSV"),
        (HEADER + "1,1,\x00,0.5,1,1\n2,\x00,conv,0.5,1,1\n", "line 3, width"),
    ],
)
def test_a_malformed_table_is_one_error_that_names_the_place(tmp_path, text, message):
    with pytest.raises(ArtefactError) as caught:
        read_accuracy_csv(write(tmp_path, text), SMALL)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "table.csv"))
    assert "\n" not in str(caught.value)


@given(garbage=st.binary(max_size=300))
def test_garbage_is_refused_in_one_line(tmp_path_factory, garbage):
    path = tmp_path_factory.mktemp("garbage") / "table.csv"
    path.write_bytes(garbage)
    with pytest.raises(ArtefactError):
        read_accuracy_csv(path, SMALL)


# -- proxies -----------------------------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """Two images, two units each before every activation, written down by hand."""

    def __init__(self, kind):
        super().__init__()
        self.linear = nn.Linear(2, 3, bias=False)
        self.linear.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        self.act = kind()

    def forward(self, x):
        return self.act(self.linear(x.flatten(1)))


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU])
def test_naswot_is_the_determinant_computed_by_hand(kind):
    images = torch.tensor([[1.0, -2.0], [3.0, 1.0], [-1.0, 2.0]]).reshape(3, 2, 1, 1)
    # inputs (1, -2, -1), (3, 1, 4), (-1, 2, 1): codes 100, 111, 011; equal places: 1-2 one, 1-3 none, 2-3 two
    kernel = np.array([[3, 1, 0], [1, 3, 2], [0, 2, 3]])
    by_hand = 3 * (3 * 3 - 2 * 2) - 1 * (1 * 3 - 2 * 0)
    assert np.linalg.det(kernel) == pytest.approx(by_hand)
    assert naswot(Shifted(kind), images) == pytest.approx(math.log(by_hand))


def test_naswot_of_images_that_look_alike_is_nan():
    assert math.isnan(naswot(Shifted(nn.ReLU), torch.ones(2, 2, 1, 1)))


def test_synflow_is_the_sum_over_paths_computed_by_hand():
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.Hardswish(), nn.Linear(2, 1, bias=False))
    net[1].weight.data = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    net[3].weight.data = torch.tensor([[-5.0, 6.0]])
    # paths |w1 w2|: 1*5 + 2*5 + 3*6 + 4*6 = 57; each passes one weight of either layer, so that both layers sum to 57
    paths = sum(abs(w1 * w2) for row, w2 in (((1, -2), -5), ((3, 4), 6)) for w1 in row)
    assert paths == 57
    assert synflow(net, torch.zeros(3, 2, 1, 1)) == pytest.approx(math.log(2 * paths))


def test_synflow_leaves_batchnorm_out():
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU())
    net[0].weight.data.fill_(-3.0)
    net[1].running_var.fill_(100.0)
    assert synflow(net, torch.zeros(1, 1, 2, 2)) == pytest.approx(math.log(12.0))  # four pixels


@pytest.mark.parametrize("name", PROXIES)
def test_proxies_are_the_same_for_a_seed_and_leave_the_generator_alone(name):
    archs = TINY.decode(TINY.sample(np.random.default_rng(0), 6))
    before = torch.get_rng_state()
    first = ProxyAccuracy(name, TINY)(archs)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    np.testing.assert_array_equal(first, ProxyAccuracy(name, TINY)(archs))
    np.testing.assert_array_equal(first[::-1], ProxyAccuracy(name, TINY)(archs[::-1]))
    assert np.isfinite(first).all()
    assert len(set(first)) == 6
    assert (first != ProxyAccuracy(name, TINY, seed=1)(archs)).all()


@pytest.mark.parametrize("name", PROXIES)
def test_proxies_find_large_networks_more_expressive_than_small_ones(name):
    small, large = ProxyAccuracy(name, TINY)([TINY.smallest, TINY.largest])
    assert small < large


def test_proxies_see_every_block_of_a_network():
    """Branches that training starts as nothing count as well."""
    archs = [TINY.arch(stage1__block1__kernel_size=kernel) for kernel in (3, 7)]
    for name, images in itertools.product(PROXIES, (None, torch.rand(8, 3, 32, 32))):
        first, second = ProxyAccuracy(name, TINY, images)(archs)
        assert first != second


@pytest.mark.parametrize("images", [torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.zeros(8, 1, 8, 8), torch.zeros(1, 3, 8, 8)])
def test_what_are_no_images_is_refused(images):
    with pytest.raises(OfaError, match=r"expected two or more as float of shape \(n, 3, r, r\)"):
        ProxyAccuracy("naswot", TINY, images)


@pytest.mark.parametrize("engine", [None, "joblib:1"])
@pytest.mark.parametrize("name", PROXIES)
def test_scores_are_computed_once_and_kept(name, engine, tmp_path, monkeypatch):
    path, images = tmp_path / "trials.jsonl", torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    archs = TINY.decode(TINY.distinct(TINY.sample(np.random.default_rng(0), 4)))
    model = ProxyAccuracy(name, TINY, images, journal=path, engine=engine)
    first = model(archs)
    model.engine.close()
    np.testing.assert_allclose(first, ProxyAccuracy(name, TINY, images)(archs), rtol=1e-6)  # workers have one thread
    assert not Journal(path).trials
    assert len(Journal(path, field="score").trials) == 4

    others = [ProxyAccuracy(name, TINY, images, journal=path, seed=1)]
    if name == "naswot":
        others += [ProxyAccuracy(name, TINY, shown, journal=path) for shown in (None, images + 1, images[:, :, :24])]
    others += [ProxyAccuracy(other, TINY, images, journal=path) for other in PROXIES if other != name]
    assert not any(other.all_known() for other in others)
    monkeypatch.setitem(PROXIES, name, lambda net, images: pytest.fail("computed again"))
    np.testing.assert_array_equal(ProxyAccuracy(name, TINY, images, journal=path)(archs), first)


def test_a_score_that_cannot_be_told_is_nan(monkeypatch):
    monkeypatch.setitem(PROXIES, "naswot", lambda net, images: math.inf)
    assert np.isnan(ProxyAccuracy("naswot", TINY)([TINY.smallest])).all()


# -- words -------------------------------------------------------------------------------------------------------------

MODULE = """
from pathlib import Path

def accuracy(arch):
    return 0.25

accuracy.version = "7"
number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    return tmp_path


@pytest.mark.parametrize("engine", [None, "joblib:1"])
def test_a_function_is_imported_from_the_current_directory(here, engine):
    (here / f"own_{engine is None}.py").write_text(MODULE)
    model = open_accuracy(f"own_{engine is None}:accuracy", TINY, engine=engine, journal=here / "trials.jsonl")
    assert isinstance(model, CallableAccuracy)
    assert model.version == "7"
    assert model([TINY.largest]).tolist() == [0.25]  # a worker finds the module too
    model.engine.close()
    assert (here / "trials.jsonl").exists()


def test_an_edited_function_is_asked_again(here):
    """The command is the same, the file is not."""
    found = []
    for top1 in (0.9, 0.9, 0.3):
        (here / "edited.py").write_text(f"def accuracy(arch):\n    open('asked', 'a').write('x')\n    return {top1}\n")
        code = "from search.sources import open_accuracy; from ofa.spaces import get_space; from pathlib import Path\n"
        code += "space = get_space('mbv3_tiny_image')\n"
        code += "print(open_accuracy('edited:accuracy', space, journal=Path('trials.jsonl'))([space.smallest])[0])"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([sys.executable, "-c", code], cwd=here, env=environment, capture_output=True, text=True, check=True)
        found.append(float(done.stdout))
    assert found == [0.9, 0.9, 0.3]
    assert (here / "asked").read_text() == "xx"


def test_a_table_and_a_proxy_are_opened_by_name(here):
    (here / "table.csv").write_text(HEADER + "1,1,conv,0.5,1,1\n")
    assert open_accuracy("table.csv", SMALL)([SMALL.arch(depth=1, width=1.0)]).tolist() == [0.5]
    with Engine("joblib:1") as engine:
        model = open_accuracy("proxy:synflow", TINY, journal=here / "trials.jsonl", engine=engine)
        assert np.isfinite(model([TINY.largest])).all()
        assert model.engine is engine
    assert len(Journal(here / "trials.jsonl", field="score").trials) == 1


@pytest.mark.skipif(not MIT.exists(), reason="../shared/data is not here: MIT's trained predictor")
def test_mits_predictor_is_opened_by_name():
    space = get_space("ofa_mbv3_w1_2")
    model = open_accuracy(str(MIT), space)
    assert isinstance(model, PopulationAccuracy)
    small, large = model([space.arch(resolution=160), space.largest])
    assert 0.5 < small < large < 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected supernet, FILE.csv"),
        ("supernett", "expected supernet, FILE.csv"),
        ("supernet", "has no weights"),
        ("proxy:grasp", "unknown proxy 'grasp'"),
        ("nowhere.csv", "nowhere.csv: no such file"),
        ("nowhere:accuracy", "no module 'nowhere' in"),
        ("own.nowhere:accuracy", "no module 'own' in"),
        ("broken:accuracy", "broken cannot be imported (SyntaxError"),
        ("needy:accuracy", "needy needs the module 'not_installed_at_all'"),
        ("fine:missing", "fine has no function 'missing'"),
        ("fine:number", "fine has no function 'number'"),
        ("fine:accuracy()", "expected supernet, FILE.csv"),
    ],
)
def test_a_misspelt_source_is_one_line_with_the_forms(here, text, message):
    (here / "broken.py").write_text("def accuracy(arch:\n")
    (here / "needy.py").write_text("import not_installed_at_all\n")
    (here / "fine.py").write_text(MODULE)
    with pytest.raises(OfaError) as caught:
        open_accuracy(text, TINY)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
