# What a newcomer and CI run: `make demo`, `make test`, `make check`. Needs Python 3.11+ and make.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/made-for
# A copied or moved checkout has an environment that points elsewhere: the stamp names its place.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(shell rm -f $(STAMP))
else ifneq ($(shell $(BIN)/python -c 'print(1)' 2>/dev/null),1)
$(shell rm -f $(STAMP))
endif

.SILENT:
.PHONY: help demo test check lint chaos clean

help: ## show this
	grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(STAMP) ## replay a recorded chat session through the bus, with a crash half-way
	$(BIN)/python -m rosey demo

test: $(STAMP) ## run all tests
	$(BIN)/pytest -q -n auto

check: lint ## all that CI runs: lint, types, layers, tests with coverage
	$(BIN)/pytest -q -n auto --cov --cov-report=term

lint: $(STAMP)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check . || \
		{ echo "not formatted: run $(BIN)/ruff format ."; exit 1; }
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-cache > .lint-imports.log || { cat .lint-imports.log; exit 1; }
	rm .lint-imports.log
	echo "lint, types and layers are fine"

chaos: $(STAMP) ## the fault tests, 100 cycles each, and the table in docs/reliability.md
	ROSEY_FAULT_CYCLES=$${ROSEY_FAULT_CYCLES:-100} ROSEY_FAULT_TABLE=docs/reliability.md \
		$(BIN)/pytest -q -m fault --timeout 3600

clean: ## remove the environment and everything made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* dist build

# pip installs uv, because pip before 25.1 knows no dependency groups.
$(STAMP): pyproject.toml
	test -n "$(PYTHON)" || { echo "rosey needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	echo "making .venv (once, or when pyproject.toml changed) ..."
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check uv 2>.venv/pip.log || \
		{ cat .venv/pip.log; exit 1; }
	UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=.venv $(BIN)/uv pip install -q --group dev -e '.[all]'
	echo '$(CURDIR)' > $(STAMP)
