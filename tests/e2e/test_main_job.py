"""The whole job as a user runs it: the demo, the stages from the shell, and the README's own commands."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from deploy.export import export_subnet
from deploy.limits import parse_limit
from deploy.verify import verify_model
from ofa.artefacts import read_json, read_jsonl, write_json
from ofa.run_dir import Run
from ofa.space import ARCH_SCHEMA
from ofa.spaces import get_space
from ofa.training.config import TrainConfig
from ofa.training.loop import train_supernet
from search.run import open_run, search_run
from search.strategies.random import Random

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_demo_keeps_its_promise(cli, tmp_path):
    """The demo as `make demo` runs it: two files, of different networks as a rule, accurate, proven, and a report."""
    out = tmp_path / "demo"
    process = cli("demo", "--out", out, timeout=600)
    assert "Traceback" not in process.stderr
    proofs = {tag: json.loads((out / "export" / tag / "verify.json").read_text()) for tag in ("fast", "accurate")}
    for proof in proofs.values():
        failed = [check["name"] for check in proof["checks"] if not check["ok"]]
        assert failed in ([], ["latency@ort_cpu_1t"]), process.stderr
        assert proof["test_images"] == 449
        # other tests run beside this one: a limit may be missed by a hair, which is said with exit code 4 and is no crash
        assert process.returncode == 0 or "latency@ort_cpu_1t failed" in process.stderr
    # which of many networks within one validation image of each other is chosen depends on measured latencies; 0.967 was seen
    assert proofs["accurate"]["top1"] >= 0.95
    bounds = {tag: parse_limit(proof["limits"][0]).bound for tag, proof in proofs.items()}
    assert bounds["fast"] < bounds["accurate"]
    models = {tag: out / "export" / tag / "model.onnx" for tag in proofs}
    archs = {json.dumps(json.loads((path.parent / "arch.json").read_text())["values"]) for path in models.values()}
    if len(archs) > 1:  # what is most accurate under the wide limit may meet the narrow one too: then both files hold it
        assert models["fast"].stat().st_size < models["accurate"].stat().st_size
        # times of different minutes cannot be compared while other tests come and go: the two files are timed in turns
        ms = time_in_turns(models)
        assert ms["fast"] < 0.9 * ms["accurate"], ms
    page = (out / "report.html").read_text()
    assert "mbv3_tiny_image" in page
    assert "<script" not in page


def time_in_turns(models: dict[str, Path], runs: int = 300) -> dict[str, float]:
    """Fastest of `runs` runs of each file on one thread, in ms: the one number that other processes cannot lower."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {tag: ort.InferenceSession(path, options, ["CPUExecutionProvider"]) for tag, path in models.items()}
    feeds = {}
    for tag, session in sessions.items():
        given = session.get_inputs()[0]
        feeds[tag] = {given.name: np.zeros((1, *given.shape[1:]), np.float32)}
    best = dict.fromkeys(models, float("inf"))
    for _ in range(runs):
        for tag, session in sessions.items():
            began = time.perf_counter()
            session.run(None, feeds[tag])
            best[tag] = min(best[tag], (time.perf_counter() - began) * 1e3)
    return best


