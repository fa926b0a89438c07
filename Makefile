# Every target sets up what it needs. `make` alone lists the targets.
PYTHON ?= python3
VENV   ?= .venv

BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
PEERS   := $(VENV)/.peers
SERVERS := $(VENV)/.servers
TYPES   := build/types

# Programs that want other releases of NumPy than onnxlift live apart.
TRITON  := $(VENV)-triton
MODISCO := $(VENV)-modisco

.DEFAULT_GOAL := help
.PHONY: help setup demo experiments coverage bench test test-serving lint types format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "onnxlift needs Python 3.11 or later; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "setting up $(VENV): several hundred MB, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade pip
	@$(BIN)/python -m pip install -qq --editable '.[dev]'
	@touch $@

setup: $(STAMP) ## create .venv with onnxlift and the developers' tools

demo: $(STAMP) ## explain three real networks, draw build/demo/demo.png
	$(BIN)/python models/demo.py

EXPERIMENTS := gallery mnist_conversion liftpad_images liftpad_genomics deeplift_genomics

experiments: $(STAMP) ## repeat the experiments of the papers, draw their figures in docs/experiments
	@set -e; for name in $(EXPERIMENTS); do \
		echo "== $$name"; $(BIN)/python models/experiments/$$name.py; \
	done

coverage: $(STAMP) ## run the node tests of the onnx package, write docs/coverage.md and docs/operators.md
	$(BIN)/python docs/coverage.py

$(PEERS): $(STAMP)
	@echo "adding PyTorch, captum, shap and tangermeme to $(VENV): up to several GB, once"
	@$(BIN)/python -m pip install -qq --editable '.[dev,bench]'
	@touch $@

bench: $(PEERS) ## measure speed and memory, write docs/benchmarks.md; CASES="resnet18 lstm" measures these
	$(BIN)/python benchmarks/run.py $(CASES)

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n auto

$(SERVERS): $(STAMP)
	@echo "adding the servers' clients, KServe and Ray to $(VENV): several hundred MB, once"
	@$(BIN)/python -m pip install -qq --editable '.[dev,servers]'
	@touch $@

$(TRITON)/.installed: $(STAMP) tests/serving/requirements-triton.txt
	@echo "setting up $(TRITON): a Triton server, several hundred MB, once"
	@$(PYTHON) -m venv $(TRITON)
	@$(TRITON)/bin/python -m pip install -qq -r tests/serving/requirements-triton.txt \
		onnxruntime==$$($(BIN)/python -c 'import onnxruntime; print(onnxruntime.__version__)')
	@touch $@

$(MODISCO)/.installed: tests/serving/requirements-modisco.txt
	@echo "setting up $(MODISCO): modisco-lite, several hundred MB, once"
	@$(PYTHON) -m venv $(MODISCO)
	@$(MODISCO)/bin/python -m pip install -qq -r tests/serving/requirements-modisco.txt
	@touch $@

test-serving: $(SERVERS) $(TRITON)/.installed $(MODISCO)/.installed ## run the tests with real servers, Ray and a browser (about ten minutes)
	ONNXLIFT_TRITON_VENV=$(TRITON) ONNXLIFT_MODISCO_VENV=$(MODISCO) $(BIN)/python -m pytest tests/serving

lint: $(STAMP) types ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow the mapping of an editable install, so it reads a copy laid out as the wheel is.
types: $(STAMP) ## mypy --strict on the package
	@rm -rf $(TYPES) && mkdir -p $(TYPES)
	@cp -R onnxlift $(TYPES)/onnxlift && cp -R rules $(TYPES)/onnxlift/rules
	cd $(TYPES) && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache

format: $(STAMP) ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built, .venv included
	rm -rf $(VENV) $(TRITON) $(MODISCO) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
