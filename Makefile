PYTHON ?= python3
# constraints-oldest.txt: the oldest versions that are supported
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
CXX_FILES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test lint build sanitize wheel

demo: .venv/built
	$(BIN)/python -m ssdkern.demo --output runs/demo

# One thread a process: the tests themselves run in parallel.
test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest -q -n auto --dist loadfile --ignore tests/test_cuda.py --ignore tests/test_triton.py
	$(BIN)/python -m pytest -q tests/test_cuda.py tests/test_triton.py
	$(BIN)/python tests/cuda_on_host/run.py shadow -q -n auto
	CUDA_ON_HOST_SHARED=40000 $(BIN)/python tests/cuda_on_host/run.py asan -q -n auto
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n auto -m ops -k triton
	SSDKERN_DISABLE=native $(BIN)/python -m pytest -q -n auto -m ops -k "not native and not compiles_whole"

# Minutes of compiling, so not part of `test`.
sanitize: .venv/built
	PYTHON=$(BIN)/python tests/sanitize.sh address
	PYTHON=$(BIN)/python tests/sanitize.sh thread

lint: .venv/built
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

build: .venv/built

# For every GPU from sm_75 to sm_120, and later ones by PTX.
wheel: export SSDKERN_CUDA = 1
wheel: export SSDKERN_REQUIRE_NATIVE = 1
wheel: export TORCH_CUDA_ARCH_LIST = 7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX
wheel: .venv/installed
	$(BIN)/pip wheel --no-build-isolation --no-deps --wheel-dir dist .

.venv/built: .venv/installed $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

# setuptools and pybind11 come first: the project is then built without isolation, against this torch.
.venv/installed: $(CONSTRAINTS) pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) setuptools pybind11 torch torchvision
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[dev]'
	touch $@