def test_stages_reuse_each_others_work(trained, cli, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.path, run)
    before = (run / "search" / "trials.jsonl").read_text().splitlines()
    process = cli("search", run, "--where", "macs <= 2M", "--tag", "second", "--evals", 20, "--rounds", 1, "--json")
    assert process.returncode == 0, process.stderr
    assert "10 networks for the predictor, 10 of them measured before" in process.stderr
    after = (run / "search" / "trials.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(after) <= len(before) + 10
    best = json.loads(process.stdout)
    assert best["costs"]["macs"] <= 2e6
    assert Path(best["best"]) == run / "search" / "second" / "best"
    assert [c["argv"][1] for c in json.loads((run / "run.json").read_text())["commands"]] == ["search"]


def test_search_writes_a_feasible_best_and_an_honest_front(trained):
    front = json.loads((trained.path / "search" / "front.json").read_text())
    assert front["limits"] == ["params <= 200K"]
    for row in front["front"]:
        assert row["costs"]["params"] <= 2e5
    top1 = {tuple(r["values"]): r["top1"] for r in read_jsonl(trained.path / "search" / "trials.jsonl")}
    assert all(row["top1"] == top1[tuple(row["values"])] for row in front["candidates"])
    assert "kendall_tau" in front["predictor"]


def test_exported_file_is_plain_onnx_with_its_facts(trained):
    folder = trained.path / "export" / "best"
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["ofa.classes"] == list("0123456789")
    assert facts["ofa.space"] == "mbv3_tiny_image"
    assert session.get_inputs()[0].shape == ["batch", 3, *[facts["ofa.preprocess"]["resolution"]] * 2]
    text = (folder / "model.onnx").read_bytes()
    assert str(ROOT).encode() not in text  # no path of the machine that made it


def test_extracted_subnet_is_a_plain_module(trained):
    arch = trained.space.from_json(read_json(trained.path / "search" / "best" / "arch.json", schema=ARCH_SCHEMA))
    net = trained.load_supernet().extract(arch)
    assert type(net) is torch.nn.Sequential
    resolution = trained.space.resolution(arch)
    assert net(torch.zeros(1, 3, resolution, resolution)).shape == (1, 10)


def test_export_is_reproducible(trained, tmp_path):
    from deploy import export_subnet

    again = export_subnet(trained.path / "search" / "best", tmp_path / "again")
    assert again.path.read_bytes() == (trained.path / "export" / "best" / "model.onnx").read_bytes()


def test_run_opens_again_and_knows_its_data(trained):
    run = Run(trained.path)
    assert run.data == trained.data
    train, validation = run.load_train_and_validation()
    assert len(train) + len(validation) == 1348
    assert np.isclose(len(validation) / 1348, 0.1, atol=0.01)


# -- the README -----------------------------------------------------------------------------------------------------


def code_blocks(language, path="README.md"):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / path).read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def readme_environment(tmp_path):
    """A directory of its own, `ofa` and `torchrun` on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, module in (("ofa", "search.cli"), ("torchrun", "torch.distributed.run")):
        command = folder / name
        command.write_text(f"#!{sys.executable}\nfrom {module} import main\nmain()\n")
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def test_readme_shell_commands_run_as_written(tmp_path, readme_environment):
    commands = [line for block in code_blocks("console") for line in block.splitlines() if line.startswith("ofa ")]
    assert [shlex.split(c)[1] for c in commands] == [
        "train",
        "profile",
        "search",
        "export",
        "verify",
        "report",
        "spaces",
        "doctor",
    ]
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=readme_environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "runs" / "digits" / "report.html").exists()


def test_device_commands_run_as_written(tmp_path, readme_environment, trained):
    """docs/devices.md: the shell as a user follows it, with the trained run in the place of runs/digits; then its Python."""
    shutil.copytree(trained.path, tmp_path / "runs" / "digits")
    folder = tmp_path
    commands = [line for block in code_blocks("console", "docs/devices.md") for line in block.splitlines()]
    assert len(commands) == 9
    for command in commands:
        words = shlex.split(command)
        if words[0] == "cd":
            folder = (folder / words[1]).resolve()
            continue
        words[0] = sys.executable if words[0] == "python" else words[0]
        done = subprocess.run(words, cwd=folder, env=readme_environment, capture_output=True, text=True, timeout=200)
        stale = "--check" in words and "is stale" in done.stderr  # a busy machine may well say so
        assert done.returncode == 0 or stale, f"{command}\n{done.stderr}"
    assert folder == tmp_path
    (block,) = code_blocks("python", "docs/devices.md")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, env=readme_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " ms\n" in done.stdout


def test_deploying_commands_run_as_written(tmp_path, readme_environment, trained):
    """docs/deploying.md, with the trained run in the place of runs/digits and two images in the place of a user's; its Python."""
    shutil.copytree(trained.path, tmp_path / "runs" / "digits")
    (tmp_path / "scans").mkdir()
    for name in ("000_is_0.png", "001_is_5.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(tmp_path / "scans" / name)
    commands = [line for block in code_blocks("console", "docs/deploying.md") for line in block.splitlines()]
    made = ("ofa train", "ofa profile", "ofa search")
    assert [command.split(" runs")[0].split(" --")[0] for command in commands if command.startswith(made)] == list(made)
    environment = {**readme_environment, "COLUMNS": "120"}
    said = {}
    for command in commands:
        words = shlex.split(command)
        words[0] = sys.executable if words[0] == "python" else words[0]
        if command.startswith(made):
            continue
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        missed = "accuracy >= 90%" in command and "accuracy failed: top-1 0." in done.stderr  # after two epochs
        assert done.returncode == (4 if missed else 0), f"{command}\n{done.stderr}"
        said[command] = done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"fp32", "int8", "mixed", "tuned", "torchvision"}
    assert json.loads((tmp_path / "out" / "int8" / "verify.json").read_text())["ok"]
    assert any("images/s" in text for text in said.values())
    blocks = code_blocks("python", "docs/deploying.md")
    for block, folder in zip(blocks, (tmp_path, tmp_path / "out" / "fp32"), strict=True):
        given = "import numpy as np\nimages = np.zeros((2, 8, 8, 3), np.uint8)\n"  # of the one that classifies
        done = subprocess.run(
            [sys.executable, "-c", given + block.replace("photo.jpg", str(tmp_path / "scans" / "000_is_0.png"))],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"


def documented_files(path):
    """Name -> text of the files that a document tells its reader to save."""
    return dict(
        re.findall(r"Save\s+as\s+`([\w./]+)`[^`]*\n\n```\w+\n(.*?)^```", (ROOT / path).read_text(), re.DOTALL | re.MULTILINE)
    )


@pytest.mark.slow
def test_search_commands_run_as_written(tmp_path, readme_environment, trained):
    """docs/search.md: its files, its shell and its Python, with the trained run in the place of runs/digits."""
    run = tmp_path / "runs" / "digits"
    shutil.copytree(trained.path, run)
    shutil.rmtree(run / "search")
    files = documented_files("docs/search.md")
    assert set(files) == {"noisy.py", "cells.csv"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    commands = [line for block in code_blocks("console", "docs/search.md") for line in block.splitlines()]
    assert len(commands) == 14
    environment = {**readme_environment, "COLUMNS": "120"}
    said = {}
    for command in commands:
        done = subprocess.run(shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        said[command] = done.stderr
        impossible = "macs <= 0.1M" in command
        assert done.returncode == (3 if impossible else 0), f"{command}\n{done.stderr}"
    shown = code_blocks("text", "docs/search.md")
    first, infeasible = said[commands[0]], said[commands[1]]
    assert " ".join(infeasible.split()).endswith(" ".join(shown[1].split()))
    for words in ("macs ≤ 1.5M", "all limits together", "16 networks for the predictor", "Kendall tau", "best: top-1"):
        assert words in first
        assert words in shown[0]
    assert "networks for the predictor, 10 of them measured before" in said[commands[4]]
    folders = {path.name for path in (run / "search").iterdir() if path.is_dir()}
    assert folders >= {"best", "both", "front", "soft", "noisy", "workers", "ort_cpu_1t", "torch_1t", "menu_macs_2M"}
    assert {path.name for path in (run / "search").glob("*menu.*")} == {
        "menu.json",
        "menu.csv",
        "menu_menu.json",
        "menu_menu.csv",
    }
    assert (run / "report.html").exists()
    *_, block = code_blocks("python", "docs/search.md")
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert {"python", "sizes", "params_100K", "own_torch_1t"} <= {path.name for path in (run / "search").iterdir()}


def test_documented_strategy_and_table_space_work(tmp_path, monkeypatch):
    """docs/adding.md: the strategy is random search as it ships; the space of choices is searched by a table."""
    (code,) = [block for block in code_blocks("python", "docs/adding.md") if "STRATEGY = " in block]
    module: dict = {}
    exec(code, module)
    ours, shipped = (
        make(get_space("mbv3_tiny_image"), np.random.default_rng(0), batch=32) for make in (module["STRATEGY"], Random)
    )
    for _ in range(3):
        asked, expected = ours.ask(), shipped.ask()
        assert np.array_equal(asked, expected)
        for strategy in (ours, shipped):
            strategy.tell(asked, np.zeros((len(asked), 1)), np.zeros(len(asked)))
    path = tmp_path / "mylab" / "cells.py"
    path.parent.mkdir()
    path.write_text(documented_spaces()["mylab.cells"])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mylab", raising=False)
    (tmp_path / "table.csv").write_text("first,second,top1\nconv,pool,0.7\npool,skip,0.6\nconv,skip,0.8\n")
    found = search_run(open_run(tmp_path / "run", "mylab.cells"), accuracy=str(tmp_path / "table.csv"))
    assert (found.best.arch.values, found.best.top1) == (("conv", "skip"), 0.8)


@pytest.mark.slow
def test_training_commands_run_as_written(tmp_path, readme_environment):
    commands = [line for block in code_blocks("console", "docs/training.md") for line in block.splitlines()]
    assert len(commands) == 10
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=readme_environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    (block,) = code_blocks("python", "docs/training.md")
    done = subprocess.run([sys.executable, "-c", block], env=readme_environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[2, 2, 2, 2, 2]\n"), done.stderr


@pytest.mark.slow
def test_cells_commands_run_as_written(tmp_path, readme_environment):
    """docs/cells.md, with this repository's words in the place of a user's text."""
    (tmp_path / "words.txt").write_text((ROOT / "docs/training.md").read_text() * 3)
    commands = [line for block in code_blocks("console", "docs/cells.md") for line in block.splitlines()]
    assert len(commands) == 12
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=readme_environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "runs/darts/report.html").exists()
    assert json.loads((tmp_path / "out/found/verify.json").read_text())["ok"] is True


@pytest.mark.slow
def test_methods_commands_run_as_written(tmp_path, readme_environment):
    """docs/methods.md: a command for every method, with this repository's words in the place of a user's text."""
    (tmp_path / "words.txt").write_text((ROOT / "docs/training.md").read_text() * 3)
    commands = [line for block in code_blocks("console", "docs/methods.md") for line in block.splitlines()]
    assert len(commands) == 20
    for command in commands:
        done = subprocess.run(
            shlex.split(command), cwd=tmp_path, env=readme_environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_readme_python_runs_as_written(tmp_path, readme_environment):
    (block,) = code_blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=readme_environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "ms predicted, top-1" in done.stdout


def test_readme_make_targets_exist_and_ci_calls_the_test_command():
    targets = [line.split()[1] for block in code_blocks("console") for line in block.splitlines() if line.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_documented_space_and_device_work(tmp_path, readme_environment, monkeypatch):
    space = documented_spaces()["mylab.wide"]
    device, *_ = code_blocks("toml", "docs/adding.md")
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "wide.py").write_text(space)
    (tmp_path / "mine.toml").write_text(device.replace("num_threads = 4", "num_threads = 1"))
    environment = {**readme_environment, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    for command in (
        "ofa train --space mylab.wide --data digits --out runs/mine --epochs 1 --batch-size 256",
        "ofa profile runs/mine --device mine.toml --rounds 3",
        'ofa search runs/mine --where "latency@mine <= 1s" --evals 20 --rounds 1',
        "ofa export runs/mine/search/best -o out",
        "ofa verify out/model.onnx --seconds 0.2",  # knows the device, though it is none that ships
    ):
        done = subprocess.run(shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def documented_spaces():
    """Name -> the code of its file, of all spaces in docs/adding.md."""
    blocks = [block for block in code_blocks("python", "docs/adding.md") if "SPACE = " in block]
    return {re.search('(?:name|base)="(.*)"', block)[1]: block for block in blocks}


@pytest.mark.parametrize("name", ["mylab.residual", "mylab.shared", "mylab.own_cells"])
def test_documented_families_work(name, tmp_path, monkeypatch):
    path = tmp_path / f"{name.replace('.', '/')}.py"
    path.parent.mkdir()
    path.write_text(documented_spaces()[name])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mylab", raising=False)
    run = train_supernet(name, "digits", tmp_path / "run", config=TrainConfig(epochs=1, batch_size=512))
    write_json(tmp_path / "arch.json", run.space.to_json(run.space.smallest))
    exported = export_subnet(tmp_path / "arch.json", tmp_path / "out", run=run.path)
    assert verify_model(exported.path, limits=["params <= 1M", "macs <= 50M"], seconds=0.1).ok


def test_documents_link_to_files_that_exist():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path}: {target}"
