# `make` shows what there is. Everything lives in .venv and .airflow; `make clean` removes both.
#
#     make run PORT=9090 WORKERS=2      serve somewhere else
#     make test PYTHON=python3.12       another Python, 3.10 to 3.14 (after `make clean`)
#     make bench BENCH='--only roll'    a part of the benchmarks, printed; BENCH=--help tells more

PYTHON  ?= python3
PORT    ?= 8080
WORKERS ?= 4
BENCH   ?= --publish
# Tests that run at the same time. Most of them wait for processes; two find enough to do on two processors.
JOBS    ?= 2

VENV := .venv
BIN  := $(VENV)/bin
# Installed for `make run`, and for `make test`; older than pyproject.toml means again.
RUN_STAMP  := $(VENV)/.installed-run
TEST_STAMP := $(VENV)/.installed-test
# Installed for `make bench`.
BENCH_STAMP := $(VENV)/.installed-bench

# Beside it, the oldest Airflow and gunicorn, for `make test-airflow32`.
OLD_VENV  := .venv-airflow32
OLD_STAMP := $(OLD_VENV)/.installed

PARALLEL := --numprocesses=$(JOBS) --dist=worksteal

UV := $(shell command -v uv 2>/dev/null)
ifneq ($(UV),)
MAKE_VENV := uv venv --quiet --seed --python "$(PYTHON)"
INSTALL   = uv pip install --quiet --python $(@D)/bin/python
else
MAKE_VENV := "$(PYTHON)" -m venv
# The pip of an older Python's venv does not know --group.
INSTALL   = $(@D)/bin/python -m pip install --quiet --upgrade 'pip>=25.1' && $(@D)/bin/python -m pip install --quiet
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint unit docs test-airflow32 bench clean

help: ## Show this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{ printf "make %-14s %s\n", $$1, $$2 }' Makefile

# -- the two commands --------------------------------------------------------------------------------------

run: export AIRFLOW_HOME := $(CURDIR)/.airflow
run: export AIRFLOW_CONFIG := $(CURDIR)/.airflow/airflow.cfg
run: export AIRFLOW__DATABASE__SQL_ALCHEMY_CONN := sqlite:///$(CURDIR)/.airflow/airflow.db
run: export AIRFLOW__CORE__LOAD_EXAMPLES := False
run: export AIRFLOW__CORE__DAGS_FOLDER := $(CURDIR)/.airflow/dags
run: export AIRFLOW__CORE__AUTH_MANAGER := airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager
run: export AIRFLOW__API__HOST := 127.0.0.1
run: export AIRFLOW__API__PORT := $(PORT)
run: export AIRFLOW__API__WORKERS := $(WORKERS)
run: $(RUN_STAMP) ## Serve the Airflow API server on http://127.0.0.1:8080 (PORT=, WORKERS=)
	@$(BIN)/python scripts/announce.py check
	@mkdir -p .airflow/dags
	@echo "Migrating the SQLite metadata database in .airflow ..."
	@$(BIN)/airflow db migrate >.airflow/migrate.log 2>&1 || { cat .airflow/migrate.log >&2; exit 1; }
	@echo "Starting the API server, which takes about ten seconds ..."
	@($(BIN)/python scripts/announce.py watch $$$$ &); exec $(BIN)/python -m airflow_arbiter

test: lint docs ## Run everything: ruff, mypy, the documentation, and all tests (JOBS=)
	@$(BIN)/pytest $(PARALLEL)

# -- parts -------------------------------------------------------------------------------------------------

lint: $(TEST_STAMP) ## Run ruff and mypy only
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

unit: $(TEST_STAMP) ## Run the unit tests only
	@$(BIN)/pytest $(PARALLEL) tests/unit

docs: $(TEST_STAMP) ## Build the documentation into build/docs; what is wrong in it is an error
	@$(BIN)/python -m sphinx --builder html --quiet --nitpicky --fail-on-warning --keep-going docs build/docs

test-airflow32: $(OLD_STAMP) ## Run the tests of the API server on the oldest Airflow and gunicorn
	@$(OLD_VENV)/bin/pytest $(PARALLEL) tests/airflow

bench: $(BENCH_STAMP) ## Measure us beside the others into docs/benchmarks, half an hour (BENCH=--quick: 8 minutes, prints)
	@$(BIN)/python benchmarks $(BENCH)

clean: ## Remove .venv*, .airflow with its database, and all caches
	@rm -rf $(VENV) $(OLD_VENV) .airflow .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- set-up ------------------------------------------------------------------------------------------------

%/bin/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' || \
	  { echo "Python 3.10 to 3.14 is needed; name one: make PYTHON=python3.12" >&2; exit 1; }
ifeq ($(UV),)
	@"$(PYTHON)" -c 'import ensurepip, venv' || \
	  { echo "This Python cannot make environments; install python3-venv (Debian, Ubuntu) or uv" >&2; exit 1; }
endif
	@echo "Making $* ..."
	@rm -rf $*
	@$(MAKE_VENV) $*

$(RUN_STAMP): pyproject.toml $(BIN)/python
	@echo "Installing airflow-arbiter with Airflow into $(VENV), which takes up to some minutes ..."
	@$(INSTALL) -e '.[airflow]'
	@touch $@

# Named with the package, so that one resolution fits them all.
$(TEST_STAMP): pyproject.toml $(BIN)/python
	@echo "Installing airflow-arbiter with Airflow and the tests' tools into $(VENV), which takes up to some minutes ..."
	@$(INSTALL) -e '.[airflow]' --group test
	@touch $@ $(RUN_STAMP)

$(BENCH_STAMP): pyproject.toml $(BIN)/python
	@echo "Installing airflow-arbiter with Airflow and the benchmarks' tools into $(VENV), which takes up to some minutes ..."
	@$(INSTALL) -e '.[airflow]' --group bench
	@touch $@ $(RUN_STAMP)

$(OLD_STAMP): pyproject.toml $(OLD_VENV)/bin/python
	@echo "Installing airflow-arbiter with the oldest Airflow into $(OLD_VENV), which takes up to some minutes ..."
	@$(INSTALL) -e '.[airflow]' --group airflow32
	@touch $@
