# Each target sets itself up: a virtual environment in .venv with this project and what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench

demo: .venv/.installed        ## the main job on built-in data: train, profile, search, export, verify, report
	$(BIN)/ofa demo

test: .venv/.installed        ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

check: .venv/.installed       ## lint and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: .venv/.installed       ## the benchmarks; results belong into docs/benchmarks.md
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
