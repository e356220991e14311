# `make bench` and `make test` do all the set-up they need; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process a core, each with one thread; the tests of a file share what they build.
PARALLEL ?= -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
ALONE := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup bench test test-all perf lint format type audit lock clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make .venv and install everything

$(READY): pyproject.toml constraints.txt
	PYTHON="$(PYTHON)" sh .ci/install $(VENV)
	@touch $@

bench: $(READY) ## run benchmarks/quick.yaml on drawn films: no download, CPU is enough
	$(BIN)/cxrbench bench benchmarks/quick.yaml --gpus 0

test: $(READY) ## run the tests (the slow ones are left out)
	$(ALONE) $(BIN)/python -m pytest $(PARALLEL)

test-all: $(READY) ## run all tests, the slow ones too
	CXRBENCH_SLOW=1 $(ALONE) $(BIN)/python -m pytest $(PARALLEL)

perf: $(READY) ## time the suite against peers; minutes, CPU is enough
	$(BIN)/cxrbench perf --out benchmarks/performance

lint: $(READY) ## check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(READY) ## repair style
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

type: $(READY) ## check types
	$(BIN)/mypy

# --strict: a package that the advisory service does not know is a failure, not a pass.
audit: $(READY) ## look up all pinned dependencies in the advisories of PyPI; needs the network
	PATH="$$PATH:$(abspath $(BIN))" uv tool run --from pip-audit==2.10.1 pip-audit -r constraints.txt \
	  --no-deps --disable-pip --progress-spinner off --strict

lock: ## write constraints.txt anew from pyproject.toml
	uv pip compile pyproject.toml --extra dev --extra ray --python-version 3.11 --no-annotate --no-header \
	  --no-emit-index-url --universal -q -o constraints.txt

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
