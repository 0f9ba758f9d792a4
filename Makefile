# Every target builds .venv itself; nothing else needs to be installed but Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test docs lint bench bench-quick clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[plot,progress,test]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[bench]"
	touch $@

demo: $(VENV)/.installed  ## digits, end to end: a pipeline, a grid search, a comparison, a picture
	$(BIN)/python benchmarks/demo.py

# A worker a core, each on one thread: small tensors gain nothing from two.
test: $(VENV)/.installed  ## the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

bench: $(VENV)/.installed-bench  ## every table, every peer; resumable, hours on two cores
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/peers_page.py

bench-quick: $(VENV)/.installed-bench  ## two tables and five models, in five minutes
	$(BIN)/python benchmarks/peers.py --quick

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

# The gallery's examples run here, each on one thread; what has not changed since is not run again.
docs: $(VENV)/.installed-docs  ## the site, into docs/_build/html; warnings are errors
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

lint: $(VENV)/.installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build docs/auto_gallery docs/api/generated
