# `make repro` and `make test` need Linux, make, git, Python 3.11 to 3.14, and a network for the installation.
PYTHON ?= python3
BIN := .venv/bin
# Stages and hooks run `python`: the environment's own. Recipes name its folder, since old versions of make look for
# commands on the PATH that they were started with.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Some containers set this, and then each of the hundreds of processes that the tests start compiles the code anew.
unexport PYTHONDONTWRITEBYTECODE

# Exact versions within the ranges of pyproject.toml. `make LOCK= TARGET` installs the newest within the ranges instead,
# and removes the stamps, so that the next `make` returns to the lock.
LOCK = requirements.lock
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(LOCK),--constraint $(LOCK),--upgrade --upgrade-strategy eager)
STAMP = $(if $(LOCK),touch,rm -f .venv/installed-test)

# Remove an environment that was left half made, whose Python was removed or replaced, or that was made in another
# folder: its programs would run the code there.
$(shell { $(BIN)/python -c 'import pip' && grep -qF "$(CURDIR)/$(BIN)/" $(BIN)/pip; } 2>/dev/null || \
	{ test ! -e .venv || echo "removing .venv, whose Python or pip does not work here" >&2; rm -rf .venv; })
.DELETE_ON_ERROR:
.PHONY: repro test static suite test-fast fuzz check lock newest clean

repro: .venv/installed
	$(BIN)/dvc repro
	$(BIN)/vdmctl report

test: .venv/installed-test
	$(MAKE) --jobs=2 static suite

static: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

suite: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=4 --dist=loadfile --no-loadscope-reorder

# A minute: everything that starts no program and takes less than half a second, with fewer damaged inputs.
test-fast: .venv/installed-test
	VDM_FUZZ=10 OMP_NUM_THREADS=1 $(BIN)/pytest tests/vdm tests/flows -m "not processes and not slow" \
		--numprocesses=2 --dist=worksteal

# Hours: 100,000 inputs for every reader of files.
fuzz: .venv/installed-test
	VDM_FUZZ=$${VDM_FUZZ:-100000} OMP_NUM_THREADS=1 $(BIN)/pytest tests/flows/test_fuzz.py --numprocesses=2 -s

check: .venv/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

lock:
	$(PYTHON) -m venv --clear .vdm/lock
	.vdm/lock/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	.vdm/lock/bin/python -m pip list --disable-pip-version-check --format=freeze \
		--exclude pip --exclude setuptools --exclude-editable > .vdm/lock/versions
	sed 's/+.*//' .vdm/lock/versions | LC_ALL=C sort -f > requirements.lock
	rm -r .vdm/lock

clean:
	rm -rf .venv

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
		{ echo "$(PYTHON) is not Python 3.11 to 3.14; name another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: $(BIN)/python pyproject.toml $(or $(LOCK),newest)
	$(INSTALL) --editable .
	$(STAMP) $@

.venv/installed-test: $(BIN)/python pyproject.toml $(or $(LOCK),newest)
	$(INSTALL) --editable '.[test]'
	$(STAMP) $@ .venv/installed

newest:
