#!/usr/bin/env bash
# Builds the fuzzer (fuzz.cc) with AddressSanitizer and UndefinedBehaviorSanitizer, together with the whole library and
# the simulated CANN (nodes.cc); and with ThreadSanitizer, together with onnxruntime's sessions in several threads
# (sessions.cc). Runs them. CONTRIBUTING.md says what this covers.
#   make test-sanitize
# NSA_FUZZ_SECONDS: of the processor, for which each of the two tries cases. NSA_FUZZ_SEED: for the cases; the commit's if
# it is not set, so that each commit tries others and a failure comes again. NSA_FUZZ_ALL=1: the kernels of SSE4 and
# AVX-512 as well, which take minutes more to compile.
set -eu
cd "$(dirname "$0")/../.."

seconds=${NSA_FUZZ_SECONDS:-25}
commit=$(git rev-parse --short=8 HEAD 2>/dev/null || echo 1)
seed=${NSA_FUZZ_SEED:-$((16#$commit))}

# Without intercept_tls_get_addr the search for leaks crashes where a library was loaded late.
export ASAN_OPTIONS=detect_stack_use_after_return=1:intercept_tls_get_addr=0
export UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1
# onnxruntime, which is not instrumented, is not looked at.
export TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1

# build SOURCE FOLDER TARGET FLAGS...
# -O1: with -O2 or more, the compiler needs minutes for the checks of a single kernel.
build() {
  .venv/bin/cmake -S "$1" -B "$2" -G Ninja -D CMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -D CMAKE_BUILD_TYPE=None \
    --log-level=WARNING "${@:4}"
  .venv/bin/cmake --build "$2" --target "$3"
}

folder=build/sanitize
library=(-D NSA_ONNX_TESTS=ON -D CMAKE_CXX_FLAGS=-O1 -D NSA_ONNX_SANITIZE_ALL="${NSA_FUZZ_ALL:-0}")
build . $folder/address fuzz_nodes "${library[@]}" -D NSA_ONNX_SANITIZE=address
# GCC, which says so, is wrong about uninitialized values where it instruments.
checks="-fsanitize=address,undefined -fno-sanitize-recover=undefined -Wno-maybe-uninitialized"
build tests/sim $folder/sim sim -D CMAKE_CXX_FLAGS="-O1 -g $checks"
LD_LIBRARY_PATH=$PWD/$folder/sim/lib $folder/address/tests/cpu/fuzz_nodes "$seconds" "$seed"

build . $folder/thread fuzz "${library[@]}" -D NSA_ONNX_SANITIZE=thread
build . $folder/thread sessions
# ThreadSanitizer's memory must lie where some kernels put a program at random.
fixed=()
if setarch -R true 2>/dev/null; then fixed=(setarch -R); fi
"${fixed[@]}" $folder/thread/tests/cpu/fuzz "$seconds" "$seed"

models=$folder/models
runtime=$(PYTHONPATH=. .venv/bin/python tests/cpu/example_models.py $models)
"${fixed[@]}" $folder/thread/tests/cpu/sessions "$runtime" $models/*.onnx
