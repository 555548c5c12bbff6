# Everything a newcomer runs. Each target does its own set-up; .venv is the only thing installed.
#   make demo        data, training in two processes, evaluation, five digits answered and drawn
#   make test        the whole suite, system packages included
#   make test-fast   the developer's loop
#   make test-oldest the developer's loop on the oldest torch that is supported, in an environment of its own
#   make test-slurm  jobs on a real Slurm of two nodes, which the tests start
#   make test-recipes each shipped recipe, trained at a reduced size, and planned at its full one
#   make test-faults runs that are killed, sixty times, and the tests of all other faults
#   make lint        ruff, mypy, import direction

BIN := .venv/bin
# The first Python of a supported version that is on the PATH; override with make PYTHON=…
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)

# Of make test-faults: how many runs are killed, and which.
TRIALS ?= 60
SEED ?= 0

# Tests run side by side. Many of them wait, so that three fill two cores.
SIDE_BY_SIDE := --numprocesses 3 --dist loadscope
FAST := --numprocesses 2 --dist loadscope --hypothesis-profile fast -m "not slow and not slurm and not gpu and not ffcv"
# The oldest versions that pyproject.toml names. Triton 3.6, which torch 2.11 brings, cannot interpret kernels under numpy 2.4.
OLDEST := "torch==2.11.*" "torchvision==0.26.*" "numpy==2.3.*"

.PHONY: demo test test-slurm test-fast test-oldest test-recipes test-faults lint clean
.DELETE_ON_ERROR:

demo: .venv/.installed
	$(BIN)/tdformer data prepare mnist data/mnist
	$(BIN)/tdformer train configs/demo.yaml --processes 2
	run="$$(ls -td runs/demo-* | head -n 1)"; $(BIN)/tdformer evaluate "$$run" --processes 2 && \
	$(BIN)/tdformer predict "$$run" data/mnist/val --samples 5 --top 2 --maps "$$run/maps"

test: .venv/.installed-ffcv
	TDFORMER_REQUIRE_ALL=1 $(BIN)/pytest $(SIDE_BY_SIDE)

test-slurm: .venv/.installed-ffcv
	$(BIN)/pytest -m slurm

test-fast: .venv/.installed-dev
	$(BIN)/pytest $(FAST)

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/pytest $(FAST)
	.venv-oldest/bin/pytest -m "slow and not gpu" tests/unit/test_triton_kernels.py

test-recipes: .venv/.installed-dev
	$(BIN)/pytest --numprocesses 2 tests/recipes/every_recipe.py

test-faults: .venv/.installed-dev
	$(BIN)/python -m tests.faults.trials --trials $(TRIALS) --seed $(SEED)
	$(BIN)/pytest $(SIDE_BY_SIDE) tests/faults

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .venv-oldest build *.egg-info

%/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed and was not found on the PATH; install it or use make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $*

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --constraint constraints.txt --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev,bench,corrupt]'
	@touch $@

.venv/.installed-ffcv: .venv/.installed-dev tests/install_system_packages.sh
	bash tests/install_system_packages.sh
	$(BIN)/pip install --constraint constraints.txt --editable '.[ffcv]'
	@touch $@

.venv-oldest/.installed: .venv-oldest/bin/python pyproject.toml constraints.txt
	grep -Ev '^(torch|torchvision|torchaudio|triton|numpy|nvidia-.*|cuda-.*)==' constraints.txt > .venv-oldest/constraints.txt
	.venv-oldest/bin/pip install --constraint .venv-oldest/constraints.txt $(OLDEST) --editable '.[dev,bench,corrupt]'
	@touch $@
