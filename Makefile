# setup: the environment · demo: the main job, start to finish · test: everything CI runs · check: style and types
# test-browser: the console in a headless Chromium (on Debian: apt-get install chromium npm); pictures in build/screenshots
# test-gpu: what only a GPU shows; it fails where there is none
# test-chaos: parts of an installation killed at random moments (hours; ARGS make it shorter)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread: torch spins while it waits, and two processes that spin on two cores stand still.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup demo test test-chaos test-browser test-gpu check clean
.PHONY: bench bench-prune bench-streaming bench-distill bench-large bench-tokens bench-quantise bench-api
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Foundry needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "This Python cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (torch is large; the first time takes some minutes)"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]' || \
		{ echo "The installation failed; the lines above say why. Mend it and run the same command again."; exit 1; }
	@touch $@

demo: setup
	@$(BIN)/python -m demo $(ARGS)

test: setup check
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-browser: setup $(VENV)/.browser
	@$(BIN)/python -m pytest -o python_files='browse_*.py' tests/browser $(ARGS)

# axe-core (MPL-2.0) finds what a screen reader or a weak eye would stumble over; it is fetched, not kept.
$(VENV)/.browser: $(STAMP)
	@$(BIN)/python -m pip install --quiet --editable '.[browser]'
	@npm install --silent --no-audit --no-fund --prefix build/browser axe-core@4.14.1 || \
		echo "There is no npm, so accessibility is not checked. On Debian and Ubuntu: apt-get install npm"
	@touch $@

# Without the conftest.py of all tests, whose databases and servers a machine for computing may lack.
test-gpu: setup
	@$(BIN)/python -m pytest --confcutdir=tests/gpu tests/gpu $(ARGS)

test-chaos: setup
	@$(BIN)/python -m tests.chaos $(ARGS)

check: setup
	@$(BIN)/ruff format --check --quiet . || { echo "Run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

bench: bench-prune bench-streaming bench-distill bench-api bench-quantise

bench-quantise: setup
	@$(BIN)/python -W ignore -m benchmarks.quantise $(ARGS)

bench-api: setup
	@$(BIN)/python -m benchmarks.api $(ARGS)

bench-prune: setup $(VENV)/.bench
	@$(BIN)/python -m benchmarks.prune $(ARGS)

bench-streaming: setup
	@$(BIN)/python -m benchmarks.streaming $(ARGS)

bench-distill: setup $(VENV)/.bench
	@$(BIN)/python -W ignore -m benchmarks.distill $(ARGS)

bench-large: setup
	@$(BIN)/python -W ignore -m benchmarks.large $(ARGS)

bench-tokens: setup
	@$(BIN)/python -W ignore -m benchmarks.tokens $(ARGS)

$(VENV)/.bench: $(STAMP)
	@$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

clean:
	rm -rf build $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
