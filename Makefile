# Tollgate from a fresh clone: `make run`. What each target needs, it installs first; nothing leaves this folder
# but Debian packages, and those only for `make test` as root.

PYTHON ?= python3
HARDWARE ?= auto
WORKERS ?= 3
COVERAGE_TOTAL ?= 90

INSTALL = $(PYTHON) -m backends.install

.DEFAULT_GOAL := help
.PHONY: help run test checks proof lock clean python gateway gateway-dev engine system-packages proof-packages focus-validator

help: ## this list
	@echo "Tollgate: a cost-aware gateway for a company's own vLLM fleet"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'
	@echo
	@echo "  Variables: PYTHON=python3.12  HARDWARE=cpu|cuda (default: what is found)  INSTALL_ISOLATED=1 (pip's"
	@echo "  cache and temporary files inside .tollgate)  WORKERS=3  COVERAGE_TOTAL=90"

# exec: Ctrl-C has to reach tollgate, not a shell around it.
run: gateway engine ## install what is missing, then start the bundled fleet and the gateway on 127.0.0.1:8080
	@exec .venv/bin/tollgate up

# The two environments at once: a download leaves a core idle, and unpacking one takes one core.
test: system-packages ## install what is missing, lint, type-check, run every test
	@$(MAKE) --no-print-directory -j2 gateway-dev engine
	@exec .venv/bin/python scripts/run_tests.py --workers $(WORKERS) --total $(COVERAGE_TOTAL)

checks: gateway-dev ## linters, types and import contracts only
	@exec .venv/bin/python scripts/run_tests.py --only checks

proof: proof-packages gateway-dev ## the long and measured work (about 40 minutes); results in tests/load/results
	@exec .venv/bin/python scripts/proof.py

lock: ## pin the newest versions of what requirements/*.in ask for
	@scripts/lock.sh

clean: ## remove the environments, .tollgate (the demo database with it) and all that tools left behind
	rm -rf .venv .venv-vllm .tollgate build *.egg-info backends/vllm_plugin/build backends/vllm_plugin/*.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.*
	find gateway backends tests migrations scripts -type d -name __pycache__ -prune -exec rm -rf {} +

python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is not on PATH. next step: install Python 3.11, 3.12 or 3.13 (Debian: apt-get install python3 python3-venv)"; \
	  exit 1; }

gateway: python
	@$(INSTALL) gateway

gateway-dev: python
	@$(INSTALL) gateway --dev

engine: python
	@$(INSTALL) engine --hardware $(HARDWARE)

system-packages:
	@scripts/system_packages.sh

proof-packages:
	@scripts/system_packages.sh proof

focus-validator: ## the outside judge of FOCUS files, in .tollgate/focus-venv (needs Python 3.12 or newer)
	@$(PYTHON) scripts/focus_validator.py install
