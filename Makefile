# make demo and make test do all their own set-up on a machine that has Python 3.11 or newer, make and a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-fast lint bench

setup: $(READY)

# One virtual environment with exactly the versions that the tests ran with.
# Again when the operator's compiled kernel changes, which the installation builds.
$(READY): pyproject.toml constraints.txt hatch_build.py $(wildcard kernels/biwkv/csrc/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	@$(BIN)/rwkvctl demo

# Two processes, one thread each: the training tests start processes of their own.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy rwkv_unet kernels/biwkv platform/rwkvctl jobs/rwkv_jobs

bench: setup
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done
