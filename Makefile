# Builds, tests and measures the project; `make help` lists the targets. All that it makes lies
# under .venv/, build/ and dist/.
#
# Needs python3 (3.11 or later; the package itself runs on 3.10 too) with venv and headers, g++ and make. Everything
# else, cmake included, is installed from Python packages or downloaded by the build (see cmake/).

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Otherwise torch loads every installed backend when it is imported, and stops if one does not find its driver.
export TORCH_DEVICE_BACKEND_AUTOLOAD := 0
# A build downloads only if it is asked to (cmake/dependencies.cmake); those of this file are.
export NSA_ONNX_FETCH ?= 1

.PHONY: help env build demo test test-files test-aarch64 test-sanitize test-mutants test-browser test-tools \
  test-versions test-wheels wheels coverage bench bench-quick lint format clean

# Stamps: an empty file for each thing that is made. It is made again when what it depends on is newer than its stamp.
ENV := .venv/.stamp-env
TORCH_NPU := build/torch_npu/.stamp
ORT_CANN := build/venv-cann/.stamp
CANN := build/venv-cann/.stamp
TOOLS := build/tools/.stamp
MUTATION := build/venv-mutants/.stamp
OLDEST := build/tox/.stamp-oldest
WHEEL_TOOLS := build/venv-wheels/.stamp
SIM := build/sim/.stamp
DEMO := .venv/.stamp-demo
BUILD := .venv/.stamp-build
BENCH := .venv/.stamp-bench

help:
	@echo "make demo           export a small model, serve README.md with it, compare with PyTorch (torch is downloaded)"
	@echo "make test           the tests that need no further packages"
	@echo "make test-aarch64   the CPU kernels on an emulated aarch64 (g++-aarch64-linux-gnu, qemu-user)"
	@echo "make test-sanitize  the C++ code under sanitizers, with random calls (NSA_FUZZ_SECONDS=600: for longer)"
	@echo "make test-mutants   do the tests notice changes in the sources? (an hour; MUTANTS=plan: a part)"
	@echo "make test-files     hostile and mutated files through every command; make test does it for 20 seconds"
	@echo "                    (NSA_FUZZ_SECONDS=600: for longer)"
	@echo "make test-browser   the page of nsa-onnx explain in a browser (chromium, chromium-driver)"
	@echo "make test-tools     what other ONNX tools do to NSA nodes (downloads the tools)"
	@echo "make test-versions  the oldest and the newest Python, numpy, onnx and onnxruntime (VERSIONS=oldest: these alone)"
	@echo "make wheels         wheels for x86-64, aarch64 and other machines, and the sdist, into dist/"
	@echo "make test-wheels    make wheels, and what its wheels do elsewhere (g++-aarch64-linux-gnu, qemu-user)"
	@echo "make bench          measure the CPU kernels, a quarter of an hour; make bench-quick: a minute"
	@echo "make coverage       the tests of make test, and which lines of Python they run"
	@echo "make lint           check the sources; make format: format them"
	@echo "make build          set up .venv and install the package there, editable; make env: set up .venv alone"
	@echo "make clean          remove .venv, build and dist"

env: $(ENV)
build: $(ENV) $(BUILD)

# What the package is built and the demo runs with; pip shows how far it is.
$(DEMO): pyproject.toml tools/extra_requirements.py
	$(PYTHON) -m venv .venv
	$(PYTHON) tools/extra_requirements.py demo > .venv/requirements-demo.txt
	@echo "Installing packages into .venv (torch is large)"
	$(BIN)/pip install -r .venv/requirements-demo.txt
	touch $@

$(ENV): $(DEMO)
	$(PYTHON) tools/extra_requirements.py dev > .venv/requirements.txt
	$(BIN)/pip install -q -r .venv/requirements.txt
	touch $@

