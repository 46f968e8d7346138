# `make repro` and `make test` need Linux, make, git, Python 3.11 to 3.14, and a network for the installation.
PYTHON ?= python3
BIN := .venv/bin
# Stages and hooks run `python`: the environment's own.
export PATH := $(CURDIR)/$(BIN):$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # some containers set it, and then every process compiles the code anew
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest

# Exact versions within the ranges of pyproject.toml.  `make LOCK= TARGET` installs the newest within the ranges, and
# leaves no stamps, so that the next `make` returns to the lock.
LOCK = requirements.lock
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(LOCK),--constraint $(LOCK),--upgrade --upgrade-strategy eager)
STAMP = $(if $(LOCK),touch,rm -f .venv/installed-test)

# An environment that was left half made, or made in another folder, whose code its programs would run, is made anew.
$(shell { $(BIN)/python -c 'import pip' && grep -qF "$(CURDIR)/$(BIN)/" $(BIN)/pip; } 2>/dev/null || rm -rf .venv)
.DELETE_ON_ERROR:
.PHONY: repro test static suite test-fast soak fuzz mutants check lock newest clean

repro: .venv/installed
	$(BIN)/dvc repro
	$(BIN)/vdmctl report

test: .venv/installed-test
	$(MAKE) --jobs=2 static suite

static: .venv/installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

suite: .venv/installed-test
	$(PYTEST) --numprocesses=4 --dist=loadfile --no-loadscope-reorder --durations=40

test-fast: .venv/installed-test
	VDM_FUZZ=10 $(PYTEST) tests/vdm tests/flows -m "not processes and not slow" --numprocesses=2 --dist=worksteal

soak: .venv/installed-test
	$(PYTEST) tests/soak --numprocesses=2 --dist=loadfile --durations=10

fuzz: .venv/installed-test
	VDM_FUZZ=$${VDM_FUZZ:-100000} $(PYTEST) tests/flows/test_fuzz.py --numprocesses=2 -s

mutants: .venv/installed-test
	$(PYTEST) tests/whole/mutations.py

check: .venv/installed-test
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/mypy

lock:
	$(PYTHON) -m venv --clear .vdm/lock
	.vdm/lock/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	.vdm/lock/bin/python -m pip list --disable-pip-version-check --format=freeze \
		--exclude pip --exclude setuptools --exclude-editable | sed 's/+.*//' | LC_ALL=C sort -f > requirements.lock
	rm -r .vdm/lock

clean:
	rm -rf .venv

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit((3, 11) > sys.version_info and "make PYTHON=python3.12 names a newer Python")'
	$(PYTHON) -m venv .venv

.venv/installed: $(BIN)/python pyproject.toml $(or $(LOCK),newest)
	$(INSTALL) --editable .
	$(STAMP) $@

.venv/installed-test: $(BIN)/python pyproject.toml $(or $(LOCK),newest)
	$(INSTALL) --editable '.[test]'
	$(STAMP) $@ .venv/installed

newest:
