# `make demo` and `make test` do all the set-up on a machine that has Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export NO_ALBUMENTATIONS_UPDATE := 1
# A file's tests run in one worker, so that its fixtures are made once; short files come last. One thread for each
# worker, and three workers for two cores, because a worker waits while processes of its test run or start.
WORKERS = $(shell $(PYTHON) -c "import os; print(max(1, 3 * os.cpu_count() // 2))")
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install demo reproduce test test-slow test-cluster test-campaigns coverage lint format benchmark clean

# make reproduce DATA=idrid ROOT=/data/idrid SCALE=small ARGS="hydra.launcher.n_jobs=2"
DATA ?= demo
ROOT ?=
SCALE ?=
ARGS ?=

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(READY)  ## make .venv and install drgrade with all dependencies

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "drgrade needs Python 3.11 or later: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(READY)  ## pre-train, fine-tune and test on the demo data
	$(BIN)/python train.py +experiment=msssl_10pct

reproduce: $(READY)  ## from photographs to the report: DATA=idrid ROOT=DIR [SCALE=small] [ARGS="..."]
	@$(BIN)/python -m drgrade.cli.reproduce data=$(DATA) $(if $(ROOT),'data.root=$(ROOT)') $(if $(SCALE),scale=$(SCALE)) $(ARGS)

test: $(READY)  ## the tests, some minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m "not slow and not cluster and not campaign"

test-slow: $(READY)  ## slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow

test-cluster: $(READY)  ## the tests on SLURM, Ray and several processes; need root and Debian's slurm-wlm and munge
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cluster -m cluster

test-campaigns: $(READY)  ## random failures and attacks, 5 minutes on two cores; SCALE=10 for all, SEED=N to repeat
	OMP_NUM_THREADS=1 SCALE=$(or $(SCALE),1) SEED=$(SEED) $(BIN)/python -m pytest -s -n 0 tests/campaigns -m campaign

coverage: $(READY)  ## line coverage of the fast tests, subprocesses included; fails below 90 %
	rm -rf .coverage .coverage.*
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(PARALLEL) -m "not slow and not cluster and not campaign"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(READY)  ## formatter, linter, layers, type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: $(READY)  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: $(READY)  ## speed measurements
	$(BIN)/python benchmarks/demo_drawing.py
	$(BIN)/python benchmarks/preparation.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/busy_machine.py

clean:  ## delete the caches of tools; outputs/ is kept
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info .coverage .coverage.*
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
