"""What may go wrong around a search: malformed architectures, damaged results, cut journals, two at once, no right to write."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deploy.export import export_subnet
from latency.table import LatencyTable
from ofa.artefacts import parse_object, read_json
from ofa.counts import block_counts, block_macs
from ofa.errors import OfaError
from ofa.run_dir import Run
from ofa.space import ARCH_SCHEMA
from ofa.spaces import get_space
from search.constraints import Constraints
from search.journal import Journal
from search.past_searches import read_menus, read_searches
from search.predictor import AccuracyPredictor
from search.run import open_run, search_run, search_targets
from search.targets import sweep

ROOT = Path(__file__).parent.parent.parent
SPACE = get_space("mbv3_tiny_image")
QUICK = {"evals": 14, "rounds": 1, "predictor": "ridge"}


def capacity(arch):
    """An accuracy that grows with every choice, in [0, 1]."""
    options = [d.options for d in SPACE.dimensions]
    return float(np.mean([o.index(v) / (len(o) - 1) for o, v in zip(options, arch.values, strict=True)]))


def fails(process, code, *parts):
    """The process ended with `code` and exactly one line of error that holds `parts`."""
    assert process.returncode == code, process.stderr
    assert "Traceback" not in process.stderr
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, process.stderr
    for part in parts:
        assert part in errors[0]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run without a supernet; predictors judge few networks, since quality does not count here."""
    monkeypatch.setattr("search.modes.PROPOSAL", 1000)
    return open_run(tmp_path / "run", SPACE.name)


@pytest.fixture
def here(tmp_path):
    """A directory with accuracy functions for the command line: quick, and slow ones."""
    (tmp_path / "lab.py").write_text(
        "import time, pathlib\n"
        "def quick(arch):\n"
        "    with pathlib.Path('asked').open('a') as file: file.write(f'{arch.values}\\n')\n"
        "    return sum(v for v in arch.values) / 400\n"
        "def slow(arch):\n"
        "    time.sleep(0.1)\n"
        "    return quick(arch)\n"
    )
    return tmp_path


def trials(path):
    return [json.loads(line) for line in (path / "search" / "trials.jsonl").read_text().splitlines()]


# -- architectures -----------------------------------------------------------------------------------------------------


def malformed_texts(count):
    """Make files that are no architecture, or are one by chance: bytes, from seeds."""
    good = json.dumps(SPACE.to_json(SPACE.arch(resolution=12, stage1__depth=3)), indent=2).encode()
    record = json.loads(good)
    names = list(record["values"])
    rng = np.random.default_rng(0)
    odd = [
        None,
        True,
        False,
        -1,
        0,
        1e308,
        3.5,
        "3",
        "",
        [],
        {},
        [3],
        {"a": 3},
        2**63,
        10**400,
        "\ud800",
        "a\nb",
        "\x00",
        12.0,
        16.5,
    ]
    nested = [b'{"a":' * n + b"1" + b"}" * n for n in (100, 5000, 200_000, *range(800, 1000, 9))] + [
        b"[" * 200_000,
        b"[" * 900 + b"]" * 900,
    ]

    def with_value(name, text):
        return good.replace(f'"{name}": {json.dumps(record["values"][name])}'.encode(), f'"{name}": '.encode() + text)

    yield from nested
    for text in nested:
        yield with_value(names[0], text)
        yield good.replace(f'"{record["space"]}"'.encode(), text)
        yield good.replace(f'"{ARCH_SCHEMA}"'.encode(), text)
    for text in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000, b"9" * 4000, b"0x8", b"12 12", b"'12'", b"12,12"):
        yield with_value(names[0], text)
    yield from (b"", b"\xff\xfe", b"null", b"3", b'"arch"', b"[]", b"{}", b"\x00" * 100, b"{" + b'"a":1,' * 9999 + b'"a":1}')
    yield good.replace(b'"values"', b'"values": {}, "values"')
    for made in range(count):
        kind = made % 8
        changed = json.loads(good)
        name = names[int(rng.integers(len(names)))]
        value = odd[int(rng.integers(len(odd)))]
        if kind == 0:
            yield good[: int(rng.integers(1, len(good) - 2))]  # truncated before the last brace
        elif kind == 1:
            flipped = bytearray(good)
            for _ in range(int(rng.integers(1, 4))):
                flipped[int(rng.integers(len(good)))] ^= 1 << int(rng.integers(8))
            yield bytes(flipped)
        elif kind == 2:
            changed["values"][name] = value
            yield json.dumps(changed).encode()
        elif kind == 3:
            changed[("schema", "space", "values")[int(rng.integers(3))]] = value
            yield json.dumps(changed).encode()
        elif kind == 4:
            changed["values"][f"{name}_{made}"] = changed["values"].pop(name)
            yield json.dumps(changed).encode()
        elif kind == 5:
            changed["values"][f"stage9.block{made}\n"] = 3
            yield json.dumps(changed).encode()
        elif kind == 6:
            del changed["values"][name]
            yield json.dumps(changed).encode()
        else:
            yield bytes(rng.integers(0, 256, int(rng.integers(1, 200)), dtype=np.uint8))


def test_five_hundred_malformed_architectures_are_one_line_each_or_legal(tmp_path):
    """Through the reader that export, specialize and train use."""
    path = tmp_path / "arch.json"
    refused = accepted = 0
    for i, content in enumerate(malformed_texts(500)):
        path.write_bytes(content)
        try:
            arch = SPACE.from_json(read_json(path, schema=ARCH_SCHEMA))
        except OfaError as error:
            message = str(error)
            assert message, content[:200]
            assert "\n" not in message, (i, message[:300])
            message.encode()  # can be printed
            refused += 1
        else:  # a flipped bit may change one legal value into another, or 12 into 12.0
            assert SPACE.decode(SPACE.encode([arch])) == [arch]
            assert json.loads(content)["values"] == SPACE.to_json(arch)["values"]
            accepted += 1
    assert refused + accepted > 500
    assert accepted < 60


def test_a_malformed_architecture_is_refused_by_the_command_line_in_one_line(cli, trained, tmp_path):
    path = tmp_path / "arch.json"
    record = SPACE.to_json(SPACE.largest)
    path.write_text(json.dumps({**record, "values": {**record["values"], "stage1.depth\n": "\x1b[2J"}}))
    fails(cli("export", path, "--run", trained.path, "-o", tmp_path / "out"), 1, "stage1.depth")


# -- limits ------------------------------------------------------------------------------------------------------------


def test_limits_that_exclude_each_other_exit_with_3_and_the_nearest_values(cli, run):
    """On this device a block is the quicker the more it computes: few MACs and a low latency exclude each other."""
    times = 1e4 / (1e4 + block_counts(SPACE, block_macs)[:-1])
    entries = {spec: float(ms) for spec, ms in zip(SPACE.all_blocks, times, strict=True)}
    LatencyTable(SPACE, "odd", entries).save(run.latency_path("odd"))
    limits = ["macs <= 0.25M", "latency@odd <= 4ms"]
    alone = [Constraints.for_run(run, [limit]).require_feasible() for limit in limits]
    assert all(map(len, alone))
    process = cli("search", run.path, "--accuracy", "os:getpid", "--where", limits[0], "--where", limits[1])
    fails(process, 3, f"in {SPACE.name} meets all of macs <= 250K; latency@odd <= 4ms; nearest feasible: macs <= ")
    nearest = process.stderr.rpartition("nearest feasible: ")[2].strip().split(", ")
    assert len(Constraints.for_run(run, nearest).require_feasible())
    assert not (run.path / "search" / "trials.jsonl").exists()


def test_an_accuracy_that_nothing_reaches_exits_with_3(cli, run, here):
    process = cli(
        "search", run.path, "--accuracy", "lab:quick", "--where", "accuracy >= 0.99", "--evals", 14, "--rounds", 1,
        "--predictor", "ridge", cwd=here,
    )  # fmt: skip
    fails(process, 3, "none of 14 networks meets top1 >= 0.99; the nearest has top1 0.")
    assert len(trials(run.path)) == 14


def test_a_run_without_a_supernet_asks_for_an_accuracy(cli, tmp_path):
    process = cli("search", tmp_path / "new", "--space", SPACE.name, "--where", "macs <= 1M")
    fails(process, 1, "holds no supernet; say what tells accuracy instead: --accuracy, FILE.csv")


