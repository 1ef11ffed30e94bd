# Two commands for a fresh machine with Python >= 3.11:
#   make quickstart    environment, install, then a whole search on scikit-learn's digits
#   make test          environment if needed, then the tests
# VENV=DIR puts the environment elsewhere, PYTHON=... chooses the interpreter.

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
STUDY ?= runs/digits
READY := $(VENV)/.installed

.PHONY: quickstart test lint clean-environment

quickstart: $(READY)
	$(VENV)/bin/cedm-ray search search_spaces/digits.yaml --study $(STUDY)

test: $(READY)
	$(VENV)/bin/python -m pytest

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 was found; install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "installing into $(VENV): some 6 GB with the CUDA build of torch, which also runs on CPUs"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@

clean-environment:
	rm -rf $(VENV)
