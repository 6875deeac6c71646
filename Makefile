# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo serve test test-slow lint bench client-venv clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,backbones,report,fast-io,track,hf,peft,serve,dev]'
	touch $(STAMP)

demo: $(STAMP)  ## the main job on the embedded default: a certificate, a report, a bundle
	$(BIN)/stage1 run --recipe demo --output runs/demo
	$(BIN)/stage1 verify runs/demo/bundle --recompute

serve: $(STAMP)  ## the demo's bundle behind http://127.0.0.1:8000, with its decisions and images kept beside it
	test -f runs/demo/bundle/bundle.json || $(BIN)/stage1 run --recipe demo --output runs/demo
	$(BIN)/stage1 serve runs/demo/bundle --store runs/demo/decisions.sqlite --images runs/demo/images --audit-rate 0.1

# Hundreds of commands start: they need the compiled files of the package, also where the shell says to write none.
test: $(STAMP)  ## all tests but the long simulations; one worker per core, so one thread each
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: $(STAMP)  ## the long simulations and the kill test
	$(BIN)/python -m pytest -m slow -s

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

# The others (arms, views, reward, explora, finetune, validity) need data of their own or hours; their docstrings say what.
QUICK := startup certify evaluation extraction challenge detector heads sweep power store

bench: $(STAMP)  ## the benchmarks that need nothing print their tables; figures go to benchmarks/README.md by hand
	for name in $(QUICK); do $(BIN)/python benchmarks/$$name.py || exit 1; done

client-venv: client-constraints.txt pyproject.toml  ## the StreetVision client's pins with our core, for its slow tests
	$(PYTHON) -m venv .client-venv
	.client-venv/bin/python -m pip install --quiet --constraint client-constraints.txt torch transformers --editable .
	@echo "CLIENT_VENV=$(CURDIR)/.client-venv make test-slow"

clean:
	rm -rf $(VENV) .client-venv runs .pytest_cache .mypy_cache .ruff_cache