# -- the journal -------------------------------------------------------------------------------------------------------


def test_a_journal_cut_in_mid_line_costs_the_cut_trial_only(run):
    asked = []

    def measure(arch):
        asked.append(arch.values)
        return capacity(arch)

    first = search_run(run, ["macs <= 1M"], accuracy=measure, **QUICK)
    journal = run.path / "search" / "trials.jsonl"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    design = 5  # one of the networks that every search begins with
    cut = lines[design]
    journal.write_bytes(b"".join(lines[:design]) + cut[: len(cut) // 2])  # as a full disk or a crash leaves it
    asked.clear()
    again = search_run(run, ["macs <= 1M"], accuracy=measure, **QUICK)
    kept = {tuple(json.loads(line)["values"]) for line in lines[:design]}
    assert not kept & set(asked)
    assert tuple(json.loads(cut)["values"]) in asked
    assert len(asked) == len(set(asked))
    assert journal.read_bytes().startswith(b"".join(lines[:design]))
    assert again.best == first.best  # the same seed measured the same networks
    garbage = journal.read_bytes()
    journal.write_bytes(garbage + b"\x00\xff not json\n" + b'{"key": 3}\n' + b'{"key": "x", "values": [1], "top1": 7}\n')
    asked.clear()
    third = search_run(run, ["macs <= 1M"], accuracy=measure, **QUICK)
    assert third.best.top1 >= first.best.top1
    assert not {c.arch.values for c in first.candidates} & set(asked)


def test_two_searches_at_once_both_end_and_measure_nothing_twice(run, here):
    command = [sys.executable, "-c", "from search.cli import main; main()", "search", str(run.path), "--where", "macs <= 1M"]
    command += ["--accuracy", "lab:slow", "--evals", "14", "--rounds", "1", "--predictor", "ridge"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    journal = run.path / "search" / "trials.jsonl"
    logs = [here / "a.log", here / "b.log"]
    with Journal(journal).locked():  # so that both come while somebody measures, however long they take to start
        both = []
        for log in logs:
            with log.open("w") as file:
                both.append(subprocess.Popen([*command, "--tag", log.stem], cwd=here, env=environment, stderr=file))
        deadline = time.monotonic() + 100
        while not all(f"another search writes to {journal}; waiting for it" in log.read_text() for log in logs):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert not (here / "asked").exists()
    assert [process.wait(timeout=120) for process in both] == [0, 0], [log.read_text() for log in logs]
    assert not any("Traceback" in log.read_text() for log in logs)
    asked = (here / "asked").read_text().splitlines()
    assert len(asked) == len(set(asked)) == len(trials(run.path))
    assert {search.name for search in read_searches(run)} == {"a", "b"}


def test_ctrl_c_keeps_what_was_measured_and_the_next_search_goes_on(run, here):
    command = [sys.executable, "-c", "from search.cli import main; main()", "search", str(run.path), "--where", "macs <= 1M"]
    command += ["--accuracy", "lab:slow", "--evals", "2000", "--predictor", "ridge"]
    process = subprocess.Popen(
        command, cwd=here, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        # a test run started in the background hands down an ignored SIGINT, and Python would leave it so
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (here / "asked").exists() or len((here / "asked").read_text().splitlines()) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; what was finished is kept" in errors
    assert "Traceback" not in errors
    kept = trials(run.path)
    assert len(kept) >= 4
    assert not (run.path / "search" / "front.json").exists()
    asked = (here / "asked").read_text().splitlines()
    resumed = subprocess.run(
        [*command[:-4], "--evals", "14", "--rounds", "1", "--predictor", "none"], cwd=here, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert trials(run.path)[: len(kept)] == kept
    finished = (here / "asked").read_text().splitlines()[len(asked) :]
    assert not {str(tuple(trial["values"])) for trial in kept} & set(finished)


# -- directories and results -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_search_that_cannot_write_its_result_measures_nothing(run, tmp_path):
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "import search.run, search.sources, search.callable_accuracy, search.regressors.ridge, scipy.stats, linecache\n"
        "os.chdir(sys.argv[1]); os.setuid(65534)\n"
        "from ofa.errors import OfaError\n"
        "def measure(arch): print('measured'); return 0.5\n"
        "try: search.run.search_run('run', ['macs <= 1M'], accuracy=measure, evals=14)\n"
        "except OfaError as error: print(error)\n"
    )
    run.path.chmod(0o555)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(folder.stat().st_mode | 0o055)
    found = subprocess.run([sys.executable, "-c", code, tmp_path, ROOT], capture_output=True, text=True, timeout=60)
    assert (
        found.stdout == "run: may not be written to, so the result of a search would be lost; expected a directory of your own\n"
    ), found.stderr


def test_a_file_where_the_results_should_go_is_named(run):
    (run.path / "search").write_text("mine")
    with pytest.raises(OfaError, match=r"run/search: is no directory"):
        search_run(run, ["macs <= 1M"], accuracy=capacity, **QUICK)
    assert (run.path / "search").read_text() == "mine"


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "foreign": lambda path: path.write_bytes(b'{"schema": "other/1"}'),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
}


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A run with a menu of two targets and a predictor."""
    run = open_run(tmp_path_factory.mktemp("searched") / "run", SPACE.name)
    search_targets(run, sweep("macs: 0.5M..1M x2"), accuracy=capacity, **QUICK)
    return run


def test_damaged_results_are_refused_by_name_and_replaced_by_the_next_search(searched, tmp_path, monkeypatch):
    monkeypatch.setattr("search.modes.PROPOSAL", 1000)
    shutil.copytree(searched.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    root = run.path / "search"
    readers = {
        root / "macs_500K" / "front.json": lambda: read_searches(run),
        root / "menu.json": lambda: read_menus(run),
        root / "macs_500K" / "predictor.json": lambda: AccuracyPredictor.load(root / "macs_500K" / "predictor.json", SPACE),
        root / "macs_500K" / "predictor.safetensors": lambda: AccuracyPredictor.load(
            root / "macs_500K" / "predictor.json", SPACE
        ),
    }
    for path, read in readers.items():
        good = path.read_bytes()
        read()
        for name, damage in DAMAGE.items():
            damage(path)
            if name == "missing" and path.name in ("front.json", "menu.json"):
                read()  # a search that is not there is none
            else:
                with pytest.raises(OfaError) as caught:
                    read()
                assert path.stem in str(caught.value), name
                assert "\n" not in str(caught.value)
            path.write_bytes(good)
    for path in readers:
        DAMAGE["binary"](path)
    before = trials(run.path)
    search_targets(run, sweep("macs: 0.5M..1M x2"), accuracy=capacity, **QUICK)
    assert trials(run.path)[: len(before)] == before
    for read in readers.values():
        read()


def test_values_of_the_wrong_kind_in_results_are_refused_by_name(searched, tmp_path):
    shutil.copytree(searched.path, tmp_path / "run")
    run, refused = Run(tmp_path / "run"), 0
    for name, read in (("macs_500K/front.json", read_searches), ("menu.json", read_menus)):
        path = run.path / "search" / name
        record = parse_object(path.read_bytes(), path, what="results")  # without its seal
        for key in set(record) - {"schema"}:
            for wrong in (3, "x", [3], {"a": 1}, [[]], [{}]):
                path.write_text(json.dumps({**record, key: wrong}))
                message = refusal(lambda read=read: read(run))
                assert message is None or (path.name in message and "\n" not in message), (key, wrong)
                refused += message is not None
        path.write_text(json.dumps(record))
    assert refused > 60


def refusal(read):
    """Return what reading was refused with; None = it was not."""
    try:
        read()
    except OfaError as error:
        return str(error)
    return None


def test_export_of_a_best_whose_candidate_is_damaged_is_one_line(trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "run")
    best = tmp_path / "run" / "search" / "best"
    for name in ("empty", "truncated", "foreign", "binary", "deep"):
        shutil.copy(trained.path / "search" / "best" / "candidate.json", best)
        DAMAGE[name](best / "candidate.json")
        with pytest.raises(OfaError, match=r"candidate\.json") as caught:
            export_subnet(best, tmp_path / "out")
        assert "\n" not in str(caught.value)
