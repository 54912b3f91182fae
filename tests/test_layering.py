"""The rooms import only what stands to their left; the library is light to import and free of pickle."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAYERS = ("ofa", "deploy", "latency", "search")


def imported_packages(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


def test_packages_import_only_leftwards():
    offences = [
        f"{path}: {name}"
        for depth, package in enumerate(LAYERS)
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in imported_packages(path.read_text())
        if name in LAYERS[depth + 1 :]
    ]
    assert not offences


def test_nothing_imports_the_command_line():
    for package in LAYERS:
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "cli.py":
                assert "search.cli" not in path.read_text(), path


def test_nothing_pickles():
    for package in LAYERS:
        for path in (ROOT / package).rglob("*.py"):
            names = set(imported_packages(path.read_text()))
            assert not names & {"pickle", "cloudpickle"}, path
            assert "joblib" not in names or path == ROOT / "search" / "engine.py", path  # for worker processes; it stores nothing
            text = path.read_text()
            if path.parent.name == "formats":  # published checkpoints are pickled; they are read without running what is inside
                assert text.count("torch.load(") == text.count("weights_only=True)"), path
            else:
                assert "torch.load(" not in text, path


def test_help_loads_neither_torch_nor_onnx():
    code = (
        "import sys, search.cli; assert not {'torch', 'onnx', 'onnxruntime', 'sklearn', 'numpy'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
