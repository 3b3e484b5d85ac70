# Every target sets up .venv by itself; when it exists and nothing changed, that costs nothing.
# Targets share it and take all cores on their own, so they never run side by side (make -j).
.NOTPARALLEL:
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# What is installed: the product alone, or with all that development needs. pip would compile every
# file on one core; the demo compiles what it imports, and for the tests all cores compile.
PRODUCT := $(VENV)/.laura-installed
DEV := $(VENV)/.laura-dev-installed
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable
DEMO := recipes/micro.yaml
COVERAGE_FLOOR := 80
# Tests of one file stay together; each process computes with one thread.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
# A link or a heading that is not there is an error; material's word on mkdocs' own future is not ours.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
BUILDER ?= $(shell for name in podman docker buildah; do \
	if $$name info >/dev/null 2>&1; then echo $$name; break; fi; done)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# The first Python of 3.11-3.13 that really runs (a shim may exist and not work).
# Override with `make test PYTHON=/path/to/python`.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3 python; do \
	if $$candidate -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	>/dev/null 2>&1; then echo $$candidate; break; fi; done)

.PHONY: help setup demo test test-fast test-slow test-gpu browser postgres check format bench parity micro-base \
	calibration docs dist image lock sbom clean

help:  ## Say what each target does
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Laura needs Python 3.11, 3.12 or 3.13, none was found;" \
		"install one, or say make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(PRODUCT): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) .
	touch $@

# Some packages hold files of other Pythons, which do not compile.
$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $(PRODUCT) $@

setup: $(DEV)  ## Make .venv with everything in it, the tools for development too

demo: $(PRODUCT)  ## Compare LoRA and full finetuning on the micro laboratory (about 8 minutes)
	$(BIN)/laura compare $(DEMO)

test: test-fast test-slow  ## Run every test but those that need a GPU

test-fast: $(DEV)  ## Run the unit tests (about eight minutes on two cores)
	$(PYTEST) -m "not slow and not gpu" \
		--cov --cov-report=term --cov-fail-under=$(COVERAGE_FLOOR)

test-slow: $(DEV)  ## Run the tests that load the real model, kill runs, and so on
	$(PYTEST) -m "slow and not gpu" --durations=10

browser:  ## Install Chromium for the browser tests (Debian, Ubuntu; as root or by sudo)
	@for name in "$$LAURA_CHROMIUM" chromium chromium-browser google-chrome; do \
	if [ -n "$$name" ] && command -v "$$name" >/dev/null; then exit 0; fi; done; \
	as=; if [ "$$(id -u)" != 0 ]; then as=sudo; fi; \
	$$as apt-get update && $$as apt-get install -y --no-install-recommends chromium

postgres:  ## Install PostgreSQL for the tests of several servers (Debian, Ubuntu; as root or by sudo)
	@if ls /usr/lib/postgresql/*/bin/pg_ctl >/dev/null 2>&1 || command -v pg_ctl >/dev/null; then exit 0; fi; \
	as=; if [ "$$(id -u)" != 0 ]; then as=sudo; fi; \
	$$as apt-get update && $$as apt-get install -y --no-install-recommends postgresql

test-gpu: $(DEV)  ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

check: $(DEV)  ## Lint, formatting, types, every link of the documentation, the size of each room
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(SITE)
	$(BIN)/python scripts/size.py

format: $(DEV)  ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)  ## Time Laura beside its peers (long; installs them for this alone)
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/evaluation.py
	$(BIN)/python benchmarks/spectra.py
	$(BIN)/python benchmarks/cohort.py
	$(BIN)/python benchmarks/serving.py

parity: $(DEV)  ## Compare 200 items a task with lm-eval (LAURA_DATA, or else the Hub)
	$(BIN)/python benchmarks/parity_lm_eval.py

micro-base: $(DEV)  ## Pretrain the micro laboratory's base anew (about 6 minutes)
	$(BIN)/python scripts/make_micro_base.py

calibration: $(PRODUCT)  ## Check the judge's error rates on simulated studies (3 to 5 minutes)
	$(BIN)/python scripts/calibrate.py

docs: $(DEV)  ## Write docs/recipe.md from the recipe's own descriptions, and the pages to site/
	$(BIN)/python scripts/write_recipe_reference.py
	$(SITE)

dist: $(DEV)  ## Build wheel and sdist into dist/, as they go to PyPI
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

image:  ## Build the server's image, tagged laura, with podman, docker or buildah
	@if [ -z "$(BUILDER)" ]; then \
	echo "no image is built: neither podman, docker nor buildah works here" >&2; exit $(if $(CI),0,2); fi; \
	$(BUILDER) build -f deploy/Containerfile -t laura \
		--build-arg PIP_EXTRA_INDEX_URL="$$PIP_EXTRA_INDEX_URL" .

lock: $(DEV)  ## Write the installed versions to constraints.txt, hashes to deploy/ (needs uv)
	$(BIN)/python scripts/write_constraints.py
	head -n 4 deploy/requirements.txt >$(VENV)/lock.txt
	$(BIN)/python -c "import torch; print('torch==' + torch.__version__.split('+')[0])" >$(VENV)/torch.txt
	echo hatchling | uv pip compile pyproject.toml - --extra signing --extra postgres --universal --python-version 3.11 \
		--constraint constraints.txt --constraint $(VENV)/torch.txt --generate-hashes --no-header \
		--no-annotate --quiet >>$(VENV)/lock.txt
	mv $(VENV)/lock.txt deploy/requirements.txt

sbom: $(PRODUCT)  ## Write sbom.json, what this environment's Laura is made of (CycloneDX)
	$(BIN)/python scripts/sbom.py >sbom.json

clean:  ## Remove .venv, caches and builds (studies and the model cache stay)
	rm -rf $(VENV) .venvs build dist site *.egg-info .coverage* .pytest_cache .mypy_cache \
		.ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
