# `make repro` and `make test` need make, git and Python 3.11 or newer, and nothing else.
PYTHON ?= python3
BIN := .venv/bin
# Stages and hooks run `python`: the environment's own.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test fuzz check clean

repro: .venv/installed
	dvc repro
	vdmctl report

test: .venv/installed-test
	ruff check .
	ruff format --check .
	mypy
	OMP_NUM_THREADS=1 pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

# Hours: 100,000 inputs for every reader of files.
fuzz: .venv/installed-test
	VDM_FUZZ=$${VDM_FUZZ:-100000} OMP_NUM_THREADS=1 pytest tests/flows/test_fuzz.py --numprocesses=2 -s

check: .venv/installed-test
	ruff check --fix .
	ruff format .
	mypy

clean:
	rm -rf .venv

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-test: .venv/bin/python pyproject.toml
	python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ .venv/installed
