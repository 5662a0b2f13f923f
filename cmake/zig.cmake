# Toolchain of the distributed wheels (tools/wheels.sh): PyPI's ziglang, which is Clang with the C library's headers
# and LLVM's C++ library, compiles for an older glibc and for other processors.
#
# Environment: ZIG, the path of zig; ZIG_ARCH, x86_64 or aarch64; ZIG_GLIBC, the oldest glibc, as 2.17.
foreach(name ZIG ZIG_ARCH ZIG_GLIBC)
  if(NOT DEFINED ENV{${name}})
    message(FATAL_ERROR "cmake/zig.cmake needs the environment variable ${name}; make wheels sets it")
  endif()
endforeach()

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR $ENV{ZIG_ARCH})
# -s and -O2 in every call: zig compiles its C++ library anew for each choice of them, CMake's first test included. The
# build types' own -O follows. The library's debug information is ten times the size of ours.
set(CMAKE_CXX_COMPILER $ENV{ZIG} c++ -target $ENV{ZIG_ARCH}-linux-gnu.$ENV{ZIG_GLIBC} -O2 -s)
# binutils of this machine know its own processor only.
set(CMAKE_CXX_ARCHIVE_CREATE "$ENV{ZIG} ar qc <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_APPEND "$ENV{ZIG} ar q <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "")
# CMake's other tests need no linking.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
