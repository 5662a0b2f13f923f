#!/usr/bin/env bash
# Builds the fuzzer (fuzz.cc) twice, with AddressSanitizer and UndefinedBehaviorSanitizer and with ThreadSanitizer, and
# runs both; with the latter also onnxruntime's sessions in several threads (sessions.cc). CONTRIBUTING.md says what
# this covers.
#   make test-sanitize
# NSA_FUZZ_SECONDS: of the processor, for which each of the two tries cases. NSA_FUZZ_SEED: for the cases; the commit's if
# it is not set, so that each commit tries others and a failure comes again.
set -eu
cd "$(dirname "$0")/../.."

seconds=${NSA_FUZZ_SECONDS:-25}
commit=$(git rev-parse --short=8 HEAD 2>/dev/null || echo 1)
seed=${NSA_FUZZ_SEED:-$((16#$commit))}

export ASAN_OPTIONS=detect_stack_use_after_return=1
export UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1
# onnxruntime, which is not instrumented, is not looked at.
export TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1

for sanitizer in address thread; do
  folder=build/sanitize/$sanitizer
  # -O1: with -O2 or more, the compiler needs minutes for the checks of a single kernel.
  .venv/bin/cmake -S . -B $folder -G Ninja -D CMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -D NSA_ONNX_TESTS=ON \
    -D NSA_ONNX_SANITIZE=$sanitizer -D CMAKE_BUILD_TYPE=None -D CMAKE_CXX_FLAGS=-O1 --log-level=WARNING
  targets=(fuzz)
  if [ $sanitizer = thread ]; then targets+=(sessions); fi
  .venv/bin/cmake --build $folder --target "${targets[@]}"
  # ThreadSanitizer's memory must lie where some kernels put a program at random.
  fixed=()
  if [ $sanitizer = thread ] && setarch -R true 2>/dev/null; then fixed=(setarch -R); fi
  "${fixed[@]}" $folder/tests/cpu/fuzz "$seconds" "$seed"
done

models=build/sanitize/models
library=$(PYTHONPATH=. .venv/bin/python tests/cpu/example_models.py $models)
"${fixed[@]}" build/sanitize/thread/tests/cpu/sessions "$library" $models/*.onnx
