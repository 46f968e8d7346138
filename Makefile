# `make repro` and `make test` need Linux, make, git, Python 3.11 to 3.14, and a network for the installation.
PYTHON ?= python3
BIN := .venv/bin
# Stages and hooks run `python`: the environment's own.
export PATH := $(CURDIR)/$(BIN):$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # some containers set it, and then every process compiles the code anew
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest

# Exact versions with their digests: requirements.lock, and requirements-test.lock, which has what tests need, too.  Torch
# has other builds for cards than for CPUs, so of it the newest within the ranges of pyproject.toml is taken.  `make LOCK=
# TARGET` installs the newest of everything, and leaves no stamps, so that the next `make` returns to the lock.
LOCK = requirements
PIP = $(BIN)/python -m pip install --disable-pip-version-check
TORCH = $(shell grep --only-matching --extended-regexp '"torch(vision)?>=[^"]*"' pyproject.toml)
# Some lines in place of pip's several for each package.  Errors are on stderr.
SHOWN = awk '/^ *Collecting / && ++n % 25 == 0 { print "  " n; fflush() } \
	/^Installing / { print "  all are here; they are being installed"; fflush() }'
# For every Python of pyproject.toml.
COMPILE = .vdm/lock/bin/uv pip compile pyproject.toml --universal --upgrade --generate-hashes --quiet --no-header \
	--no-annotate --no-emit-package torch --no-emit-package torchvision

# Installs a lock, or the newest versions with extras, and leaves stamps.
ifneq ($(LOCK),)
define INSTALL
	@echo "$$(grep --count '^[a-z]' $(1)) packages of $(1) are fetched, which takes some minutes"
	@$(PIP) --no-deps --require-hashes --requirement $(1) | $(SHOWN)
	@echo 'torch is fetched: 200 MB, or 3 GB with what cards need'
	@$(PIP) $(TORCH) | $(SHOWN)
	@$(PIP) --no-deps --no-build-isolation --editable . >/dev/null
	@touch $(3)
endef
else
define INSTALL
	@$(PIP) --upgrade --upgrade-strategy eager --editable '.$(2)' | $(SHOWN)
	@rm -f .venv/installed-test $(3)
endef
endif

# An environment that was left half made, or made in another folder, whose code its programs would run, is made anew.
$(shell { $(BIN)/python -c 'import pip' && grep -qF "$(CURDIR)/$(BIN)/" $(BIN)/pip; } 2>/dev/null || rm -rf .venv)
.DELETE_ON_ERROR:
.PHONY: repro test static suite test-fast soak fuzz mutants golden check lock newest clean

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

golden: .venv/installed-test
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/make_golden.py

check: .venv/installed-test
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/mypy

lock:
	$(PYTHON) -m venv --clear .vdm/lock
	.vdm/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(COMPILE) --output-file requirements.lock
	$(COMPILE) --extra test --constraint requirements.lock --output-file requirements-test.lock
	rm -r .vdm/lock

clean:
	rm -rf .venv

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit((3, 11) > sys.version_info and "make PYTHON=python3.12 names a newer Python")'
	$(PYTHON) -m venv .venv

.venv/installed .venv/installed-test: SHELL = /bin/bash
.venv/installed .venv/installed-test: .SHELLFLAGS = -o pipefail -c

.venv/installed: $(BIN)/python pyproject.toml $(or $(LOCK:=.lock),newest)
	$(call INSTALL,$(LOCK).lock,,$@)

.venv/installed-test: $(BIN)/python pyproject.toml $(or $(LOCK:=-test.lock),newest)
	$(call INSTALL,$(LOCK)-test.lock,[test],$@ .venv/installed)

newest:
