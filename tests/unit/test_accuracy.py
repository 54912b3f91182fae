"""Where accuracy comes from: the journal, the supernet through every engine, and functions that misbehave."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ofa.errors import OfaError
from ofa.spaces import get_space
from ofa.training.config import TrainConfig
from ofa.training.loop import train_supernet
from search.accuracy import AccuracyModel, PopulationAccuracy, SupernetAccuracy
from search.callable_accuracy import CallableAccuracy, accuracy_of_function
from search.engine import Engine
from search.fingerprint import fingerprint
from search.journal import Journal

ROOT = Path(__file__).parents[2]
SPACE = get_space("mbv3_tiny_image")


def draw(n, seed=0):
    return list(dict.fromkeys(SPACE.decode(SPACE.sample(np.random.default_rng(seed), 4 * n))))[:n]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "search" / "trials.jsonl"


# -- journal -----------------------------------------------------------------------------------------------------------


def test_a_journal_cut_in_mid_line_counts_before_and_after(path):
    journal = Journal(path)
    for key in "abc":
        journal.add(key, (1, "x", 0.5), 0.25)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        resumed = Journal(path)
        before = len(resumed.trials)
        assert before == sum(cut >= end - 1 for end in (len(whole) // 3 * n for n in (1, 2, 3)))
        resumed.add("d", (2,), 0.75)
        again = Journal(path)
        assert list(again.trials) == [*["a", "b", "c"][:before], "d"]
        assert again.trials["d"] == ((2,), 0.75)


def test_what_is_no_trial_is_passed_over(path):
    good = {"key": "good", "values": [3, 0.5], "top1": 0.5}
    lines = [
        b"\x00\xff garbage",
        b"",
        b"[]",
        b"1e999",
        b"[" * 5000,
        b'{"key": 3, "top1": 0.5}',
        b'{"key": "percent", "top1": 97.3}',
        b'{"key": "negative", "top1": -0.1}',
        b'{"key": "nan", "top1": NaN}',
        b'{"key": "infinite", "top1": Infinity}',
        b'{"key": "huge", "top1": 1' + b"0" * 400 + b"}",
        b'{"key": "text", "top1": "0.5"}',
        b'{"key": "true", "top1": true}',
        b'{"key": "none"}',
        json.dumps(good).encode(),
        b'{"key": "no values", "top1": 1}',
        b'{"key": "nested", "values": [[1], {}], "top1": 0}',
    ]
    path.parent.mkdir()
    path.write_bytes(b"\n".join(lines))
    trials = Journal(path).trials
    assert trials == {"good": ((3, 0.5), 0.5), "no values": (None, 1.0), "nested": (None, 0.0)}


def test_two_journals_of_one_file_learn_from_each_other(path):
    first, second = Journal(path), Journal(path)
    first.add("a", (1,), 0.5)
    second.add("b", (2,), 0.25)
    first.refresh()
    second.refresh()
    assert first.trials.keys() == second.trials.keys() == {"a", "b"}
    path.write_text('{"key": "c", "values": [3], "top1": 1}\n')  # it was replaced by another file
    first.refresh()
    assert first.trials["c"] == ((3,), 1.0)


def test_a_line_that_is_just_being_written_is_read_when_it_is_whole(path):
    path.parent.mkdir()
    path.write_text('{"key": "a", "top1": 1}\n{"key": "b", "to')
    journal = Journal(path)
    with path.open("a") as file:
        file.write('p1": 0.5}\n')
    journal.refresh()
    assert list(journal.trials) == ["a", "b"]


def test_the_lock_is_had_by_one_at_a_time_and_may_be_nested(path, capsys):
    journal, other = Journal(path), Journal(path)
    entered = []

    def wait():
        with other.locked():
            entered.append(list(other.trials))

    with journal.locked(), journal.locked():
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.2)
        assert not entered
        journal.add("a", (1,), 0.5)
    thread.join(5)
    assert entered == [["a"]]  # what the first found is known when it is the second's turn
    assert f"another search writes to {path}; waiting for it" in capsys.readouterr().err


def test_a_killed_process_leaves_no_lock(path):
    code = f"from pathlib import Path; from search.journal import Journal; import time\nwith Journal(Path({str(path)!r})).locked(): print('has it', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "has it\n"
    process.kill()
    process.wait(10)
    began = time.monotonic()
    with Journal(path).locked():
        assert time.monotonic() - began < 5


def test_a_journal_that_cannot_be_written_still_serves(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "trials.jsonl")  # not even root can write there
    with journal.locked():
        journal.add("a", (1,), 0.5)
        journal.add("b", (1,), 0.5)
    assert journal.trials.keys() == {"a", "b"}
    assert capsys.readouterr().err.count("cannot be written") == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_journal_in_a_directory_of_somebody_else_is_read(tmp_path):
    path = tmp_path / "trials.jsonl"
    Journal(path).add("a", (1,), 0.5)
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    code = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); from search.journal import Journal, say\n"
        "import fcntl; say('the library of this Python may not be readable for somebody else')\n"
        "path = Path(sys.argv[1]); os.chdir(path.parent); os.setuid(65534); path = Path(path.name); journal = Journal(path)\n"
        "with journal.locked(): journal.add('b', (2,), 0.25)\n"
        "print(sorted(journal.trials), sorted(os.listdir('.')))"
    )
    found = subprocess.run([sys.executable, "-c", code, path, ROOT], capture_output=True, text=True, timeout=60)
    assert found.stdout == "['a', 'b'] ['trials.jsonl']\n", found.stderr
    assert "cannot be written" in found.stderr


# -- a supernet --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with weights and nothing else."""
    out = tmp_path_factory.mktemp("run") / "digits"
    return train_supernet("mbv3_tiny_image", "digits", out, config=TrainConfig(epochs=1, batch_size=64))


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers have: BatchNorm's sums, split over threads, would differ in their last bits
    yield
    torch.set_num_threads(before)


def test_workers_measure_what_this_process_measures(run, tmp_path, one_thread):
    archs = draw(10)
    told = {}
    here = SupernetAccuracy(run, tmp_path / "here.jsonl", on_result=told.__setitem__)
    expected = here(archs)
    with Engine("joblib:2") as engine:
        there = SupernetAccuracy(run, tmp_path / "there.jsonl", engine=engine)
        found = there(archs)
    assert [value.hex() for value in found.tolist()] == [value.hex() for value in expected.tolist()]
    assert told == dict(zip(archs, expected.tolist(), strict=True))
    lines = [sorted((tmp_path / name).read_text().splitlines()) for name in ("here.jsonl", "there.jsonl")]
    assert lines[0] == lines[1]
    assert set(here.all_known()) == set(archs)


def test_the_key_of_a_trial_stays_what_it_was(run, tmp_path):
    import hashlib
    from dataclasses import asdict

    arch = SPACE.smallest
    data = {name: value for name, value in asdict(run.data).items() if name != "source"}
    protocol = {"calibration_images": 1000, "precision": "fp32", "validation_images": 5000}
    context = json.dumps(["mbv3_tiny_image", run.weights_sha256, data, protocol], sort_keys=True)
    key = hashlib.sha256(f"{context}|{arch.values!r}".encode()).hexdigest()[:32]
    path = tmp_path / "trials.jsonl"
    path.write_text(json.dumps({"key": key, "values": list(arch.values), "top1": 0.123}) + "\n")
    model = SupernetAccuracy(run, path)
    assert model([arch]).tolist() == [0.123]
    assert model.all_known() == [arch]
    assert isinstance(model, AccuracyModel)
    assert not isinstance(model, PopulationAccuracy)


@pytest.mark.parametrize("engine", [None, "joblib:1"])
def test_weights_that_change_while_they_are_measured_are_noticed(run, tmp_path, engine):
    model = SupernetAccuracy(run, tmp_path / "trials.jsonl", engine=engine)
    model._weights_sha256 = "0" * 64  # as if another checkpoint had been the newest a moment ago
    with pytest.raises(OfaError, match="was trained further while its subnets were measured"):
        model([SPACE.smallest])
    model.engine.close()
    assert not (tmp_path / "trials.jsonl").exists()


