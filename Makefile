# `make demo` and `make test` do everything on a fresh machine; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# One BLAS thread per test worker; more only get in each other's way.
WORKERS ?= 2
# The recorded costs of every recipe. After a change on purpose: ovstrans bench --update $(LOCK)
LOCK := tests/reports/costs.lock.json

.PHONY: help demo test test-matrix lint docs costs wheel clean

help:           ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: $(VENV)/.installed  ## install, then run the whole method on the bundled model and data
	$(BIN)/ovstrans demo --force

test: $(VENV)/.installed-test  ## run the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-matrix:  ## run the fast half of the suite on the oldest and newest dependencies, Python 3.10 and 3.13
	$(PYTHON) tests/matrix.py

lint: $(VENV)/.installed-test  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

costs: $(VENV)/.installed-test  ## compare the costs of every recipe with the recorded ones
	$(BIN)/ovstrans bench --check $(LOCK)

wheel: $(VENV)/bin/python  ## build the wheel into dist/
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "ovstrans needs Python 3.10 to 3.13; name one with: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

SOURCES := pyproject.toml setup.py ovstrans/runtime/kernels.c ovstrans/runtime/build.py

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: $(SOURCES) | $(VENV)/bin/python
	$(PIP) -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[docs]'
	@touch $@ $(VENV)/.installed

clean:  ## remove everything that the targets above made
	rm -rf $(VENV) .matrix site build dist *.egg-info
