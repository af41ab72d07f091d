# `make demo` and `make test` each do all their own set-up, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-full lint evaluate train-tiny clean

demo: $(VENV)/.core
	$(BIN)/python -m one4d_jax.sample --out out --overwrite

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-full: $(VENV)/.dev
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m ''

lint: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

evaluate: $(VENV)/.core
	$(BIN)/python -m one4d_jax.evaluate --config configs/eval.py:procedural --out runs/eval

train-tiny: $(VENV)/.core
	$(BIN)/python -m one4d_jax.train --recipe tiny

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .cache out runs