def test_another_weights_trials_are_not_believed(run, tmp_path):
    path = tmp_path / "trials.jsonl"
    archs = draw(3)
    records = [{"key": f"{i:032x}", "values": list(arch.values), "top1": 0.5} for i, arch in enumerate(archs)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    model = SupernetAccuracy(run, path)
    assert model.all_known() == []


def test_ten_thousand_trials_are_read_in_less_than_a_second(run, tmp_path):
    path = tmp_path / "trials.jsonl"
    model = SupernetAccuracy(run, path)
    archs = draw(10_000)
    keys = model._keys(archs)
    with path.open("w") as file:
        for key, arch in zip(keys, archs, strict=True):
            file.write(json.dumps({"key": key, "values": list(arch.values), "top1": 0.5}) + "\n")
    began = time.process_time()
    model = SupernetAccuracy(run, path)
    assert model.all_known() == archs
    assert time.process_time() - began < 1.0
    assert model(archs[:100]).tolist() == [0.5] * 100


SEARCH = """
import sys, time
from pathlib import Path
import numpy as np
from ofa.spaces import get_space
from ofa.training.config import TrainConfig
from ofa.training.loop import train_supernet
from search.callable_accuracy import CallableAccuracy

space = get_space("mbv3_tiny_image")
folder = Path(sys.argv[1])

def measure(arch):
    with (folder / "measured").open("a") as file:
        file.write(f"{arch.values!r}\\n")
    time.sleep(0.15)
    return 0.5

model = CallableAccuracy(measure, space, folder / "trials.jsonl", name="sleep")
print("ready", flush=True)
sys.stdin.readline()
assert (model(space.decode(space.sample(np.random.default_rng(0), 8))) == 0.5).all()
"""


def test_of_two_searches_at_once_one_waits_and_nothing_is_measured_twice(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen([sys.executable, "-c", SEARCH, tmp_path], env=environment, text=True, **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert "".join(errors).count(f"another search writes to {tmp_path / 'trials.jsonl'}; waiting for it") == 1
    measured = (tmp_path / "measured").read_text().splitlines()
    assert len(measured) == len(set(measured)) == 8


# -- functions ---------------------------------------------------------------------------------------------------------


def test_a_function_is_asked_once_for_each_network(path):
    asked = []

    def measure(arch):
        asked.append(arch)
        return np.float32(0.25)

    archs = draw(4)
    told = []
    model = CallableAccuracy(measure, SPACE, path, on_result=lambda arch, top1: told.append((arch, top1)))
    assert model([*archs, *archs]).tolist() == [0.25] * 8
    assert asked == archs
    assert told == [(arch, 0.25) for arch in archs]
    assert CallableAccuracy(measure, SPACE, path)(archs).tolist() == [0.25] * 4
    assert len(asked) == 4
    assert not CallableAccuracy(measure, SPACE, path, version="2").all_known()
    assert not CallableAccuracy(measure, SPACE, path, name="other").all_known()


def written(tmp_path, text):
    """Return the function `accuracy` of a module with that text, which replaces the one before, as an editor does."""
    (tmp_path / "module.py").write_text(text)
    spec = importlib.util.spec_from_file_location("module", tmp_path / "module.py")
    module = importlib.util.module_from_spec(spec)
    exec(compile(text, str(tmp_path / "module.py"), "exec"), vars(module))  # no bytecode is cached
    return module.accuracy


EDITS = [
    ("def accuracy(arch):\n    return 0.9\n", "def accuracy(arch):\n    return 0.3\n"),
    ("def accuracy(arch, top1=0.9):\n    return top1\n", "def accuracy(arch, top1=0.3):\n    return top1\n"),
    (
        "def accuracy(arch):\n    def inner():\n        return 0.9\n    return inner()\n",
        "def accuracy(arch):\n    def inner():\n        return 0.3\n    return inner()\n",
    ),
    (
        "import functools\n@functools.lru_cache\ndef accuracy(arch):\n    return 0.9\n",
        "import functools\n@functools.lru_cache\ndef accuracy(arch):\n    return 0.3\n",
    ),
    (
        "class Own:\n    def __call__(self, arch):\n        return self.help()\n    def help(self):\n        return 0.9\naccuracy = Own()\n",
        "class Own:\n    def __call__(self, arch):\n        return self.help()\n    def help(self):\n        return 0.3\naccuracy = Own()\n",
    ),
    (
        "class Own:\n    def train(self, arch):\n        return 0.9\naccuracy = Own().train\n",
        "class Own:\n    def train(self, arch):\n        return 0.3\naccuracy = Own().train\n",
    ),
    (
        "class Own:\n    def __init__(self, top1): self.top1 = top1\n    def __call__(self, arch): return self.top1\naccuracy = Own(0.9)\n",
        "class Own:\n    def __init__(self, top1): self.top1 = top1\n    def __call__(self, arch): return self.top1\naccuracy = Own(0.3)\n",
    ),
    (
        "from functools import partial\ndef train(arch, top1): return top1['is']\naccuracy = partial(train, top1={'is': 0.9})\n",
        "from functools import partial\ndef train(arch, top1): return top1['is']\naccuracy = partial(train, top1={'is': 0.3})\n",
    ),
    (
        "def make(top1):\n    def accuracy(arch): return top1\n    return accuracy\naccuracy = make(0.9)\n",
        "def make(top1):\n    def accuracy(arch): return top1\n    return accuracy\naccuracy = make(0.3)\n",
    ),
    (
        "class Own:\n    def __init__(self, top1): self.top1, self.same = top1, self.run\n    def run(self, arch): return self.top1\n"
        "accuracy = Own(0.9).run\n",
        "class Own:\n    def __init__(self, top1): self.top1, self.same = top1, self.run\n    def run(self, arch): return self.top1\n"
        "accuracy = Own(0.3).run\n",
    ),
]
KINDS = ["constant", "default", "nested", "cached", "object", "method", "state", "partial", "closure", "method's state"]


@pytest.mark.parametrize("has_source", [True, False])
@pytest.mark.parametrize("edit", EDITS, ids=KINDS)
def test_results_of_an_edited_function_are_not_believed(path, tmp_path, edit, has_source, monkeypatch):
    if not has_source:  # as in an interactive session
        monkeypatch.setattr("inspect.getsource", lambda thing: (_ for _ in ()).throw(OSError("no source")))
    found = []
    for text in (edit[0], edit[0], *edit):
        model = CallableAccuracy(written(tmp_path, text), SPACE, path, name="mine")
        found.append((len(model.all_known()), *model([SPACE.smallest])))
    assert found == [(0, 0.9), (1, 0.9), (1, 0.9), (0, 0.3)]


def test_a_librarys_text_is_not_read(monkeypatch):
    """Another release of torch is no reason to measure again; what its decorator holds is the user's."""
    read = []
    monkeypatch.setattr("search.fingerprint._text", lambda code: read.append((code.co_name, code.co_filename)) or "text")

    class Own(torch.nn.Identity):
        @torch.no_grad()
        def forward(self, arch):
            return 0.5

    fingerprint(Own())
    fingerprint(torch.no_grad()(returns))
    assert [name for name, _ in read] == ["forward", "returns"]
    assert {file for _, file in read} == {__file__}


def test_two_functions_of_one_line_are_told_apart(path):
    first, second = lambda arch: 0.9, lambda arch: 0.3
    assert [CallableAccuracy(f, SPACE, path, name="mine")([SPACE.smallest])[0] for f in (first, second)] == [0.9, 0.3]


FINGERPRINT = """
from search.fingerprint import fingerprint
def accuracy(arch, names=frozenset(("a", "b", "c", "d"))):
    return 0.5 if arch in {"e", "f", "g", "h"} else 0.25
print(fingerprint(accuracy))
"""


def test_the_fingerprint_is_the_same_in_another_process(tmp_path):
    """Sets are printed in an order that depends on the process."""
    found = set()
    for seed in "123":
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        found.add(subprocess.run([sys.executable, "-c", FINGERPRINT], env=environment, capture_output=True, text=True).stdout)
    (only,) = found
    assert len(only.strip()) == 16


def test_what_a_function_writes_down_of_its_calls_makes_no_other_function_of_it(path):
    asked = []

    def measure(arch):
        asked.append(arch)
        return 0.5

    for _ in range(2):
        CallableAccuracy(measure, SPACE, path)([SPACE.smallest])
    assert len(asked) == 1


def test_version_and_scale_of_a_function_are_read_wherever_it_comes_from(path):
    def measure(arch, top1):
        return top1

    measure.version, measure.scale = 7, "any"
    model = accuracy_of_function(measure, SPACE, path, timeout_s=3)
    assert (model.version, model.scale, model.timeout_s) == ("7", "any", 3)
    assert model.name.endswith("measure")
    model = accuracy_of_function(partial(measure, top1=97.3), SPACE, path, name="mine")
    assert (model.version, model.name, model([SPACE.smallest]).tolist()) == ("7", "mine", [97.3])
    assert accuracy_of_function(returns(0.5), SPACE, None, name="f")([SPACE.smallest]).tolist() == [0.5]


def fails(how, marks=None):
    def measure(arch):
        if marks is not None:
            with (marks / "asked").open("a") as file:
                file.write("x")
        return how(arch)

    return measure


def returns(value):
    return lambda arch: value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "it returned nan, expected top-1 in [0, 1]"),
        (None, "it returned None"),
        ("0.5", "it returned '0.5'"),
        (97.3, 'it returned 97.3, expected top-1 in [0, 1]; divide percentages by 100; scores of another scale take scale="any"'),
        (-0.1, "it returned -0.1"),
        (True, "it returned True"),
        (math.inf, "it returned inf"),
        ([0.5], "it returned [0.5]"),
        (10**400, "it returned 1000"),
    ],
)
def test_what_is_no_accuracy_is_written_down_and_nan(path, tmp_path, capsys, value, reason):
    arch = SPACE.smallest
    model = CallableAccuracy(fails(returns(value), tmp_path), SPACE, path, name="mine")
    assert np.isnan(model([arch])).all()
    assert np.isnan(model([arch])).all()
    assert (tmp_path / "asked").read_text() == "xx"  # asked once more, and not again by this search
    (record,) = map(json.loads, path.read_text().splitlines())
    assert reason in record["failed"]
    assert reason in (error := capsys.readouterr().err)
    assert error.startswith("warning: mine gave no accuracy for resolution=")
    assert error.count("\n") == 1


