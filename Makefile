# `make demo` and `make test` need Python 3.10 or newer; everything else is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all test-versions lint bench pictures docs clean

demo: $(INSTALLED)
	$(BIN)/python examples/digits.py --config examples/adam_plateau.yaml
	$(BIN)/python examples/digits.py --config examples/sgd_cosine.yaml
	$(BIN)/python examples/gan.py

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST) --durations=20

# ROWS="2.6 2.15" picks rows, SLOW=1 runs all tests, ENVIRONMENTS=DIR keeps the environments there.
test-versions:
	$(PYTHON) tests/run_versions.py $(ROWS) $(if $(filter 1,$(SLOW)),--slow) $(if $(ENVIRONMENTS),--environments "$(ENVIRONMENTS)")

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python tests/plugins/test_optimizer_parity.py
	$(BIN)/python tests/optim/test_sparse.py
	$(BIN)/python tests/plugins/test_lbfgs.py
	$(BIN)/python tests/plugins/test_schedulers.py
	$(BIN)/python tests/plugins/test_optimizer_inputs.py
	$(BIN)/python tests/plugins/test_scheduler_inputs.py
	$(BIN)/python tests/config/test_mutated_configs.py
	wc -l plugins/optplug_classic/*.py plugins/optplug_modern/*.py
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/listing.py
	$(BIN)/optplug bench adadelta adagrad adam adamax asgd rmsprop rprop sgd:momentum=0.9 --rounds 21 --seconds 2 --json docs/bench.json --picture docs/bench.png
	$(BIN)/python benchmarks/newer.py --seconds 1
	$(BIN)/python benchmarks/example_plugin.py
	$(BIN)/python benchmarks/conformance.py
	$(BIN)/python benchmarks/third_parties.py
	$(BIN)/python benchmarks/muon.py
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/muon_accuracy.py
	$(BIN)/python tests/run_faults.py
	$(BIN)/python benchmarks/fused.py --rounds 41 --threads 1
	$(BIN)/python benchmarks/fused.py --rounds 41 --threads 2
	$(BIN)/python benchmarks/training.py --rounds 15
	$(BIN)/python benchmarks/sparse.py
	$(BIN)/python benchmarks/lbfgs.py
	$(BIN)/python benchmarks/foreach.py
	$(BIN)/python benchmarks/configure.py --rounds 20
	$(BIN)/python benchmarks/callback.py

pictures: $(INSTALLED)
	$(BIN)/python docs/pictures.py

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) runs site

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[cli,cpu,demo,lightning,test]"
	touch $@
