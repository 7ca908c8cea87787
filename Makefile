# Everything runs in .venv, which `setup` makes of a bare Python 3.11 with pip. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# What .venv is made with. Any Python from 3.11 on will do.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := grammars dag runtime bls

# `make serve REPOSITORY=models FLAGS="--http-port 9000"` serves another repository in another way.
REPOSITORY ?=
EXAMPLES := $(wildcard examples/ensembles/*/models)
FLAGS ?=
# `make test ARGS="tests/unit -k batcher"` runs some of the tests; `make bench ARGS="--repeat 1"` a shorter comparison.
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test check types bench

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with everything that the other targets need

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV) with $(PYTHON) (some minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(READY) ## serve the OCR example, send it pictures over gRPC and HTTP, and show where the time went
	@$(BIN)/python examples/demo.py

serve: $(READY) ## serve the examples, or REPOSITORY, until Ctrl-C
	@if [ -z "$(REPOSITORY)" ]; then for script in examples/ensembles/*/prepare.py; do $(BIN)/python $$script; done; fi
	@exec $(BIN)/cantata serve $(addprefix --model-repository=,$(or $(REPOSITORY),$(EXAMPLES))) $(FLAGS)

test: $(READY) ## run the tests
	$(BIN)/python -m pytest $(ARGS)

check: $(READY) types ## lint, formatting, types and architecture
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy build/typing/cantata
	$(BIN)/python -m pytest -q tests/unit/test_architecture.py

# mypy reads the packages where they are once installed: cantata.dag, not dag.
types:
	@mkdir -p build/typing/cantata
	@ln -sfn ../../../cantata/__init__.py build/typing/cantata/__init__.py
	@ln -sfn ../../../cantata/py.typed build/typing/cantata/py.typed
	@for package in $(PACKAGES); do ln -sfn ../../../$$package build/typing/cantata/$$package; done

bench: $(READY) ## compare with the real Triton server, where there is one, and with the limits
	$(BIN)/python benchmarks/pipelines.py $(ARGS)
	$(BIN)/python benchmarks/limits.py
