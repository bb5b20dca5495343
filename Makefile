# `make demo` and `make test` do all the set-up they need. A bare Debian or Ubuntu lacks only:
#   apt-get install -y git make python3 python3-venv
.DEFAULT_GOAL := help
.PHONY: help demo test check audit parity bench hostile setup lint types layers format clean

PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check
PIP_INDEX ?=
BIN := .venv/bin
PYTEST_ARGS ?=
PARITY_ARGS ?=
BENCH_ARGS ?=
HOSTILE_ARGS ?=

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

demo: .venv/.demo  ## segment a real CT scan (LIDC-IDRI-0001, from PyPI); ends with a label map, a table and a picture
	$(BIN)/python -m tools.demo --out demo

test: setup lint types layers  ## set up, lint, check types and layers, run the fast tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check:  ## what CI runs: `make test` with the long tests, the container among them
	$(MAKE) test PYTEST_ARGS="-m '' $(PYTEST_ARGS)"

audit: build/audit/bin/pip-audit  ## known vulnerabilities of what the images hold; fails if pypi.org cannot tell
	build/audit/bin/pip-audit --strict --require-hashes --disable-pip $(addprefix -r ,$(wildcard app/requirements-*.txt))

build/audit/bin/pip-audit: tools/requirements-audit.txt
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip --disable-pip-version-check install --quiet -r tools/requirements-audit.txt
	touch $@

parity: setup  ## our label maps beside those of real nnU-Net v1 and v2 (PARITY_ARGS=--help tells more)
	$(BIN)/python -m tools.parity --pip-options "$(PIP_INDEX)" $(PARITY_ARGS)

bench: setup  ## time and memory beside real nnU-Net v1 and v2 (BENCH_ARGS=--help tells more, --quick takes a minute)
	$(BIN)/python -m tools.bench --pip-options="$(PIP_INDEX)" $(BENCH_ARGS)

hostile: setup  ## try to break the app: mutated files, faults, endurance, determinism (HOSTILE_ARGS=--help tells more)
	$(BIN)/python -m tools.hostile all $(HOSTILE_ARGS)

setup: .venv/.tests  ## make .venv with all that the tests need (PyTorch is the large part)

.venv/.created:
	$(PYTHON) -m venv .venv
	touch $@

# Pinned and complete, so --no-deps: OpenVINO would bring a telemetry package that nothing here needs.
.venv/.demo: .venv/.created app/requirements-cpu.txt tools/requirements.txt
	$(PIP) install --quiet --no-deps -r app/requirements-cpu.txt
	$(PIP) install --quiet -r tools/requirements.txt
	touch $@

.venv/.tests: .venv/.demo tests/requirements.txt tools/requirements-train.txt tools/requirements-train-no-deps.txt
	$(PIP) install --quiet $(PIP_INDEX) -r tests/requirements.txt
	$(PIP) install --quiet --no-deps -r tools/requirements-train-no-deps.txt
	touch $@

lint: setup  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## mypy --strict
	$(BIN)/mypy

layers: setup  ## import-linter: app never imports tools, torch only where it belongs
	$(BIN)/lint-imports

format: setup  ## rewrite the code in ruff's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what make made
	rm -rf .venv demo build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
