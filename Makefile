# Every target sets itself up, in .venv, from a bare clone: Python 3.10 or later and make are all it takes.
#
#     make test                     with the python3 that is first on PATH
#     make test PYTHON=python3.12   with another, after `make clean`

PYTHON ?= python3

BIN := $(CURDIR)/.venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint soak matrix fuzz bench bench-full clean

help: ## say what the targets do
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(INSTALLED) ## run examples/site.py twice through @agent/loopback; the second run must change nothing
	@directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && cd "$$directory" && \
	set -- @agent/loopback '$(CURDIR)/examples/site.py' --data site_dir="$$directory/site" && \
	printf '\n%s\n\n' '### First run' && \
	'$(BIN)/pyinfra' -y "$$@" && \
	printf '\n%s\n\n' '### Second run' && \
	'$(BIN)/pyinfra' -y --json "$$@" > second-run.json && \
	'$(BIN)/python' '$(CURDIR)/examples/no_changes.py' second-run.json

# The longest first. One process each: trio cannot run in a process that gevent has patched, so agent and connector are
# apart; and a directory that has lost its tests fails here (pytest exits with 5) instead of hiding behind the others.
TESTS := tests/e2e tests/discovery tests/equality tests/connector tests/network tests/systemd tests/enrol tests/faults \
    tests/matrix tests/files tests/trust tests/trust_e2e tests/privilege tests/agent tests/protocol tests/stranger \
    tests/fuzz $(wildcard tests/test_*.py)
RUNS := $(TESTS:%=run/%)

JOBS ?= 2
test: $(INSTALLED) ## run every test, two directories at a time; JOBS=2
	@$(MAKE) --no-print-directory --jobs=$(JOBS) --keep-going --output-sync=target $(RUNS)

# --basetemp, because pytest otherwise sweeps directories that all its runs of one user share.
.PHONY: $(RUNS)
$(RUNS): run/%: $(INSTALLED)
	@directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && '$(BIN)/pytest' --basetemp="$$directory/pytest" '$*'

lint: $(INSTALLED) ## check style, formatting, types and who imports whom
	@'$(BIN)/ruff' check
	@'$(BIN)/ruff' format --check
	@'$(BIN)/mypy'
	@'$(BIN)/lint-imports'

soak: $(INSTALLED) ## the long forms of the tests, more than an hour
	@directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && \
	for tests in tests/e2e tests/files tests/faults tests/network tests/discovery tests/systemd; do \
	    PYINFRA_AGENT_SOAK=1 '$(BIN)/pytest' --basetemp="$$directory/pytest" "$$tests" || exit; \
	done

matrix: $(INSTALLED) ## every pyinfra on every Python, each in an environment of its own, about 25 minutes; needs root
	@'$(BIN)/python' tests/matrix/run.py --container

FUZZ_SECONDS ?= 600
fuzz: $(INSTALLED) ## look for inputs that the protocol does not survive; FUZZ_SECONDS=600
	@'$(BIN)/python' tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

bench: $(INSTALLED) ## measure against SSH, the short form
	@'$(BIN)/python' bench/run.py

bench-full: $(INSTALLED) ## the long form: more samples, and files of 1 GiB
	@'$(BIN)/python' bench/run.py --full

clean: ## remove .venv and what the tools left behind
	rm -rf .venv .matrix dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find agent bench connector examples protocol tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip 25.1 is the first that knows --group, and a new environment has whatever came with its Python.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=...")'
	@echo 'Installing into .venv ...'
	@$(PYTHON) -m venv .venv
	@'$(BIN)/pip' install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@'$(BIN)/pip' install --quiet --editable '.[agent,connector]' --group dev
	@touch '$@'
