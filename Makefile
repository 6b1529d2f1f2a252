# Each target makes what it needs first; a second call is quick. `make` alone lists them.

PYTHON ?= python3.11
DATA ?= ../shared/data/heartsteps_v1_decisions.csv
VENV := .venv
AIRFLOW_VENV := .venv-airflow
D3RLPY_VENV := .venv-d3rlpy
BIN := $(VENV)/bin
JAVA := $(if $(JAVA_HOME),$(JAVA_HOME)/bin/java,java)
PIP := -m pip install --quiet --disable-pip-version-check

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo heartsteps data test airflow-test check install dev airflow-env d3rlpy-env java python bench-etl bench-train bench-score coverage study study-learners study-rewards notebooks clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: java install ## the whole road on a simulated log: runs/demo/report.html
	$(BIN)/tactful run configs/demo.toml

heartsteps: data java install ## the whole road on the HeartSteps V1 trial: make heartsteps DATA=PATH
	$(BIN)/tactful run configs/heartsteps.toml \
	--set data.decisions.path="$(DATA)" --set data.candidates.path="$(DATA)"

data: ## check that the HeartSteps V1 file is there: DATA=PATH
	@test -r "$(DATA)" || { echo \
	"$(DATA): no such file. The HeartSteps V1 log is not part of this repository: Klasnja et al., CC BY 4.0," \
	"GitHub repository klasnja/HeartStepsV1. Name your copy (configs/heartsteps.toml says which columns it reads):" \
	"make heartsteps DATA=PATH" >&2; exit 1; }

# Airflow's tests wait for its processes more than they compute, so they run beside the others.
test: java dev airflow-env check ## everything the tests need, then the tests
	@mkdir -p runs; export OMP_NUM_THREADS=1; \
	$(BIN)/python -m pytest tests/airflow_dags > runs/airflow-test.log 2>&1 & dags=$$!; \
	$(BIN)/python -m pytest --ignore=tests/airflow_dags; others=$$?; \
	wait $$dags; airflow=$$?; cat runs/airflow-test.log; exit $$((others > airflow ? others : airflow))

airflow-test: java dev airflow-env ## the DAGs in a real Airflow, from raw log to scores (part of test)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/airflow_dags

check: dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-etl: java dev ## Spark's ETL against DuckDB, 5 M decisions and 20 M events: runs/bench-etl/summary.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.etl bench

study: dev ## 128 policies twice, their truth, what estimators and the gate say, KDD 2022's headline: runs/study/
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.study

study-learners: java dev d3rlpy-env ## true values of the learners and of d3rlpy over ten seeds: runs/study-learners/
	$(BIN)/python -m benchmarks.learners

study-rewards: dev ## learned rewards against a hidden utility: runs/study-rewards/summary.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.rewards

coverage: dev ## how often 95% intervals hold the truth, 500 simulated logs: runs/coverage/summary.json
	$(BIN)/python -m benchmarks.coverage

bench-train: dev d3rlpy-env ## the learner against d3rlpy, on 1 and 2 threads: runs/bench-train/summary.json
	$(BIN)/python -m benchmarks.train

bench-score: java dev ## scoring against MLflow's spark_udf, 5 M users: runs/bench-score/summary.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.score bench

notebooks: java dev ## the notebooks executed, with their pictures: runs/notebooks/
	mkdir -p runs/notebooks
	OMP_NUM_THREADS=1 $(BIN)/jupyter-execute notebooks/*.ipynb --output='../runs/notebooks/{notebook_name}'

install: $(VENV)/install.stamp ## the project in .venv

dev: $(VENV)/dev.stamp ## the same with what the tests need

airflow-env: $(AIRFLOW_VENV)/install.stamp ## Airflow in .venv-airflow, an environment of its own

d3rlpy-env: $(D3RLPY_VENV)/install.stamp ## d3rlpy in .venv-d3rlpy, an environment of its own, for bench-train

java: ## check that Java 17 or later is there (Spark runs on it)
	@version="$$("$(JAVA)" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)"; \
	if [ -z "$$version" ]; then found="$(JAVA): no Java found."; \
	elif [ "$$version" -lt 17 ]; then found="$(JAVA) is Java $$version."; \
	else exit 0; fi; \
	echo "$$found Spark needs Java 17 or later, a headless one suffices." \
	"Debian, Ubuntu: sudo apt-get install openjdk-17-jre-headless; Fedora: sudo dnf install java-17-openjdk-headless;" \
	"macOS: brew install openjdk@17. A Java that is elsewhere: JAVA_HOME=FOLDER make ..." >&2; exit 1

python: ## check that Python 3.11 is there (another one: PYTHON=python3.12)
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || { echo \
	"$(PYTHON): no Python 3.11 or 3.12 of that name. Install one (Debian, Ubuntu: python3.11 and python3.11-venv)," \
	"or name it: make PYTHON=PATH ..." >&2; exit 1; }

clean: ## remove environments, caches and build outputs; runs/ stays
	rm -rf $(VENV) $(AIRFLOW_VENV) $(D3RLPY_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp is younger than the files that say what to install.
$(VENV)/install.stamp: pyproject.toml constraints.txt | python
	test -x $(BIN)/pip || "$(PYTHON)" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python $(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/install.stamp
	$(BIN)/python $(PIP) -c constraints.txt -e '.[dev]'
	touch $@

$(AIRFLOW_VENV)/install.stamp: constraints-airflow.txt | python
	test -x $(AIRFLOW_VENV)/bin/pip || "$(PYTHON)" -m venv --clear $(AIRFLOW_VENV) || { rm -rf $(AIRFLOW_VENV); exit 1; }
	$(AIRFLOW_VENV)/bin/python $(PIP) -c constraints-airflow.txt apache-airflow apache-airflow-providers-standard
	touch $@

$(D3RLPY_VENV)/install.stamp: constraints-d3rlpy.txt | python
	test -x $(D3RLPY_VENV)/bin/pip || "$(PYTHON)" -m venv --clear $(D3RLPY_VENV) || { rm -rf $(D3RLPY_VENV); exit 1; }
	$(D3RLPY_VENV)/bin/python $(PIP) -c constraints-d3rlpy.txt d3rlpy
	touch $@