def test_one_that_raises_is_asked_again_and_another_search_asks_anew(path, capsys):
    broken = [True]

    def explode(arch):
        if broken:
            raise ZeroDivisionError("by zero\nand more")
        return 0.5

    archs = draw(3)
    model = CallableAccuracy(explode, SPACE, path, name="f")
    assert np.isnan(model(archs[:2])).all()
    assert "ZeroDivisionError: by zero\n" in (error := capsys.readouterr().err)
    assert "asked again" not in error
    broken.clear()
    assert np.isnan(model(archs[:2])).all()  # not by this search
    assert CallableAccuracy(explode, SPACE, path, name="f")(archs).tolist() == [0.5] * 3
    assert "the accuracy of 2 networks could not be told last time; asked again" in capsys.readouterr().err
    assert not Journal(path).failed


def test_hanging_and_crashing_functions_cost_their_network_only(path):
    archs = draw(4)
    hanging, crashing = archs[1].values, archs[2].values

    def measure(arch):
        if arch.values == hanging:
            time.sleep(60)
        if arch.values == crashing:
            os._exit(5)
        return 0.5

    began = time.monotonic()
    model = CallableAccuracy(measure, SPACE, path, name="f", timeout_s=1.0)
    found = model(archs)
    model.engine.close()
    assert np.isnan(found).tolist() == [False, True, True, False]
    assert 2 <= time.monotonic() - began < 10
    assert sorted(Journal(path).failed.values()) == ["did not finish within 1 s", "its process died (EXIT(5))"]


