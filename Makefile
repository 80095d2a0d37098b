# Two commands do everything on a fresh machine:
#   make compare   sets itself up, trains, measures, draws   (ARGS passes overrides: make compare ARGS="seed=1")
#   make test      sets itself up, checks style and types, passes the tests
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: compare test

compare: $(READY)
	$(VENV)/bin/python -m harness $(ARGS)

test: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	OMP_WAIT_POLICY=passive $(VENV)/bin/python -m pytest -n 2 --dist worksteal

# The virtual environment is made where it is missing and made anew where what it was made from has changed.
$(READY): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)
