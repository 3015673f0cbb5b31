# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := fedvsr tests

.PHONY: demo test lint types unit test-lowest bench-models bench-algorithms bench-data \
	bench-federation bench-federation-peers bench-sweeps study docs references dist format clean

demo: $(VENV)/.demo
	$(BIN)/fedvsr run demo

test: lint types unit

lint: $(VENV)/.test
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports

types: $(VENV)/.test
	$(BIN)/mypy

unit: $(VENV)/.test
	$(BIN)/pytest --durations=25

# The lower bounds of setup.cfg, installed exactly, in an environment of their own. Old releases warn
# of newer ones beside them; those warnings are not ours. They word the generated pages otherwise.
test-lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet -c tests/constraints-lowest.txt -e '.[demo,test]'
	$(VENV)-lowest/bin/pytest -p no:cacheprovider -W ignore \
		--deselect tests/docs/test_pages.py::test_generated_pages_are_what_the_code_says

# A table of seconds and memory; `ARGS="--models rvrt --precisions fp32"` and the like choose.
bench-models: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks.bench_models $(ARGS)

bench-algorithms: $(VENV)/.test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.bench_algorithms $(ARGS)

# Needs 3 GB of disk; `ARGS="--folder DIR"` keeps the frames.
bench-data: $(VENV)/.test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.bench_data $(ARGS)

bench-federation: $(VENV)/.test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.bench_federation $(ARGS)

# Beside other frameworks, each with a PyTorch of its own: 20 GB of disk. Their releases overlap in
# Python 3.12 alone.
PEERS := flower pfl blazefl
PEERS_PYTHON ?= python3.12
bench-federation-peers: $(VENV)/.test $(PEERS:%=$(VENV)-peers/%/.installed)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.bench_federation \
		--only rounds --peers $(VENV)-peers $(ARGS)

$(VENV)-peers/%/.installed: tests/benchmarks/peers/%.txt
	$(PEERS_PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-sweeps: $(VENV)/.test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.bench_sweeps $(ARGS)

# docs/study-small.md from nothing, in hours; stopped, it goes on.
# `make study CLIPS=DIR WORK=DIR ARGS='--seeds 1'`
study: $(VENV)/.test
	$(BIN)/python -m tests.study.small run $(CLIPS) $(WORK) $(ARGS)
	$(BIN)/python -m tests.study.small page

# site/index.html, with every link checked: with --quiet, --strict would not count warnings.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The pages under docs/reference that are written from the code.
references: $(VENV)/.test
	$(BIN)/fedvsr algorithms --markdown > docs/reference/algorithms.md
	$(BIN)/fedvsr report --columns > docs/reference/results.md
	$(BIN)/python -m tests.docs.references

# dist/*.whl and dist/*.tar.gz.
dist: $(VENV)/.test
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

format: $(VENV)/.test
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# A stamp per set of extras: installed again only when the requirements change.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "fedvsr needs Python >= 3.10; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.test: setup.cfg pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,test,dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: setup.cfg | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-peers build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
