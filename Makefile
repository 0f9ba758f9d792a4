# Every target builds .venv itself; nothing else needs to be installed but Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

PIP := python -m pip install -q --disable-pip-version-check
# What a wrong build or an old dependency would break. The wheel is tested with these, less those
# marked slow; the oldest dependencies with all of these, the training and dask.
QUICK := $(addprefix tests/test_,packaging.py structure.py interfaces.py callbacks.py docs.py \
	displays.py outliers.py robustness.py estimator.py)

.PHONY: help install demo test docs lint bench bench-quick dist wheel-test test-min clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[plot,progress,test]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[bench]"
	touch $@

install: $(VENV)/.installed  ## .venv with the package in it

demo: $(VENV)/.installed  ## digits, end to end: a pipeline, a grid search, a comparison, a picture
	$(BIN)/python benchmarks/demo.py

# A worker a core, each on one thread: small tensors gain nothing from two.
test: $(VENV)/.installed  ## the whole suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

bench: $(VENV)/.installed-bench  ## every table, every peer; resumable, hours on two cores
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/peers.py --seconds
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

dist: $(VENV)/.installed  ## the source release and the wheel, into dist
	$(BIN)/$(PIP) -c constraints.txt build
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

# The tests run in the unpacked source release. -P: its own sklvebm is not on the path, the wheel's is.
wheel-test: dist  ## both into a clean environment, and the quick tests against the wheel there
	rm -rf .venv-wheel build/sdist
	mkdir -p build/sdist
	tar -xzf dist/*.tar.gz -C build/sdist --strip-components=1
	test -z "$$(git ls-files ':!:.*' | while read f; do test -e "build/sdist/$$f" || echo "$$f"; done)"
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/$(PIP) -c constraints.txt "$$(ls dist/*.whl)[test]"
	cd build/sdist && OMP_NUM_THREADS=1 ../../.venv-wheel/bin/python -P -m pytest -n auto \
		--installed -m "not slow" $(QUICK)

test-min:  ## these and the slow ones against the oldest dependencies that are declared
	rm -rf .venv-min
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/$(PIP) -c constraints-min.txt -e ".[plot,progress,persist,test]"
	OMP_NUM_THREADS=1 .venv-min/bin/python -m pytest -n auto $(QUICK) \
		tests/test_training.py tests/test_scale.py

clean:
	rm -rf $(VENV) .venv-wheel .venv-min build dist *.egg-info docs/_build docs/auto_gallery docs/api/generated
