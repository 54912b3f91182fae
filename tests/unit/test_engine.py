"""Engines: the same results wherever a function runs, and what becomes of workers that crash, hang or are not there.

Functions are defined inside the tests: workers get those by value, since they cannot import this file.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ofa.errors import OfaError
from search.engine import Engine, EngineError
from search.worker import Failure

ROOT = Path(__file__).parents[2]


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def pair():
    with Engine("joblib:2") as engine:
        yield engine


def cube_root(number):
    return number ** (1 / 3)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "joblib:1",
        "joblib:2",
        pytest.param("dask:2", marks=needs("distributed")),
        pytest.param("ray:2", marks=needs("ray")),
    ],
)
def test_every_engine_gives_the_same_results_to_the_last_bit(text):
    def root(number):
        return number ** (1 / 3)

    tasks = [n / 7 for n in range(12)]
    with Engine(text) as engine:
        found = dict(engine.map(root, tasks))
        assert engine.workers == int((text or "1")[-1])
        assert [found[i].hex() for i in range(12)] == [cube_root(task).hex() for task in tasks]
        assert list(engine.map(root, [])) == []


@pytest.mark.parametrize(
    "text",
    [
        "joblib",
        "joblib:",
        "joblib:0",
        "joblib:-1",
        "joblib:two",
        "joblib:99999",
        "dask:",
        "ray",
        "loky:2",
        "dask:a b",
        "in-process:2",
        "²",
        "joblib:²",
    ],
)
def test_a_malformed_engine_is_refused_with_the_forms(text):
    with pytest.raises(EngineError) as caught:
        Engine(text)
    assert repr(text) in str(caught.value)
    assert "joblib:N" in str(caught.value) or "1 to 1024" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "package"), [("dask:2", "dask[distributed]"), ("ray:2", "ray")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(text, package, monkeypatch):
    for name in ("dask", "distributed", "ray"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(EngineError, match="is not installed") as caught:
        list(Engine(text).map(cube_root, [1.0]))
    assert f'pip install "{package}"' in str(caught.value)
    assert "\n" not in str(caught.value)


@needs("distributed")
def test_an_address_where_nobody_answers_is_one_line(monkeypatch):
    monkeypatch.setattr("search.clusters.CONNECT_S", 1.0)
    with pytest.raises(EngineError, match=r"engine 'dask:tcp://127.0.0.1:1': no dask cluster") as caught:
        list(Engine("dask:tcp://127.0.0.1:1").map(cube_root, [1.0]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [pytest.param("dask", marks=needs("distributed")), pytest.param("ray", marks=needs("ray"))])
def test_several_engines_of_one_cluster_kind_serve_one_process(kind):
    def double(number):
        return 2 * number

    with Engine(f"{kind}:2") as first:
        assert dict(first.map(double, range(3))) == {0: 0, 1: 2, 2: 4}
        second = Engine(f"{kind}:1")
        assert dict(second.map(double, range(3))) == {0: 0, 1: 2, 2: 4}
        assert (first.workers, second.workers) == (2, 1)
    assert dict(second.map(double, range(3))) == {0: 0, 1: 2, 2: 4}  # the first is closed, the second is not
    second.close()


@needs("ray")
def test_a_connection_to_ray_that_somebody_else_made_is_used_and_left():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with Engine("ray:1") as engine:
            assert dict(engine.map(os.path.basename, ["a/b"])) == {0: "b"}
        assert ray.is_initialized()
        with pytest.raises(EngineError, match=r"engine 'ray:127\.0\.0\.1:1': this process has a connection") as caught:
            list(Engine("ray:127.0.0.1:1").map(os.path.basename, ["a/b"]))
        assert "\n" not in str(caught.value)
    finally:
        ray.shutdown()


def test_a_worker_that_had_nothing_to_do_for_long_ends_and_another_one_starts(monkeypatch):
    monkeypatch.setattr("search.engine.IDLE_S", 0.2)

    def own_id(_):
        return os.getpid()

    with Engine("joblib:1") as engine:
        ((_, first),) = engine.map(own_id, [0])
        until = time.monotonic() + 10
        while alive(first) and time.monotonic() < until:
            time.sleep(0.05)
        assert not alive(first)
        ((_, second),) = engine.map(own_id, [0])
    assert first != second


def test_a_worker_that_crashes_once_is_replaced(pair, tmp_path):
    def crash_once(number):
        mark = tmp_path / f"was-here-{number}"
        if number == 3 and not mark.exists():
            mark.touch()
            os._exit(9)
        return number

    assert dict(pair.map(crash_once, range(6))) == {n: n for n in range(6)}


def test_a_task_that_always_crashes_is_named_when_all_others_are_done(pair, tmp_path):
    def crash(number):
        if number == 3:
            with (tmp_path / "attempts").open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGSEGV)
        return number

    found = {}
    with pytest.raises(EngineError) as caught:
        found.update(one for one in pair.map(crash, range(6), retries=2, name="number {}".format))
    assert found == {n: n for n in (0, 1, 2, 4, 5)}
    assert (tmp_path / "attempts").read_text() == "xxx"
    assert "task 3 (number 3): its process died (SIGSEGV(-11)), in each of 3 attempts" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pause_s", [0.0, 0.5])
def test_a_worker_that_is_killed_while_it_is_idle_is_replaced(pair, pause_s):
    def own_id(_):
        time.sleep(0.05)
        return os.getpid()

    before = {pid for _, pid in pair.map(own_id, range(4))}
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    time.sleep(pause_s)  # the engine has noticed, or has not
    after = {pid for _, pid in pair.map(own_id, range(4))}
    assert len(before) == len(after) == 2
    assert not before & after


@pytest.mark.parametrize("text", [None, "joblib:2"])
def test_a_task_that_hangs_is_ended(text):
    def hang(number):
        if number == 1:
            time.sleep(60)
        return number

    began = time.monotonic()
    with Engine(text) as engine:
        found = dict(engine.attempt(hang, range(3), retries=1, timeout_s=0.5))
    assert found == {0: 0, 1: Failure("did not finish within 0.5 s"), 2: 2}
    assert 1.0 < time.monotonic() - began < 10  # two attempts


def test_a_function_that_never_gives_control_back_is_ended():
    def spin(_):
        import re

        re.match(r"(a+)+$", "a" * 40 + "b")  # one call into C that holds the interpreter for hours

    with Engine() as engine, pytest.raises(EngineError, match=r"did not finish within 0.5 s, in each of 1 attempts"):
        list(engine.map(spin, [0], retries=0, timeout_s=0.5))


@pytest.mark.parametrize("text", [None, "joblib:2"])
def test_what_the_function_raises_is_passed_through_with_the_task(text):
    class OwnError(Exception):
        def __init__(self, first, second):
            super().__init__(f"{first} and {second}")

    def fail(kind):
        if kind == "key":
            raise KeyError("no such thing")
        if kind == "own":
            raise OwnError("this", "that")
        if kind == "user":
            raise OfaError("images are missing")
        sys.exit(3)

    with Engine(text) as engine:
        with pytest.raises(KeyError, match="no such thing") as caught:
            list(engine.map(fail, ["key"]))
        assert "while working on task 0: 'key'" in caught.value.__notes__
        with pytest.raises(OfaError, match=r"^images are missing"):
            list(engine.map(fail, ["user"]))
        with pytest.raises((OwnError, RuntimeError), match="this and that"):
            list(engine.map(fail, ["own"]))
        with pytest.raises(RuntimeError, match="SystemExit: 3"):
            list(engine.map(fail, ["exit"]))


@pytest.mark.parametrize("text", [None, "joblib:2"])
def test_errors_are_tried_again_on_request(text, tmp_path):
    def fail_twice(number):
        with (tmp_path / f"{text}-{number}").open("a+") as file:
            file.write("x")
            file.seek(0)
            if len(file.read()) < 3:
                raise ValueError("not yet")
        return number

    with Engine(text) as engine:
        assert dict(engine.attempt(fail_twice, range(2), retries=2, retry_errors=True)) == {0: 0, 1: 1}
        ((_, outcome),) = engine.attempt(fail_twice, [7], retries=1, retry_errors=True)
    assert outcome.reason == "ValueError: not yet"


def test_what_cannot_be_sent_to_a_worker_is_refused(pair):
    held = threading.Lock()

    def hold(number):
        return held.locked()

    with pytest.raises(EngineError, match="hold: cannot be sent to a worker process") as caught:
        list(pair.map(hold, [1]))
    assert "\n" not in str(caught.value)


def test_results_that_nobody_waits_for_are_not_computed(pair, tmp_path):
    def slow(number):
        if number:
            time.sleep(30)
        return number

    began = time.monotonic()
    results = pair.map(slow, range(4))
    assert next(results) == (0, 0)
    results.close()
    assert dict(pair.map(slow, [0, 0])) == {0: 0, 1: 0}  # workers are free again
    assert time.monotonic() - began < 10


INTERRUPTED = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
from search.engine import Engine

def hang(number):
    import os, pathlib, time
    pathlib.Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(60)

try:
    list(Engine("joblib:2").map(hang, range(4)))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(tmp_path, number):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, tmp_path],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 20
    while len(workers := [int(path.name) for path in tmp_path.iterdir()]) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(workers) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
    else:
        process.kill()
    out, err = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    until = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    remaining = [pid for pid in workers if alive(pid)]
    for pid in remaining:
        os.kill(pid, signal.SIGKILL)
    assert not remaining


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
