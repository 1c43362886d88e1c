# Every target may be run on a fresh clone: what it needs, it sets up first.

PYTHON := .venv/bin/python
PYTEST_ARGS ?=
WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup check test nightly demo bench clean

help: ## show the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

setup: ## install what is missing, make .venv; quick when nothing changed
	@scripts/setup

check: setup ## format, lint, types and import contracts; changes nothing
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy $(wildcard src tests demo bench)
	.venv/bin/lint-imports

test: check ## all checks and all tests
	$(PYTHON) -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

nightly: setup ## property tests with random seeds and many more examples
	$(PYTHON) -m pytest --hypothesis-profile=nightly -m hypothesis $(PYTEST_ARGS)

demo: setup ## a source, a far host and a disaster, on this machine, in about a minute
	$(PYTHON) demo/demo.py

bench: setup ## measure this machine
	$(PYTHON) bench/bench.py

clean: ## remove what setup and the tests made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .demo build dist
	rm -rf src/aimfuse.egg-info
	rm -f src/aimfuse/*.so
	find src tests demo bench -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
