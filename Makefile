# Each of these does its own set-up on a fresh machine, in .venv, and reuses it the next time:
#   make demo       the main job: stock models against these, on real text
#   make test       all tests that a machine without a GPU can run
#   make parity     the models' tests with three versions of transformers; `make parity-5.17.0` for one of them
#   make bench      measures everything and saves the numbers in bench/results/
#   make peers      installs what the benches of models compare with (`make bench` does too)
#   make readme     fills README's tables from bench/results/
#   make lint       ruff and mypy
#   make packaging  builds and installs the package in every way that is supported (minutes)
#   make gpu-check  on a machine with a GPU, in its own Python environment: tests on the device, then all benches
# PYTHON names the interpreter to start from (3.11 or later).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# Without a GPU the CUDA library is compiled and linked all the same wherever there is an nvcc.
NVCC := $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc) $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
BUILD_SETTINGS := EF_REQUIRE_NATIVE=1 $(if $(NVCC),EF_CUDA=1,)
BUILD_INPUTS := setup.py CMakeLists.txt pyproject.toml $(shell find csrc -type f)

TRANSFORMERS := 5.0.0 5.17.0 5.23.0
PARITY := $(TRANSFORMERS:%=parity-%)

.PHONY: demo test parity $(PARITY) bench peers readme lint packaging gpu-check gpu-build gpu-test gpu-sanitize gpu-bench setup clean
.DELETE_ON_ERROR:

demo: setup
	$(RUN) -m encoders_fast compare

test: setup $(VENV)/torchao
	$(RUN) -m pytest tests

parity: $(PARITY)

# The package is not installed: Python looks in the current folder first, and finds it there with the libraries of .venv,
# which serve every transformers.
$(PARITY): parity-%: setup .parity/%/installed
	.parity/$*/bin/python -m pytest tests/models

# Which tokenizers goes with it is transformers' own business.
.parity/%/installed: requirements-dev.txt
	$(PYTHON) -m venv .parity/$*
	sed -e 's/^transformers==.*/transformers==$*/' -e 's/^tokenizers==.*/tokenizers/' requirements-dev.txt > .parity/$*/requirements.txt
	.parity/$*/bin/python -m pip install --disable-pip-version-check -r .parity/$*/requirements.txt
	@touch $@

# Not in the environment, but beside it: transformers imports torchao wherever it finds it, and torchao complains about the
# CUDA that it misses. One test looks here.
$(VENV)/torchao: $(VENV)/requirements-installed
	$(RUN) -m pip install --disable-pip-version-check --no-deps --target $@ torchao==0.18.0
	@touch $@

bench: setup peers
	$(RUN) -m pytest bench/ --save

peers: $(VENV)/peers-installed

$(VENV)/peers-installed: requirements-peers.txt $(VENV)/requirements-installed
	$(RUN) -m pip install --disable-pip-version-check --no-deps -r requirements-peers.txt
	@touch $@

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

# With the Python that is there, and without network. Its parts take less than nine minutes each: PART=build, test, sanitize
# or bench runs one of them. RESULTS_DIR is where the results go; COMMIT says what is measured where there is no git.
gpu-check: $(if $(PART),gpu-$(PART),gpu-build gpu-test gpu-sanitize gpu-bench)

gpu-build:
	EF_REQUIRE_NATIVE=1 EF_CUDA=1 $(PYTHON) -m pip install --no-build-isolation --no-deps --editable .

gpu-test:
	$(PYTHON) -m pytest tests -m gpu
	$(PYTHON) -m pytest tests/ops tests/modules

gpu-sanitize:
	compute-sanitizer --error-exitcode 1 $(PYTHON) -m pytest tests/ops/test_devices.py -k "on_the_gpu and triton and float16"

gpu-bench:
	COMMIT=$(COMMIT) $(PYTHON) -m pytest bench/ops bench/models --device cuda --save $(if $(RESULTS_DIR),--results $(RESULTS_DIR))

clean:
	rm -rf build dist *.egg-info $(VENV) .parity encoders_fast/*.so encoders_fast/_build_report.json
