# Everything a developer or a new user runs. Each target starts from nothing but python3 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(shell find protos -name '*.proto')
INSTALL_INPUTS := pyproject.toml hatch_build.py scripts/protos.py $(PROTOS)
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 5000
PYTEST := $(BIN)/python -m pytest

WEB := services/gateway/web_dist/index.html
WEB_INPUTS := scripts/web.py $(shell find web -name node_modules -prune -o -type f -not -name openapi.json -not -name schema.d.ts -print)

.PHONY: help setup web demo up test test-all browser lint lock licences sbom format protos hostile fuzz properties soak faults bench assets test-assets clean
help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.dev web test-assets ## create .venv, install everything, fetch weights and data

# torch comes first: pip then takes a CPU build where one is at hand, and torchvision fits itself to it.
$(VENV)/.runtime: $(INSTALL_INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --no-compile torch==2.13.0
	$(BIN)/pip install --disable-pip-version-check --no-compile -e ".[all]"
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/pip install --disable-pip-version-check --no-compile -e ".[all,dev]"
	@touch $@

web: $(WEB) ## build the workbench that the gateway serves

$(WEB): $(VENV)/.runtime $(WEB_INPUTS) $(wildcard services/gateway/http/*.py)
	$(BIN)/pip install --disable-pip-version-check --no-compile -e ".[web]"
	$(BIN)/python scripts/web.py build

assets: $(VENV)/.runtime ## fetch weights and data into the cache
	$(BIN)/python -m services.common.assets --for demo

test-assets: $(VENV)/.runtime
	$(BIN)/python -m services.common.assets --for test

demo: $(VENV)/.runtime web assets ## run the whole thing on real photos and write a report
	$(BIN)/stillhouse demo

up: $(VENV)/.runtime web assets ## start Redis and the four services in the foreground
	$(BIN)/stillhouse up

protos: $(VENV)/.dev ## generate gen/ from protos/
	$(BIN)/python scripts/protos.py --buf

lint: protos ## ruff, mypy strict, import-linter, deploy/, buf lint, buf breaking
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_deploy.py
	$(BIN)/python scripts/lock.py --check
	$(BIN)/python scripts/licences.py --check
	$(BIN)/buf lint
	@if git rev-parse -q --verify origin/main:protos >/dev/null 2>&1; then \
	  rm -rf .deps/main && mkdir -p .deps/main/.deps && \
	  git archive origin/main protos buf.yaml | tar -x -C .deps/main && \
	  cp -r .deps/googleapis .deps/main/.deps/ && \
	  echo buf breaking && $(BIN)/buf breaking --against .deps/main; fi

lock: $(VENV)/.dev ## pin and hash what images install, anew
	$(BIN)/pip install --disable-pip-version-check --no-compile -e ".[lock]"
	$(BIN)/python scripts/lock.py

licences: $(VENV)/.dev ## list the licences of all dependencies, weights and data anew
	$(BIN)/python scripts/licences.py

sbom: $(VENV)/.dev ## write a CycloneDX SBOM for each image into sbom/
	$(BIN)/python scripts/sbom.py

format: $(VENV)/.dev ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint web test-assets ## lint, the workbench, and every test but the slow ones
	$(BIN)/python scripts/web.py test
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not browser" --durations=15

test-all: lint web test-assets ## every test but the browser's, with coverage
	$(BIN)/python scripts/web.py test
	rm -f .coverage .coverage.*
	$(PYTEST) -m "not browser" --cov --cov-report=term:skip-covered

# The record lies in .deps/faults, so that an interrupted run goes on. Two gateways, a full disk, a clock
# that jumps and a parted network come last; they need root and Debian's iproute2, and say what is missing.
SEED ?= 0
COUNT ?= 200
MINUTES ?= 90
REPLAY ?=
FAULTS_OUT ?= benchmarks/results/faults_$(shell nproc)-core_$(shell date +%F).json
faults: $(VENV)/.dev test-assets ## inject faults into a suite at work (SEED, COUNT, MINUTES; REPLAY='...' for one round)
	$(BIN)/python -m tests.faults.suite --seed $(SEED) --count $(COUNT) --minutes $(MINUTES) \
	  $(if $(REPLAY),--replay '$(REPLAY)',--out $(FAULTS_OUT))

# Takes /usr/bin/chromium (Debian: apt-get install chromium) or what BROWSER_EXECUTABLE names; without
# either, npm's @sparticuz/chromium is unpacked into .deps. BROWSER_DATA_DIR reuses a demo's data.
browser: $(VENV)/.dev web test-assets ## drive the workbench in a headless Chromium; keeps screenshots
	$(BIN)/pip install --disable-pip-version-check --no-compile -e ".[browser]"
	$(BIN)/python tests/browser/chromium.py
	$(PYTEST) -m browser tests/browser

hostile: $(VENV)/.dev web test-assets ## at least 10,000 hostile inputs in 10 minutes; last line is JSON
	$(BIN)/python -m tests.hostile.campaign

soak: $(VENV)/.dev web test-assets ## ten minutes of mixed load: does memory grow, do files stay open? last line is JSON
	$(BIN)/python -m tests.hostile.soak

SECONDS_EACH ?= 60
fuzz: $(VENV)/.dev ## coverage-guided fuzzing of every decoder (SECONDS_EACH); last line is JSON
	$(BIN)/pip install --disable-pip-version-check --no-compile -e ".[fuzz]"
	$(BIN)/python -m tests.hostile.fuzz --seconds $(SECONDS_EACH)

properties: $(VENV)/.dev ## the property tests of hostile input with many more examples
	$(PYTEST) --hypothesis-profile hostile --timeout 3600 tests/common/test_hostile_bytes.py

bench: $(VENV)/.dev test-assets ## run every benchmark; each prints a table and one JSON line
	for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean: ## remove what was built here; the cache of weights stays
	rm -rf $(VENV) gen .deps .mypy_cache .ruff_cache .pytest_cache services/gateway/web_dist web/node_modules
