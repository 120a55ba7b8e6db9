# Every target makes .venv when it is missing and installs only when pyproject.toml or
# constraints.txt is newer than the last installation. `make help` lists the targets.

SHELL := /bin/bash
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
RECIPE := pyproject.toml constraints.txt
PEER_BENCHES = bench/time_gguf.py bench/time_hqq.py bench/kernels.py bench/kernels_correctness.py \
	bench/packed_model.py
BENCHES = $(filter-out bench/record.py bench/exactness.py $(PEER_BENCHES),$(wildcard bench/[a-z]*.py))

# Where to start from: PYTHON=… or the first of these that is new enough.
PYTHON ?= $(firstword $(foreach python,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell command -v $(python) >/dev/null 2>&1 \
	&& $(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))))

.PHONY: help serve lab test test-all check faults format bench exactness binder-check gpu-check clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 16

serve: $(VENV)/.installed  ## serve the lessons and open a browser (ARGS="--port 9000 …")
	@$(BIN)/qviz serve $(ARGS)

lab: $(VENV)/.installed  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --ServerApp.root_dir=notebooks $(ARGS)

test: $(VENV)/.installed-test  ## run the tests (ARGS="-k gptq -x …")
	@$(BIN)/python tools/run_tests.py $(ARGS)

test-all: $(VENV)/.installed-test  ## run the slow tests as well
	@$(BIN)/python tools/run_tests.py --slow $(ARGS)

check: $(VENV)/.installed-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

faults: $(VENV)/.installed-test  ## put small faults in and say which no test notices (ARGS="--only FILE --count 60 …")
	@$(BIN)/python tools/put_faults.py $(ARGS)

format: $(VENV)/.installed-dev  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-bench $(PEERS)/.installed  ## run the benchmarks and record what they find
	@set -e; for script in $(BENCHES); do echo "== $$script"; $(BIN)/python "$$script" $(ARGS); done
	@set -e; for script in $(PEER_BENCHES); do echo "== $$script"; $(PEERS)/bin/python "$$script" $(ARGS); done

exactness: $(VENV)/.installed-test $(PEERS)/.installed  ## every method against the real systems (builds llama.cpp)
	@$(PEERS)/bin/python bench/exactness.py --heavy
	@$(BIN)/python bench/exactness.py --merge

binder-check: $(VENV)/.installed-test  ## build binder/ in a fresh environment and open a lesson
	@$(BIN)/python tools/binder_check.py $(ARGS)

gpu-check:  ## on a GPU, with its own python3 and nothing installed: failing tests, then figures (ARGS="--minutes 7 …")
	@$(or $(GPU_PYTHON),python3) tools/gpu_check.py $(ARGS)

clean:  ## remove environments and caches
	rm -rf $(VENV) $(PEERS) .binder-venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "qviz needs Python 3.11 or newer; found $$(python3 --version 2>&1 || echo none)." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.12 …" >&2; exit 1; fi
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Could not make $(VENV); Debian and Ubuntu need the package python3-venv." >&2; exit 1; }

# Installs EXTRA into the environment and leaves a stamp. $(1) is the stamp's ending.
define install
	@echo "Installing qviz$(if $(1),[$(1)],) and what it needs"
	@$(PIP) --editable ".$(if $(1),[$(1)],)"
	@touch $@
endef

$(VENV)/.installed: $(BIN)/python $(RECIPE)
	$(call install,)

$(VENV)/.installed-%: $(BIN)/python $(RECIPE)
	$(call install,$*)
	@touch $(VENV)/.installed

# The oracles that pin other versions of what we use: their own environment, only torch held.
$(PEERS)/.installed: pyproject.toml
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@echo "Installing the heavy oracles into $(PEERS); llama.cpp is compiled, which takes minutes"
	@$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet \
		"$$(grep '^torch==' constraints.txt)" --editable ".[peers]"
	@touch $@
