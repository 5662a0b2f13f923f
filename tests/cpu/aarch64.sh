#!/usr/bin/env bash
# Tests the CPU kernels for aarch64 on any machine: cross-builds them and runs them on emulated processors with and
# without SVE, with several vector lengths. Each must offer the targets named here, or the test fails.
#   make test-aarch64
set -eu
cd "$(dirname "$0")/../.."

compiler=aarch64-linux-gnu-g++
emulator=$(command -v qemu-aarch64 || command -v qemu-aarch64-static || true)
command -v $compiler >/dev/null && [ -n "$emulator" ] || {
  echo "$compiler or qemu-aarch64 is missing: apt install g++-aarch64-linux-gnu qemu-user" >&2
  exit 1
}

folder=build/same_bits_aarch64
.venv/bin/cmake -S . -B $folder -G Ninja -D CMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -D NSA_ONNX_TESTS=ON \
  -D CMAKE_SYSTEM_NAME=Linux -D CMAKE_SYSTEM_PROCESSOR=aarch64 -D CMAKE_CXX_COMPILER=$compiler \
  -D NSA_ONNX_SANITIZE=OFF --log-level=WARNING
.venv/bin/cmake --build $folder --target same_bits
test=$folder/tests/cpu/same_bits

# run CPU TARGET...: all at once, the machine's cores share them out.
pids=()
run() {
  local log=$folder/$1.log
  "$emulator" -cpu "$1" $test "${@:2}" >"$log" 2>&1 &
  pids+=("$!:$log")
}
run cortex-a76 neon neon_without_aes scalar  # as Kunpeng 920: no SVE
run max,sve-max-vq=1 sve2_128 sve2 sve       # 128 bits
run max,sve-max-vq=2 sve_256 sve2 sve
run max,sve-max-vq=4 sve2 sve                # 512 bits
run max,sve-max-vq=16 sve2 sve               # 2048 bits: longer than the 16 lanes that are used

failed=0
for entry in "${pids[@]}"; do
  log=${entry#*:}
  wait "${entry%%:*}" || failed=1
  echo "$(basename "$log" .log): $(cat "$log")"
done
# Vectors of 12 lanes do not divide D: such a machine must not offer SVE.
refusal=$("$emulator" -cpu max,sve-max-vq=3 $test sve 2>&1 || true)
[[ $refusal == *"has no target sve,"* ]] || { echo "384 bits of SVE: $refusal" >&2; failed=1; }
exit $failed