# The real torch_npu, in a folder outside .venv: inside, `import torch` would fail without CANN.
$(TORCH_NPU): pyproject.toml
	$(PYTHON) -m venv build/venv-pip >/dev/null
	build/venv-pip/bin/pip install -q --upgrade --no-deps --target $(@D) torch_npu==2.13.0 pyyaml==6.0.3
	touch $@

# The tools of docs/tools.md, outside .venv as well: they ask for older versions of other packages.
$(TOOLS): pyproject.toml tools/extra_requirements.py
	$(PYTHON) -m venv build/venv-pip >/dev/null
	$(PYTHON) tools/extra_requirements.py tools > build/venv-pip/tools.txt
	rm -rf $(@D)
	build/venv-pip/bin/pip install -q --no-deps --target $(@D) -r build/venv-pip/tools.txt
	touch $@

# The real onnxruntime-cann in a separate environment: it needs numpy < 2 and is imported as onnxruntime.
$(ORT_CANN): pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q onnxruntime-cann==1.24.4 numpy==1.26.4 onnx==1.19.1 ml_dtypes==0.5.3 protobuf==7.36.2
	touch $@

# The simulated CANN that the real torch_npu and onnxruntime-cann run on.
SIM_SOURCES := $(wildcard $(addprefix tests/sim/,*.cc *.h CMakeLists.txt ascendc/* ascendc/*/*) \
  ascend_kernels/*.cc ascend_kernels/*.h ascend_kernels/*/*.cc ascend_kernels/*/*.h plan/*)
$(SIM): $(SIM_SOURCES) $(ENV) $(TORCH_NPU) $(ORT_CANN)
	$(BIN)/cmake -S tests/sim -B $(@D) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
	$(BIN)/cmake --build $(@D)
	touch $@

NATIVE := CMakeLists.txt pyproject.toml $(wildcard nsa_onnx/operators/*.py nsa_onnx/operators/*/contract.py \
  nsa_onnx/targets/vendor.py cmake/* plan/* ort_ext/* ort_ext/*/* ort_ext/*/*/*)
