# Each of these does its own set-up on a fresh machine, in .venv, and reuses it the next time:
#   make demo       the main job: stock models against these, on real text
#   make test       all tests that a machine without a GPU can run
#   make bench      measures everything and saves the numbers in bench/results/
#   make readme     fills README's tables from bench/results/
#   make lint       ruff and mypy
#   make packaging  builds and installs the package in every way that is supported (minutes)
#   make gpu-check  on a machine with a GPU, in its own Python environment: GPU tests, then all benches
# PYTHON names the interpreter to start from (3.11 or later).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# Without a GPU the CUDA library is compiled and linked all the same wherever there is an nvcc.
NVCC := $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc) $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
BUILD_SETTINGS := EF_REQUIRE_NATIVE=1 $(if $(NVCC),EF_CUDA=1,)
BUILD_INPUTS := setup.py CMakeLists.txt pyproject.toml $(shell find csrc -type f)

.PHONY: demo test bench readme lint packaging gpu-check setup clean
.DELETE_ON_ERROR:

demo: setup
	$(RUN) -m encoders_fast compare

test: setup
	$(RUN) -m pytest tests

bench: setup
	$(RUN) -m pytest bench/ --save

readme: setup
	$(RUN) -m bench.readme

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

packaging: setup
	$(RUN) -m pytest tests/packaging -m packaging

setup: $(VENV)/built

$(VENV)/requirements-installed: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or later is needed, and $(PYTHON) is {sys.version}")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# Editable, so that commands work from here: Python looks in the current folder first, and finds the libraries there.
$(VENV)/built: $(VENV)/requirements-installed $(BUILD_INPUTS)
	$(BUILD_SETTINGS) $(RUN) -m pip install --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

# A GPU machine brings its own torch, so its environment is used as it is, with what pytest needs on top.
gpu-check:
	$(PYTHON) -m venv --system-site-packages --without-pip .gpu-venv
	.gpu-venv/bin/python -c 'import pytest, pytest_benchmark' || \
	  .gpu-venv/bin/python -m pip install $$(grep -E '^pytest(-benchmark)?==' requirements-dev.txt)
	EF_REQUIRE_NATIVE=1 EF_CUDA=1 .gpu-venv/bin/python -m pip install --no-build-isolation --no-deps --editable .
	.gpu-venv/bin/python -m pytest tests -m gpu
	.gpu-venv/bin/python -m pytest bench/ --save

clean:
	rm -rf build dist *.egg-info $(VENV) .gpu-venv encoders_fast/*.so encoders_fast/_build_report.json
