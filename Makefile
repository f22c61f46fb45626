# Everything a person does with this repository. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
ARGS ?=
WORLD ?= fashion

VENV := .venv
BIN := $(VENV)/bin
LS_VENV := .venv-label-studio
AGENT_VENV := .venv-agent
# A stamp is younger than all it was installed from, so installing twice costs nothing.
APP_STAMP := $(VENV)/.installed
LS_STAMP := $(LS_VENV)/.installed

# Twice quiet: errors only. A fresh Debian's pip warns about how some packages are built.
PIP_FLAGS := --quiet --quiet --disable-pip-version-check --no-input
AS_ROOT := $(if $(filter 0,$(shell id -u)),yes)
APT_INSTALL := DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "ARGS=... is passed on, as in: make demo ARGS='--seed 1 --keep'"

.PHONY: install
install: ## Install Gleaner and Label Studio, each into an environment of its own
	@$(MAKE) --no-print-directory --silent --jobs=2 $(APP_STAMP) $(LS_STAMP)

.PHONY: demo
demo: install ## Start the real services, turn the wheel, print a report, stop what was started
	@$(BIN)/gleaner demo --world $(WORLD) $(ARGS)

.PHONY: up down status
up: install ## Start the local stack: S3, Prefect, Label Studio
	@$(BIN)/gleaner up $(ARGS)
down: $(APP_STAMP) ## Stop everything that runs under .gleaner
	@$(BIN)/gleaner down $(ARGS)
status: $(APP_STAMP) ## Show what runs, and where
	@$(BIN)/gleaner status $(ARGS)

.PHONY: lint
lint: $(APP_STAMP) ## Check style, types and the dependency rule
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict
	@$(BIN)/lint-imports

.PHONY: format
format: $(APP_STAMP) ## Rewrite the code in the project's style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: test
test: install servers ## Run the tests, against real services
	@$(BIN)/pytest $(if $(ARGS),$(ARGS),--numprocesses 2 --dist loadfile --no-loadscope-reorder)

.PHONY: test-agent
test-agent: venv-module ## Install only the agent, from its wheel, and run its tests there
	@rm -rf build $(AGENT_VENV) && mkdir -p build/agent && $(PYTHON) -m venv $(AGENT_VENV)
	@$(AGENT_VENV)/bin/pip wheel $(PIP_FLAGS) --no-deps --wheel-dir build/agent .
	@$(AGENT_VENV)/bin/pip install $(PIP_FLAGS) --constraint requirements/app.txt \
		"$$(ls build/agent/*.whl)[agent,video,grpc,mqtt]" pytest pytest-timeout hypothesis httpx prometheus-client
	@cp -r tests configs docs README.md requirements pyproject.toml build/agent/
	@cd build/agent && ../../$(AGENT_VENV)/bin/pytest $(ARGS) @tests/agent_only.txt

.PHONY: chaos
chaos: install servers ## Kill processes and cut links many times; takes long
	@GLEANER_CHAOS=1 $(BIN)/pytest tests/e2e $(ARGS)

PROOFS := tests/unit/test_crash_states_spool.py tests/unit/test_disk_faults.py tests/unit/test_hostile_*.py \
	tests/integration/test_crash_states_updates.py tests/integration/test_disk_faults_updates.py \
	tests/integration/test_kill_campaign.py tests/integration/test_fault_proxy.py tests/integration/test_hostile_models.py
.PHONY: nightly
nightly: install servers ## Prove it at length: every crash state, 1,000 kills, all hostile input; takes hours
	@GLEANER_NIGHTLY=1 $(BIN)/pytest --timeout 14400 $(PROOFS) $(ARGS)

.PHONY: clean
clean: ## Stop the local stack and remove its data and all caches; the environments stay
	@if [ -x $(BIN)/gleaner ] && [ -d .gleaner ]; then $(BIN)/gleaner down; fi
	@rm -rf .gleaner .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

$(APP_STAMP): requirements/app.txt pyproject.toml | venv-module
	@echo "Installing Gleaner into $(VENV)"
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install $(PIP_FLAGS) --requirement requirements/app.txt
	@$(BIN)/pip install $(PIP_FLAGS) --no-deps --editable .
	@touch $@

# Its first start migrates an empty database for half a minute. Done once here, every new stack begins with a copy.
LS_TEMPLATE := $(LS_VENV)/template
$(LS_STAMP): requirements/label-studio.txt | venv-module
	@echo "Installing Label Studio into $(LS_VENV)"
	@[ -x $(LS_VENV)/bin/pip ] || $(PYTHON) -m venv $(LS_VENV)
	@$(LS_VENV)/bin/pip install $(PIP_FLAGS) --requirement requirements/label-studio.txt
	@rm -rf $(LS_TEMPLATE) $(LS_TEMPLATE).draft && mkdir $(LS_TEMPLATE).draft
	@LABEL_STUDIO_BASE_DATA_DIR=$(CURDIR)/$(LS_TEMPLATE).draft COLLECT_ANALYTICS=false LATEST_VERSION_CHECK=false SENTRY_DSN= \
		$(LS_VENV)/bin/label-studio version > $(LS_VENV)/template.log 2>&1 || { tail -n 20 $(LS_VENV)/template.log; exit 1; }
	@mv $(LS_TEMPLATE).draft $(LS_TEMPLATE)
	@touch $@

# Debian ships Python without what `python3 -m venv` needs.
.PHONY: venv-module
venv-module:
	@if [ -x $(BIN)/pip ] && [ -x $(LS_VENV)/bin/pip ]; then exit 0; fi; \
	if [ -z "$(PYTHON)" ]; then echo "Python 3.11 is missing: apt-get install python3 python3-venv" >&2; exit 1; fi; \
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		echo "$(PYTHON) is older than 3.11: name a newer one, as in make install PYTHON=python3.11" >&2; exit 1; fi; \
	if $(PYTHON) -c 'import ensurepip, venv' 2> /dev/null; then exit 0; fi; \
	if [ -n "$(AS_ROOT)" ] && command -v apt-get > /dev/null; then \
		apt-get update --quiet=2 && $(APT_INSTALL) python3-venv; \
	else \
		echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; fi

# What the tests run against beside what pip brings. What is missing fails its tests, unless GLEANER_ALLOW_MISSING=1.
.PHONY: servers
servers:
	@wanted=(); \
	compgen -G '/usr/lib/postgresql/*/bin/initdb' > /dev/null || wanted+=(postgresql); \
	[ -x /usr/sbin/mosquitto ] || wanted+=(mosquitto); \
	command -v openssl > /dev/null || wanted+=(openssl); \
	compgen -G '/usr/lib/*/girepository-1.0/GstRtspServer-1.0.typelib' > /dev/null || \
		wanted+=(python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-{base,good,ugly}); \
	if [ $${#wanted[@]} -eq 0 ]; then exit 0; fi; \
	if [ -n "$(AS_ROOT)" ] && command -v apt-get > /dev/null; then \
		echo "Installing for the tests: $${wanted[*]}"; apt-get update --quiet=2 && $(APT_INSTALL) "$${wanted[@]}"; \
	else \
		echo "Missing, their tests will fail: apt-get install $${wanted[*]}, or set GLEANER_ALLOW_MISSING=1" >&2; fi
