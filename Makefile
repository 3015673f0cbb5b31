# On a fresh machine, `make demo` and `make test` need nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := fedvsr tests
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Most tests wait for processes that start, so two workers serve two cores well.
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --durations=25
ALL := not (gpu or slow or benchmark)

.PHONY: demo check lint types layers test test-rest test-all test-lowest constraints \
	bench-models bench-gpu bench-algorithms bench-data \
	bench-federation bench-federation-peers bench-scheduler bench-scale bench-records \
	bench-results bench-clients bench-personal soak bench-sweeps study-run study-page \
	docs references \
	notebooks screenshots dist format clean

demo: $(VENV)/.demo
	$(BIN)/fedvsr run demo

# Lint, types and layers, side by side.
check: $(VENV)/.test
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target lint types layers

lint: $(VENV)/.test
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(VENV)/.test
	$(BIN)/mypy

layers: $(VENV)/.test
	$(BIN)/lint-imports

# One test of each guarantee; CONTRIBUTING.md lists them.
test: check
	$(PYTEST)

# What `make test` leaves out, apart from tests marked gpu, slow or benchmark.
test-rest: $(VENV)/.test
	$(PYTEST) -m "full and $(ALL)"

test-all: check
	$(PYTEST) -m "$(ALL)"

# The tests of `make test` with the lower bounds of setup.cfg, in an environment of their own; best
# with PYTHON=python3.10, the oldest that is supported. Old releases cause warnings that newer ones
# do not, and word the generated pages differently. With torch 2.7 a gradient norm of IART is 1.08e-4
# apart where 1e-4 is allowed, which is rounding, torch.utils.checkpoint imports sympy itself, and
# fake tensors on a GPU abort a process that has none.
test-lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet -c tests/constraints-lowest.txt -e '.[demo,test]'
	$(PYTEST:$(BIN)/%=$(VENV)-lowest/bin/%) -p no:cacheprovider -W ignore \
		--deselect tests/docs/test_pages.py::test_generated_pages_are_what_the_code_says \
		--deselect tests/unit/models/test_one_graph.py \
		--deselect 'tests/unit/models/test_iart.py::test_network_golden[iart_tiny2]' \
		--deselect 'tests/unit/models/test_imports.py::test_building_a_network_imports_neither_the_compiler_nor_torchvision[rvrt]'

# constraints.txt, from the newest releases; run `make clean test-all` with it before you commit it.
# `ARGS=--installed` keeps the versions that are installed.
constraints: $(VENV)/.test
	$(BIN)/python -m tests.pins $(ARGS)

# A table of seconds and memory; `ARGS="--models rvrt --precisions fp32"` and the like choose.
bench-models: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks.bench_models $(ARGS)

# The networks on a GPU, with the tests marked gpu first: at most 8 minutes.
bench-gpu: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks.bench_gpu --tests $(ARGS)

bench-algorithms: $(VENV)/.test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.bench_algorithms $(ARGS)

# Needs 3 GB of disk; `ARGS="--folder DIR"` keeps the frames.
bench-data: $(VENV)/.test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.bench_data $(ARGS)

bench-federation: $(VENV)/.test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.bench_federation $(ARGS)

# The driver's own work for clusters of 4 to 512 slots, which are simulated.
bench-scheduler: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks.bench_scheduler $(ARGS)

# What the records of a run of many rows cost its driver, and who reads them.
bench-records: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks.bench_records $(ARGS)

# Reading 1,000 runs: seconds, files and bytes.
bench-results: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks.bench_results $(ARGS)

# The driver of 1,000 and of 1,000,000 registered clients; `ARGS=--prepare` also reads their store.
bench-clients: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks.bench_clients $(ARGS)

# The table of personal methods, from runs of tune_configs/personal.yaml: `ARGS=DIR`.
bench-personal: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks.bench_personal $(ARGS)

# What limits rounds on 64 nodes x 8 GPUs: arithmetic from constants that are measured here.
bench-scale: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks.bench_scale $(ARGS)

# 1,000 rounds in some minutes: what grows? `ARGS="--rounds 100"` for fewer.
soak: $(VENV)/.test
	$(BIN)/python -m tests.benchmarks.bench_soak $(ARGS)

# Beside other frameworks, each with a PyTorch of its own: 20 GB of disk. Flower and pfl-research share
# Python 3.12 alone, and BlazeFL 3 needs 3.14.
PEERS := flower pfl blazefl
PEERS_PYTHON ?= python3.12
BLAZEFL_PYTHON ?= python3.14
$(VENV)-peers/blazefl/.installed: PEERS_PYTHON = $(BLAZEFL_PYTHON)
bench-federation-peers: $(VENV)/.test $(PEERS:%=$(VENV)-peers/%/.installed)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.bench_federation \
		--only rounds,bits --peers $(VENV)-peers $(ARGS)

$(VENV)-peers/%/.installed: tests/benchmarks/peers/%.txt
	$(PEERS_PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-sweeps: $(VENV)/.test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.benchmarks.bench_sweeps $(ARGS)

# The study of docs/design/0024-study.md: `make study-run CLIPS=DIR WORK=DIR` takes hours, and resumes.
# Then `make study-page` writes docs/study.md and its pictures from its tables.
study-run: $(VENV)/.test
	$(BIN)/python -m tests.study.study prepare $(CLIPS) $(WORK)
	$(BIN)/python -m tests.study.study run $(WORK)
	$(BIN)/python -m tests.study.study collect $(WORK)

study-page: $(VENV)/.test
	$(BIN)/python -m tests.study.study page

# site/index.html, from nothing (-E): Sphinx repeats no warning of a page that has not changed. With -W a
# broken link, a page that _toc.yml lacks and any other warning is an error.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -E -q -d build/doctrees docs site

# The pages under docs/reference that are generated from the code.
references: $(VENV)/.test
	$(BIN)/fedvsr algorithms --markdown > docs/reference/algorithms.md
	$(BIN)/fedvsr report --columns > docs/reference/results.md
	$(BIN)/python -m tests.docs.references

# Execute the notebooks of the documentation, and save their outputs, which the site shows.
notebooks: $(VENV)/.demo $(VENV)/.test
	$(BIN)/python -m tests.docs.notebooks

# The pictures of docs/gallery.md, in some minutes: needs `chromium` and `chromium-driver`.
# `make screenshots ARGS="--work DIR run.svg"` keeps the runs in DIR, and makes one picture.
screenshots: $(VENV)/.demo $(VENV)/.test
	$(BIN)/python -m tests.docs.screenshots $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m tests.docs.screenshot_dashboard)

# dist/*.whl and dist/*.tar.gz.
dist: $(VENV)/.test
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

format: $(VENV)/.test
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# A stamp for each set of extras: installed again only when the requirements change.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "fedvsr needs Python >= 3.10; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.test: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[demo,test,dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: setup.cfg constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-peers build dist site jupyter_execute *.egg-info .mypy_cache .ruff_cache .pytest_cache
