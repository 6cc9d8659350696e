# Every target creates what it needs; `make` alone lists them. Python 3.11 or newer is all that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# jobs/ is checked as far as it holds Python.
TYPED := pnp_batch $(wildcard jobs/*.py)

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint types browser hosts azurite prometheus pytest long cluster soak wheel check-wheel format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## create .venv with everything pinned (at once when nothing changed)

# Each of Ray's workers would else compile anew what it imports.
export PYTHONDONTWRITEBYTECODE :=

# The build backend comes first and the build is not isolated, so that the pins hold for it as well.
# pip would compile it all, of which a worker imports a fifth.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is older than Python 3.11" >&2; \
	  echo "hint: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt hatchling
	$(PIP) install --quiet -c constraints.txt --no-compile --no-build-isolation -e '.[dev]'
	@$(BIN)/python -c 'from diffusers import AutoencoderKL, UNet2DConditionModel; \
	  from transformers import AutoTokenizer, CLIPTextModel; import pnp_batch.engine, pnp_batch.stages' \
	  > $(VENV)/imported.log 2>&1 || { cat $(VENV)/imported.log >&2; exit 1; }
	@touch $@

demo: venv ## translate the embedded sample manifest with the embedded model
	$(BIN)/pnp-batch demo

# What needs no test runs two at a time: one waits for a registry while the other computes.
test: ## everything CI checks
	$(MAKE) --jobs 2 --output-sync lint types check-wheel browser hosts
	$(MAKE) pytest

lint: venv ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## mypy, strict
	$(BIN)/mypy $(TYPED)

# What the tests need and pip has none of comes from Debian: $(call debian,COMMANDS,PACKAGES,WHAT FOR)
define debian
	@command -v $(1) > /dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  install="apt-get install -y -qq --no-install-recommends $(2)"; \
	  export DEBIAN_FRONTEND=noninteractive; $$install || { apt-get update -qq && $$install; }; \
	else \
	  echo "error: $(1) is missing, $(3)" >&2; \
	  echo "hint: sudo apt-get install $(2)" >&2; exit 1; \
	fi
endef

browser: ## make Chromium available to the tests
	$(call debian,chromium,chromium chromium-driver,in which the report is tested)
	$(call debian,chromedriver,chromium-driver,which drives the browser that the report is tested in)

# Only root can make hosts, so others do without these tests.
hosts: ## make `ip`, with which the tests of a cluster make its hosts, available to root
	$(if $(and $(filter 0,$(shell id -u)),$(shell command -v apt-get)),$(call debian,ip,iproute2,with which the tests of a cluster make its hosts))

# An emulator of Azure Blob Storage.
AZURITE_VERSION := 3.37.0
AZURITE := $(VENV)/azurite/.installed-$(AZURITE_VERSION)
azurite: $(AZURITE) ## make the emulator of Azure's storage available to the tests

$(AZURITE): | $(INSTALLED)
	$(call debian,npm,nodejs npm,with which the emulator of Azure's storage is installed)
	npm install --silent --no-audit --no-fund --prefix $(VENV)/azurite azurite@$(AZURITE_VERSION)
	@touch $@

# Tests with Ray and those of faults start many processes of their own, and want the machine for themselves.
pytest: venv browser hosts ## the test suite: no network, no GPU
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m 'not gpu and not long and not ray and not faults'
	$(BIN)/pytest -m 'not gpu and not long and (ray or faults)'

prometheus: ## make Prometheus, whose tool tries the alerts, available to the tests
	$(call debian,promtool,prometheus,which reads what a cluster counts)

long: venv browser hosts azurite prometheus ## the tests of whole clusters, stores and jobs that take minutes
	$(BIN)/pytest -m long

cluster: venv ## bring up object store, Ray head and two workers here, and run the sample job on them
	infra/local/cluster.sh

soak: venv ## the fault suite's long form: 100 minutes; PROMISES="P3 P7" chooses
	$(BIN)/python -m tests.faults.soak $(PROMISES)
	$(if $(PROMISES),,$(BIN)/python -m tests.faults.images --mutations 3000 --pillow)

wheel: venv ## build dist/*.whl
	rm -rf dist
	$(BIN)/hatchling build -t wheel -d dist

# The wheel must work without the checkout: only it is installed in a fresh environment outside, and tried there.
# torch, Ray and the other dependencies would take minutes and gigabytes to install a second time for every check,
# so the fresh environment sees them through a path entry to .venv (path entries inside .venv, such as the
# editable install of the checkout, do not apply there). tests/test_project.py holds that every imported
# package is a declared dependency, which this short cut could otherwise hide.
check-wheel: wheel ## install the wheel outside the checkout and try it there
	@set -e; there=$$(mktemp -d); trap 'rm -rf "$$there"' EXIT; \
	$(BIN)/python -m venv --without-pip "$$there/venv"; \
	$(PIP) --python "$$there/venv/bin/python" install --quiet --no-deps --no-index dist/*.whl; \
	site=$$("$$there/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$site/dependencies.pth"; \
	diff -rq -x __pycache__ pnp_batch "$$site/pnp_batch"; \
	cd "$$there"; \
	venv/bin/pnp-batch --help > /dev/null; \
	venv/bin/pnp-batch methods

format: venv ## let ruff format and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and built packages; .venv stays
	rm -rf dist build .mypy_cache .pytest_cache .ruff_cache
	find pnp_batch tests jobs -name __pycache__ -type d -prune -exec rm -rf {} + 2> /dev/null || true
