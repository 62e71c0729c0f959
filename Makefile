# `make run` and `make test` build what they need; `make help` lists the rest.
PYTHON ?= python3
# The Python of the machine with the GPU, for `make gpu-wheels`.
GPU_PYTHON ?= 3.12
# `--tests-only` leaves out the wheels that only `make bench-gpu` needs; see `tools/gpu.py --help`.
GPU_WHEELS ?=
# Further arguments of the GPU tests (pytest's) or benchmarks, for example `make test-gpu GPU_ARGS='-k logits'`.
GPU_ARGS ?=
# A package index that holds CPU-only builds of torch, for machines without an NVIDIA GPU (see README).
TORCH_INDEX ?=
# How many processes run tests; each may start servers and models of its own, of 1 to 2 GB.
TEST_PROCESSES ?= 2
# Optional parts to install, for example `make run EXTRAS=cuda` on a machine with an NVIDIA GPU.
EXTRAS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# setuptools warns of every editable installation.
EDITABLE := PYTHONWARNINGS=ignore $(PIP) --editable
TORCH := torch$(shell sed -n 's/^torch\(==.*\)/\1/p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help run test lint format generate check-generated breaking bench clean test-gpu bench-gpu gpu-wheels

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

run: $(VENV)/.run  ## Start the server with an example project, ready to chat
	$(BIN)/llamastead serve --example quickstart_rag

test: $(VENV)/.dev  ## Run the tests
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

lint: $(VENV)/.dev  ## Check style, types and the contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy server/llamastead_server tools benchmarks
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code

format: $(VENV)/.dev  ## Rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

generate: $(VENV)/.dev  ## Rewrite gen/ from proto/
	$(BIN)/python tools/generate.py

check-generated: generate  ## Fail if gen/ is not what proto/ says
	@test -z "$$(git status --porcelain gen)" || { git status --short gen; git diff --stat gen; \
	  echo "gen/ differs from proto/: run 'make generate' and commit the result." >&2; exit 1; }

breaking: $(VENV)/.dev  ## Fail if the contract breaks clients of the last commit
	$(BIN)/buf breaking --against '.git#ref=HEAD'

bench: $(VENV)/.dev  ## Measure overheads, side by side
	$(BIN)/python -m benchmarks

test-gpu:  ## Run the tests that need an NVIDIA GPU, with this machine's own PyTorch
	$(PYTHON) tools/gpu.py test $(GPU_ARGS)

bench-gpu:  ## Measure ExLlamaV2 on an NVIDIA GPU, raw and through the server
	$(PYTHON) tools/gpu.py bench $(GPU_ARGS)

gpu-wheels: $(VENV)/.dev  ## Collect the wheels that a GPU machine without network lacks
	$(BIN)/python tools/gpu.py wheels --python $(GPU_PYTHON) $(GPU_WHEELS)

clean:  ## Remove what make has built
	rm -rf $(VENV) .venv-gpu build .mypy_cache .pytest_cache .ruff_cache

# torch goes first and alone: its index may hold nothing else.
$(VENV)/.run: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Llamastead into $(VENV): some minutes the first time."
	$(PIP) --upgrade pip
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(EDITABLE) '.$(if $(EXTRAS),[$(EXTRAS)])'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(EDITABLE) '.[dev]'
	@touch $@
