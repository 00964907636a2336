PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
LOWEST := .venv-lowest
OTHER := .venv-other
PIP := pip install --disable-pip-version-check --quiet
# What another version of a dependency, or another Python, can break.
PORTABLE := $(patsubst %,tests/test_%.py,compare compose config draws files init internals launcher \
    frontier loss main notebook observation observe optimizer optuna plots problem record sparse stores \
    tables tracked tracking triples)
# MLflow reports usage from the programs that it runs in, unless told not to.
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: sweep ui test test-slow test-lowest test-other verify results screenshots bench components schema lint clean

sweep: $(VENV)/installed ## run the demo sweep into mlflow.db and mlartifacts/
	$(RUN)/mfgd --multirun experiment=demo

ui: $(VENV)/installed ## serve it; the sweep's last line says which page to open
	$(RUN)/mlflow ui --backend-store-uri sqlite:///mlflow.db

test: $(VENV)/installed ## the test suite, with coverage
	$(RUN)/pytest -n 2 -m "not slow" --cov --cov-report=term --cov-fail-under=90

test-slow: $(VENV)/installed ## the rest of it: processes, browsers and servers of their own
	$(RUN)/pytest -n 2 -m slow

test-lowest: $(LOWEST)/installed ## some of it, at the lower bounds of pyproject.toml
	$(LOWEST)/bin/pytest -n 2 $(PORTABLE)

test-other: $(OTHER)/installed ## the same tests, with another Python: OTHER_PYTHON=python3.12
	$(OTHER)/bin/pytest -n 2 $(PORTABLE)

verify: $(VENV)/installed ## the published results, at sizes that still carry the claims
	$(RUN)/python -m experiments verify --quick

results: $(VENV)/installed ## the published results in full; writes experiments/README.md
	$(RUN)/python -m experiments verify

screenshots: $(VENV)/installed ## the pictures of the README out of the demo sweep; needs Chromium
	PYTHONPATH=tests $(RUN)/python experiments/figures/screenshots.py

bench: $(VENV)/installed ## how fast it is, as a table, in benchmarks/README.md
	$(RUN)/python -m benchmarks

components: $(VENV)/installed ## the reference, conf/README.md, out of the docstrings
	$(RUN)/python conf/components.py

schema: $(VENV)/installed ## mfgd/mlflow_schema.sql, out of the pinned MLflow
	$(RUN)/python tests/dump_schema.py

lint: $(VENV)/installed
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

clean:
	rm -rf $(VENV) $(LOWEST) $(OTHER)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/$(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@

$(LOWEST)/installed: pyproject.toml constraints-lowest.txt .ci/lowest.py
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) .ci/lowest.py > $(LOWEST)/bounds.txt
	$(LOWEST)/bin/$(PIP) --constraint $(LOWEST)/bounds.txt --constraint constraints-lowest.txt --editable ".[optuna,test]"
	touch $@

$(OTHER)/installed: pyproject.toml constraints.txt
	$(OTHER_PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/$(PIP) --constraint constraints.txt --editable ".[optuna,test]"
	touch $@