@pytest.mark.parametrize("engine", [None, "joblib:1"])
def test_three_failures_in_a_row_stop_the_search(path, tmp_path, engine):
    def fail(arch):
        with (tmp_path / "asked").open("a") as file:
            file.write("x")
        raise KeyError("accuracy")

    model = CallableAccuracy(fail, SPACE, path, name="mine", engine=engine)
    with pytest.raises(OfaError, match="mine: failed for 3 architectures one after the other") as caught:
        model(draw(20))
    model.engine.close()
    assert "KeyError: 'accuracy'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(Journal(path).failed) == 3
    assert len((tmp_path / "asked").read_text()) <= 8  # and not forty


def test_failures_between_results_do_not_stop_the_search(path):
    archs = draw(12)
    good = {arch.values for arch in archs[::3]}
    found = CallableAccuracy(lambda arch: 0.5 if arch.values in good else None, SPACE, path, name="f")(archs)
    assert np.isfinite(found).tolist() == [True, False, False] * 4


def failing(archs, bad):
    """Return a function that raises for the architectures at `bad`, and the list of its calls."""
    asked, bad_values = [], frozenset(archs[i].values for i in bad)

    def measure(arch):
        asked.append(arch)
        if arch.values in bad_values:
            raise RuntimeError("diverged")
        return 0.5

    return measure, asked


