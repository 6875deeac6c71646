# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,report,fast-io,track,hf,peft,dev]'
	touch $(STAMP)

demo: $(STAMP)  ## the main job on the embedded default: a certificate, a report, a bundle
	$(BIN)/stage1 run --recipe demo --output runs/demo
	$(BIN)/stage1 verify runs/demo/bundle --recompute

test: $(STAMP)  ## all tests but the long simulations
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

test-slow: $(STAMP)  ## the long simulations and the kill test
	$(BIN)/python -m pytest -m slow -s

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

bench: $(STAMP)  ## every benchmark prints its table; figures go to benchmarks/README.md by hand
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
