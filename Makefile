# Two commands do everything on a machine with Python 3.11 and nothing else:
#   make demo    creates .venv, installs, measures the shipped models and draws the figures
#   make test    creates .venv, installs with test extras, runs the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# test processes at once; 0: one, this one
WORKERS ?= 2
# The tests' matrices are small: threads that wait for each other cost more than they give.
export OMP_NUM_THREADS ?= 1
PIP := $(BIN)/pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: demo test check lint format readme options benchmarks mutants notebook clean

demo: .venv/installed
	$(BIN)/vlm-horizon demo

test: .venv/installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# everything that a change must pass
check: lint test

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the README's tables of families and benchmarks, from the code
readme: .venv/installed
	$(BIN)/python -m vlm_horizon.readme README.md

# the options of a run as editors and type checkers know them, from their declaration
options: .venv/installed
	$(BIN)/python -m analyses.runs.signatures

benchmarks: .venv/installed-test
	for script in tests/benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

# what tests notice of changes made on purpose: more by N=300, others by MUTATED='probes/replay/*.py'
MUTATED ?= $(wildcard analyses/verdicts/*.py)
N ?= 20
SEED ?= 0
mutants: .venv/installed-test
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/mutations/mutate.py --n $(N) --seed $(SEED) --paths $(MUTATED)

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first, at the tested version: a looser requirement would take the newest build with its CUDA packages
.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) -e .
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) -e '.[test]'
	touch $@

.venv/installed-dev: .venv/installed-test
	$(PIP) -e '.[test,dev]'
	touch $@

clean:
	rm -rf .venv build dist runs
