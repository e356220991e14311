# `make bench` and `make test` do all the set-up they need; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup bench test test-all lint format type lock clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make .venv and install everything

$(READY): pyproject.toml constraints.txt
	PYTHON="$(PYTHON)" sh .ci/install $(VENV)
	@touch $@

bench: $(READY) ## run benchmarks/quick.yaml on drawn films: no download, CPU is enough
	$(BIN)/cxrbench bench benchmarks/quick.yaml --gpus 0

test: $(READY) ## run the tests (the slow ones are left out)
	$(BIN)/python -m pytest

test-all: $(READY) ## run all tests, the slow ones too
	CXRBENCH_SLOW=1 $(BIN)/python -m pytest

lint: $(READY) ## check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(READY) ## repair style
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

type: $(READY) ## check types
	$(BIN)/mypy

lock: ## write constraints.txt anew from pyproject.toml
	uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-annotate --no-header \
	  --no-emit-index-url --universal -q -o constraints.txt

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
