# The README's commands. `make demo` and `make test` need nothing but Python 3.11 or newer and pip.
VENV ?= .venv
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
SOURCES := $(shell find src -type f -not -name '*.pyc')
MADE_FROM := pyproject.toml constraints.txt README.md LICENSE

.PHONY: demo test lint types format clean

demo: $(VENV)/.installed  ## harden the bundled victims and show what happened
	$(BIN)/quantinel demo -o demo-output --force

test: $(VENV)/.installed-dev  ## the tests that need neither large data nor much time
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/python -m mypy

format: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:
	rm -rf $(VENV) demo-output build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer was found; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A development install is editable and serves `make demo` as well; otherwise changed sources are installed again.
$(VENV)/.installed: $(MADE_FROM) $(SOURCES) | $(BIN)/python
	@if [ $(VENV)/.installed-dev -nt pyproject.toml ] && [ $(VENV)/.installed-dev -nt constraints.txt ]; then :; \
	else echo "installing quantinel into $(VENV)"; $(PIP) . && rm -f $(VENV)/.installed-dev; fi
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing quantinel and the development tools into $(VENV)"
	$(PIP) -e '.[dev]'
	@touch $@
