# Every target sets itself up: a machine with Python 3.11 or newer and make is enough.
#
#   make demo            train the small model on generated images and show what it finds
#   make test            all fast tests
#   make check           lint, types and tests: what a change must pass
#   make bench           measure this machine; results go to benchmarks/results/
#   make docs            the documentation as a site in site/
#   make help            all targets
#
# Variables: PYTHON (the interpreter to build from), VENV (where to build), SHORT=1 (a short demo),
# WORKERS (processes of the tests), TESTS (which tests: make test TESTS="tests/ops -x"), DURATIONS=20 (list
# the 20 slowest).

SHELL := /bin/sh
VENV ?= .venv
WORKERS ?= 2
DURATIONS ?= 0
TESTS ?=
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)

BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python
# The stamp holds the place of the checkout: an environment does not survive being moved.
STAMP := $(VENV)/.relook-installed
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): moved
endif

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test slow gpu oldest lint format types law check bench docs pages parity wheel lock clean moved
.DEFAULT_GOAL := help

help:  ## these lines
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

install: $(STAMP)  ## only the environment, in .venv

$(STAMP): pyproject.toml constraints.txt
	@python="$(PYTHON)"; test -n "$$python" && "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "relook needs Python 3.11 or newer; $${python:-python3} is older or not there." >&2; \
		echo "Install one, then name it: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
		echo "$(PYTHON) cannot make an environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@echo "$(CURDIR)" > $@

moved:

demo: $(STAMP)  ## train the small model on generated images, evaluate it, write pictures and a page
	$(BIN)/relook demo $(if $(SHORT),--short)

test: $(STAMP)  ## all fast tests
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n $(WORKERS) --dist loadscope \
		$(if $(filter-out 0,$(DURATIONS)),--durations=$(DURATIONS)) $(TESTS)

gpu: $(STAMP)  ## the tests that need a GPU
	$(PY) -m pytest -m gpu $(TESTS)

slow: $(STAMP)  ## the tests that take minutes
	$(PY) -m pytest -m slow $(TESTS)

oldest: $(STAMP)  ## the fast tests with the oldest packages that pyproject.toml allows, in .venv-oldest
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(BIN)/uv pip compile --quiet --python $(VENV)-oldest/bin/python --resolution lowest-direct --extra dev \
		--output-file $(VENV)-oldest/floors.txt pyproject.toml
	$(VENV)-oldest/bin/python -m pip install --quiet --requirement $(VENV)-oldest/floors.txt --editable .
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV)-oldest/bin/python -m pytest -n $(WORKERS) --dist loadscope $(TESTS)

# what editors leave behind, in every text file that git knows: the fixers fix, and fail when they had to
TEXTS = git ls-files -z -- '*.py' '*.md' '*.toml' '*.yaml' '*.yml' '*.txt' '*.j2' Makefile .ci | xargs -0

lint: $(STAMP)  ## ruff, its formatter, spelling, tidy files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	@$(TEXTS) $(BIN)/end-of-file-fixer
	@$(TEXTS) $(BIN)/trailing-whitespace-fixer
	@$(TEXTS) $(BIN)/check-merge-conflict --assume-in-merge
	@git ls-files -z | xargs -0 $(BIN)/check-added-large-files --enforce-all --maxkb=4000

format: $(STAMP)  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## basedpyright, strict
	$(BIN)/basedpyright --pythonpath $(PY)

law: $(STAMP)  ## import rules and the other rules of the structure
	$(BIN)/lint-imports --no-cache
	$(PY) -m pytest tests/architecture

check: lint types test  ## what a change must pass

bench: $(STAMP)  ## every benchmark of benchmarks/, one after the other
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(PY) $$file --save || exit 1; done

pages: $(STAMP)  ## write the generated parts of README.md and docs/ anew
	$(PY) tools/pages.py

parity: $(STAMP)  ## compare with the published code anew, slow training steps too, and write docs/parity.md
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n $(WORKERS) --dist loadscope -m golden --write-parity

docs: pages  ## the documentation as a site in site/
	$(BIN)/zensical build --clean --strict

wheel: $(STAMP)  ## dist/relook-*-py3-none-any.whl
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/relook-*-py3-none-any.whl

lock: $(STAMP)  ## write constraints.txt from what is installed now
	$(PY) tools/lock.py > constraints.txt.new
	mv constraints.txt.new constraints.txt
	@touch $(STAMP)

clean:  ## remove the environment and everything built
	rm -rf $(VENV) $(VENV)-oldest dist build site .cache .pytest_cache .ruff_cache .hypothesis
