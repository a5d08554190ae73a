# make demo and make test do all their own set-up on a machine that has Python 3.11 or newer, make and a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-all lint docs notebooks bench bench-gpu gpu

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
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: setup
	$(PYTEST) -m 'not slow'

test-all: setup
	$(PYTEST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy rwkv_unet kernels/biwkv platform/rwkvctl jobs/rwkv_jobs

# The tables of docs/reference.md that tell what the code says, and the site in site/, where a warning is an error.
docs: setup
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "the site is in site/index.html; with its search: $(BIN)/python -m http.server --directory site"

# The notebooks of docs/, run anew, with what they print.
notebooks: setup
	$(BIN)/python docs/notebooks.py --write

bench: setup
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# On a machine with a GPU whose Python has torch, triton and timm, and pytest for the tests; installs nothing.
# A failed test does not keep the benchmarks from running.
GPU_TESTS = $(shell grep -rl --include='test_*.py' 'mark\.gpu' tests/biwkv tests/rwkv_unet)
GPU_BENCHES = $(wildcard benchmarks/bench_wkv.py benchmarks/bench_model.py)
bench-gpu: export PYTHONPATH := kernels:.
bench-gpu:
	@status=0; \
	if $(PYTHON) -c 'import pytest' 2>/dev/null; then $(PYTHON) -m pytest -m gpu -W default -rs $(GPU_TESTS) || status=1; \
	else echo "No pytest in $(PYTHON): the GPU tests are left out"; fi; \
	for script in $(GPU_BENCHES); do echo "== $$script"; $(PYTHON) $$script || status=1; done; exit $$status

# All that is to be measured on a machine with one GPU, in under ten minutes, with a report in $(OUT)/gpu.json. CARRIED is
# a folder of packages that this Python lacks; ARGS are those of the script, as --device cpu to try it without a GPU.
OUT ?= gpu-report
gpu: export PYTHONPATH := kernels:.:platform:jobs:$(CARRIED)
gpu:
	@$(PYTHON) benchmarks/gpu_report.py --out $(OUT) --tests $(GPU_TESTS) $(ARGS)