def test_a_function_that_fails_for_a_third_does_not_end_a_search_of_a_hundred(path):
    archs = draw(100)
    for seed in range(20):
        bad = np.random.default_rng(seed).permutation(np.arange(1, 100))[:33]
        model = CallableAccuracy(failing(archs, bad)[0], SPACE, None, name="f")
        found = np.concatenate([model(archs[start : start + 7]) for start in range(0, 100, 7)])
        assert np.isnan(found).sum() == 33


def test_a_search_that_goes_on_may_begin_with_those_that_failed(path):
    """Those that did not fail are known, so that the first ones asked are those that fail for sure."""
    archs = draw(60)
    measure, _ = failing(archs, range(1, 60, 3))
    CallableAccuracy(measure, SPACE, path, name="f")(archs[:50])
    found = CallableAccuracy(measure, SPACE, path, name="f")(archs)
    assert np.isnan(found).sum() == 20


def test_most_of_the_last_twenty_failing_stops_the_search_across_calls(path):
    archs = draw(60)
    measure, asked = failing(archs, range(30, 60))
    model = CallableAccuracy(measure, SPACE, path, name="mine")
    assert np.isfinite(model(archs[:30])).all()
    assert np.isnan(model(archs[30:40])).all()
    with pytest.raises(
        OfaError, match="mine: failed for 14 of the last 20 architectures, the last time with: RuntimeError: diverged"
    ):
        model(archs[40:])
    assert len(set(asked)) == 44
    assert len(model.journal.trials) == 30


def test_three_failures_and_no_success_stop_the_search_across_calls(path):
    archs = draw(3)
    model = CallableAccuracy(failing(archs, range(3))[0], SPACE, path, name="mine")
    assert np.isnan(model(archs[:2])).all()
    with pytest.raises(OfaError, match="mine: failed for 3 architectures one after the other, the last time with: RuntimeError"):
        model(archs[2:])


def test_scores_of_any_scale_are_kept_apart_from_top1(path):
    archs = draw(2)
    assert CallableAccuracy(returns(97.3), SPACE, path, name="f", scale="any")(archs).tolist() == [97.3, 97.3]
    assert not Journal(path).trials
    assert len(Journal(path, field="score").trials) == 2
    assert np.isnan(CallableAccuracy(returns(math.inf), SPACE, None, name="f", scale="any")(archs)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "percent"}, "scale 'percent': expected one of top1, any"),
        ({"timeout_s": 0}, "timeout_s is 0, expected seconds above 0"),
        ({"timeout_s": math.nan}, "timeout_s is nan"),
        ({"engine": "threads"}, "engine 'threads': expected in-process"),
        ({"scale": "any", "journal": Journal(None)}, "opened as a journal of top1, expected one of score"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(OfaError) as caught:
        CallableAccuracy(lambda arch: 0.5, SPACE, **{"name": "f", **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
