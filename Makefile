# make demo   set up, then MNIST from nothing to reconstructions
# make test   set up, then format check, lint, types and tests
# make test-newest   all tests under Python 3.13 and the newest torch, and every training step on fake GPU tensors
# make torture   damaged files for every reader; kills and full disks for every command that writes (MINUTES=10, SEED=0)
# make docs   set up, then the documentation site in build/site

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest

.PHONY: demo test test-newest torture docs setup setup-dev clean

demo: setup
	$(BIN)/hrvqvae demo

test: setup-dev
	$(BIN)/ruff format --check src tests benchmarks recipes examples web
	$(BIN)/ruff check src tests benchmarks recipes examples web
	$(BIN)/mypy
	$(BIN)/pytest

test-newest: $(NEWEST)/.installed
	$(NEWEST)/bin/pytest -o addopts= -q -n 2 --dist loadfile --no-loadscope-reorder

torture: setup-dev
	$(BIN)/python -m benchmarks.torture --minutes $(or $(MINUTES),10) --seed $(or $(SEED),0)

docs: setup-dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -b html docs build/site

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@echo "setting up: a virtual environment in $(VENV)"
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "hrvqvae needs Python 3.11 or later: make ... PYTHON=python3.12"'
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "setting up: hrvqvae and what it needs, with pip"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo "setting up: hrvqvae, what it needs, and the tools that check it, with pip"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(VENV)/.installed $@

$(NEWEST)/.installed: pyproject.toml
	@echo "setting up: Python 3.13 and the newest torch in $(NEWEST); with CUDA it takes 8 GB"
	$$(command -v python3.13 || echo $(PYTHON)) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
	    torch torchvision --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(NEWEST) build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
