# Everything that a developer or CI runs. `make demo` and `make test` need Python 3.11 and nothing else.

VENV ?= .venv
BIN := $(VENV)/bin
# What is installed stays, unless another is named.
TARGET ?= $(or $(patsubst $(VENV)/.installed-%,%,$(firstword $(wildcard $(VENV)/.installed-*))),cpu)
STAMP := $(VENV)/.installed-$(TARGET)
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
OUTPUT ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint format types imports check audit lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 12

setup: $(STAMP)  ## .venv from requirements/$(TARGET).txt (TARGET=cpu or gpu)

$(STAMP): requirements/$(TARGET).txt requirements/bootstrap.txt scripts/setup_env.sh scripts/uv_env.sh pyproject.toml
	@scripts/setup_env.sh $(VENV) $(TARGET)
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: setup  ## the bundled example, a few minutes on two cores (OUTPUT=DIR)
	@$(BIN)/genal-ray run demo --output-dir $(OUTPUT)

test: setup  ## all tests
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-fast: setup  ## the tests that start no Ray actors
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not ray and not slow and not gpu"

lint: setup  ## ruff
	@$(BIN)/ruff check

format: setup  ## sort imports and mend what ruff can mend
	@$(BIN)/ruff check --fix

types: setup  ## mypy --strict
	@$(BIN)/mypy

imports: setup  ## cluster -> actors -> genal_ray
	@$(BIN)/lint-imports

check: lint types imports test  ## what CI runs

audit: setup  ## known vulnerabilities of the locked packages; says so where the advisory service cannot be reached
	@$(BIN)/python scripts/audit.py requirements/$(TARGET).txt

lock: setup  ## requirements/*.txt from pyproject.toml (UPGRADE=--upgrade takes the newest versions)
	@scripts/lock.sh $(VENV) $(UPGRADE)

clean:  ## remove the environment and caches; runs stay
	@rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .hypothesis
