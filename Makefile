# From a fresh clone: `make demo` or `make test`. Both make .venv first, and use it again the next time.
# Variables of the environment, such as GANDEFENSE_DATA, reach every command.

VENV := .venv
STAMP := $(VENV)/.installed
LOG := $(VENV)/install.log
RUN := OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/python

# Each candidate is really started: a version manager's shim may exist for a Python that is not installed.
CANDIDATES := python3.13 python3.12 python3.11 python3
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach p,$(CANDIDATES),$(shell $(p) -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && echo $(p))))

.DEFAULT_GOAL := help
.PHONY: help env demo test lint clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' Makefile
	@echo "GANDEFENSE_DATA=FOLDER names the data folder; PYTHON=PATH the Python (3.11 or newer) that makes .venv"

env: $(STAMP)  ## the environment alone, in .venv; the other targets make it too

demo: $(STAMP)  ## a short real training, then both defences measured on real CIFAR-10 images
	@$(RUN) tools/demo.py

test: $(STAMP)  ## the whole test suite, a process per core (at most 4); PYTEST_ADDOPTS="-m 'not slow'" leaves out the slow ones
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## style: ruff's rules and its formatting
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m ruff format --check .

clean:  ## remove .venv, caches and build leftovers; data and runs stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer (tried: $(CANDIDATES)); install one, or name it: make PYTHON=PATH" >&2; exit 1; }
	@$(PYTHON) -c '$(NEW_ENOUGH)' || { echo "error: $(PYTHON) is not a Python 3.11 or newer" >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON): 1-2 minutes, and several GB where the package registry serves CUDA builds of torch …"
	@mkdir -p $(VENV)
	@$(PYTHON) -m venv $(VENV) >$(LOG) 2>&1 || \
		{ echo "error: $(PYTHON) cannot make a virtual environment (Debian and Ubuntu: install python3-venv); see $(LOG)" >&2; exit 1; }
	@PIP_RETRIES=2 $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' >$(LOG) 2>&1 || \
		{ echo "error: pip could not install the dependencies (is there a network?): $$(grep -iE '^ *error: ' $(LOG) | grep -v subprocess- | head -n 1 | sed 's/^ *//'); see $(LOG)" >&2; exit 1; }
	@touch $(STAMP)
