# `make demo` runs the main job, `make test` passes the tests; both set everything up first.
PY ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# Whole files go to a worker, the longest first: their fixtures are made once.
SPREAD := --dist loadfile --no-loadscope-reorder
# The checkout's folder `generative` must never shadow the package of that name.
export PYTHONSAFEPATH = 1
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: help setup demo cohort bench-gpu test check lint types layers coverage format docs picture pacs flow clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.done  ## the environment, from PyPI

# torch first and alone: where a CPU build lies at hand, pip takes it before anything asks for more.
$(VENV)/.done: pyproject.toml constraints.txt
	$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rarescan needs Python 3.11 or newer")'
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip check
	touch $@

demo: setup  ## the whole way on invented persons: runs/demo/report.html
	$(BIN)/rarescan run demo

cohort: setup  ## the whole way on the real T1 persons of ds002748: runs/cohort/report.html
	$(BIN)/rarescan run cohort

test: setup  ## the tests
	$(BIN)/pytest -n 2 $(SPREAD) -q -m "not long"

check: lint types layers coverage  ## everything that must hold before a change lands

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

coverage: setup
	$(BIN)/pytest -n 2 $(SPREAD) -q --cov --cov-report=term --cov-fail-under=85

format: setup  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## the reference pages, from the code
	$(BIN)/python docs/make_reference.py

picture: setup  ## the picture of the README, from a finished run
	$(BIN)/python docs/make_pictures.py $(or $(RUN),runs/demo)

# Orthanc listens on every interface, so it gets a network namespace with nothing but loopback.
NAMESPACE = unshare $(shell unshare -rn true 2>/dev/null && echo -rn || echo -n)

pacs: setup  ## the tests with a real Orthanc (apt-get install orthanc orthanc-dicomweb)
	$(NAMESPACE) sh -c 'ip link set lo up && exec $(BIN)/pytest tests/pacs/test_orthanc.py -q'

flow: setup  ## one short real flow, with its second run
	$(BIN)/rarescan run ci --set runs=$(or $(RUNS),runs)
	$(BIN)/rarescan run ci --set runs=$(or $(RUNS),runs)

bench-gpu: setup  ## what the presets of 1 and 2 mm take on this machine's GPU: runs/bench-gpu/gpu.md
	$(BIN)/python benchmarks/generative/gpu.py $(or $(RUNS),runs)/bench-gpu

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage*
