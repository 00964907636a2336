PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
# MLflow reports usage from the programs that it runs in, unless told not to.
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: sweep ui test verify results bench components lint clean

sweep: $(VENV)/installed ## run the demo sweep into mlflow.db and mlartifacts/
	$(RUN)/mfgd --multirun experiment=demo

ui: $(VENV)/installed ## serve it; the sweep's last line says which page to open
	$(RUN)/mlflow ui --backend-store-uri sqlite:///mlflow.db

test: $(VENV)/installed ## the test suite, with coverage
	$(RUN)/pytest -n 2 -m "not slow" --cov --cov-report=term --cov-fail-under=90

verify: $(VENV)/installed ## the published results, at sizes that still carry the claims
	$(RUN)/python -m experiments verify --quick

results: $(VENV)/installed ## the published results in full; writes experiments/README.md
	$(RUN)/python -m experiments verify

bench: $(VENV)/installed ## how fast it is, as a table: in the README, and in bench.json
	$(RUN)/python tests/bench.py

components: $(VENV)/installed ## the page of components, conf/README.md, out of the docstrings
	$(RUN)/python tests/components.py

lint: $(VENV)/installed
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

clean:
	rm -rf $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
