#!/usr/bin/env bash
# Builds into dist/ what can be handed to others: a wheel for each of two processors, a wheel without native code, and
# the sdist. docs/install.md says what each is for.
#   make wheels
set -eu
cd "$(dirname "$0")/.."

# The oldest glibc that the native wheels run with; PyPI's name for that is manylinux_2_17.
export ZIG_GLIBC=2.17

build() { .venv/bin/pip wheel -q --no-build-isolation --no-deps -w dist "$@" .; }

rm -f dist/nsa_onnx-*
ZIG=$(build/venv-wheels/bin/python -c "import ziglang; print(ziglang.__path__[0] + '/zig')")
export ZIG ZIG_GLOBAL_CACHE_DIR=$PWD/build/zig ZIG_LOCAL_CACHE_DIR=$PWD/build/zig
for arch in x86_64 aarch64; do
  # zig strips while it links; this machine's strip knows its own processor only.
  ZIG_ARCH=$arch build -C build-dir=build/wheels/$arch -C cmake.toolchain-file=cmake/zig.cmake -C install.strip=false \
    -C wheel.cmake=true -C "wheel.tags=py3-none-manylinux_${ZIG_GLIBC/./_}_$arch"
done
build -C wheel.cmake=false
.venv/bin/python -c "from scikit_build_core import build; build.build_sdist('dist')"
ls -l dist