# The folders are listed too: an editable install knows only the modules that existed when it was made.
PACKAGES := nsa_onnx exporters \
  $(filter-out %__pycache__/,$(filter %/,$(wildcard nsa_onnx/*/ nsa_onnx/*/*/ exporters/*/)))
$(BUILD): $(DEMO) $(NATIVE) $(PACKAGES)
	@echo "Compiling the CPU kernels for each instruction set (about a minute)"
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .
	touch $@

demo: $(BUILD)
	$(BIN)/python examples/nsa_decoder.py

# Some tests run torch.compile, which needs Python's headers. Checked first, because the tests take long.
HAS_HEADERS := import os, sysconfig; print(os.path.isfile(sysconfig.get_path("include") + "/Python.h"))
test: $(BUILD) $(BENCH) $(OLDEST) $(SIM) $(CANN)
	@test "$$($(BIN)/python -c '$(HAS_HEADERS)')" = True || \
	  { echo "Python.h is missing, the tests need it: apt install python3-dev" >&2; exit 1; }
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# A separate target, because counting the lines takes about as long as the tests themselves.
coverage: PYTEST_ARGS = --cov --cov-report=term:skip-covered
coverage: test

# Needs g++-aarch64-linux-gnu and qemu-user as well.
test-aarch64: $(ENV)
	tests/cpu/aarch64.sh

# Random calls of the C interface, with AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
test-sanitize: $(ENV)
	tests/cpu/sanitize.sh

# What changes the sources, in a separate environment because it needs many packages.
$(MUTATION): pyproject.toml tools/extra_requirements.py
	$(PYTHON) -m venv $(@D)
	$(PYTHON) tools/extra_requirements.py mutants > $(@D)/requirements.txt
	$(@D)/bin/pip install -q -r $(@D)/requirements.txt
	touch $@

# MUTANTS: files or folders of tests/mutants/parts.toml.
test-mutants: $(BUILD) $(ENV) $(SIM) $(CANN) $(MUTATION)
	$(BIN)/python tests/mutants/run.py $(MUTANTS)

# What make test does with files that nobody trusts, and with writers that are killed, for longer.
test-files: export NSA_FUZZ_SECONDS ?= 120
test-files: $(ENV) $(BUILD)
	$(BIN)/python -m pytest -n 2 --dist load tests/test_hostile.py tests/test_writing.py

# The page of `nsa-onnx explain` in headless Chromium: apt install chromium chromium-driver
test-browser: $(ENV) $(BUILD)
	$(BIN)/python -m pytest tests/browser

# What other ONNX tools do to our nodes: docs/tools.md
test-tools: $(ENV) $(BUILD) $(TOOLS)
	PYTHONPATH=$(CURDIR)/build/tools $(BIN)/python -m pytest -n 2 --confcutdir=tests/tools tests/tools

# Our wheel with other versions of what it needs: pyproject.toml has the table. Where a Python is missing, uv downloads
# it. pyenv's are named, because its own python3.10 and the like answer only where a version is switched on.
PYENV := $(wildcard $(HOME)/.pyenv/versions/3.1?.*/bin)
define tox
  rm -rf build/wheel
  $(BIN)/pip wheel -q --no-build-isolation --no-deps -w build/wheel .
  PATH="$$PATH:$(subst $() $(),:,$(PYENV))" $(BIN)/tox run --recreate --installpkg build/wheel/*.whl
endef

# Tests of make test run the library in the oldest onnxruntime; the wheel in there may be older than the sources.
$(OLDEST): $(ENV) | $(BUILD)
	$(tox) -e oldest --notest
	touch $@

test-versions: $(ENV) $(BUILD)
	$(tox) $(if $(VERSIONS),-e $(VERSIONS))

# The compiler for other machines, in a separate environment because it is large.
$(WHEEL_TOOLS): pyproject.toml tools/extra_requirements.py
	$(PYTHON) -m venv $(@D)
	$(PYTHON) tools/extra_requirements.py wheels > $(@D)/requirements.txt
	$(@D)/bin/pip install -q -r $(@D)/requirements.txt
	touch $@

# docs/install.md says what each file is for.
wheels: $(DEMO) $(WHEEL_TOOLS)
	tools/wheels.sh

# aarch64's C library, which the emulated programs load, comes with g++-aarch64-linux-gnu.
test-wheels: $(ENV) $(BUILD) wheels
	$(BIN)/python -m pytest tests/wheels

# Packages for plots and a progress bar. The benchmarks' own library is built by benchmarks/limits.py.
$(BENCH): $(ENV) pyproject.toml
	$(PYTHON) tools/extra_requirements.py bench > .venv/requirements-bench.txt
	$(BIN)/pip install -q -r .venv/requirements-bench.txt
	touch $@

# BENCH_ARGS="--sections prefill --shapes 32/16" and the like measure a part.
BENCH_OUT := build/bench
bench: $(BUILD) $(BENCH)
	$(BIN)/python -m benchmarks --json $(BENCH_OUT)/bench.json --plots $(BENCH_OUT) $(BENCH_ARGS)
	$(BIN)/python benchmarks/ascend_counters.py --plot $(BENCH_OUT)/ascend.png

bench-quick: $(BUILD) $(BENCH)
	$(BIN)/python -m benchmarks --quick --json $(BENCH_OUT)/quick.json --plots $(BENCH_OUT)/quick $(BENCH_ARGS)

CXX_SOURCES = $(shell git ls-files '*.c' '*.cc' '*.h')
lint: $(ENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/shellcheck .ci/run $(shell git ls-files '*.sh')
	$(BIN)/actionlint -shellcheck=$(BIN)/shellcheck -pyflakes= $(shell git ls-files '.github/workflows/*.yml')

format: $(ENV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

clean:
	rm -rf .venv build dist
