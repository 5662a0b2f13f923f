// Calls a built library through its C interface and prints a hash of the results, a line for each
// instruction set, operator and element type:
//
//   calls LIBRARY [TARGET...]     exit status 0, or 1 with a message; TARGETs: what the library
//   must offer, exactly
//
// It needs the C library only, so that it runs wherever the library does: on old systems, on
// emulated processors.
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "c_api/c_api.h"
#include "operators/nsa_compress/c_api.h"
#include "operators/nsa_compress_infer/c_api.h"

namespace {

constexpr int64_t kErrorSize = 512;
constexpr const char* kDTypes[] = {"float16", "bfloat16"};

struct Library {
  decltype(&nsa_compress) compress;
  decltype(&nsa_compress_infer) compress_infer;
  decltype(&nsa_cpu_targets) targets;
  decltype(&nsa_set_cpu_target) set_target;
};

[[noreturn]] void Fail(const char* message) {
  fprintf(stderr, "%s\n", message);
  exit(1);
}

template <class Function>
void Resolve(void* library, const char* name, Function* function) {
  void* address = dlsym(library, name);
  if (address == nullptr) Fail(dlerror());
  memcpy(function, &address, sizeof address);
}

Library Open(const char* path) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) Fail(dlerror());
  Library library;
  Resolve(handle, "nsa_compress", &library.compress);
  Resolve(handle, "nsa_compress_infer", &library.compress_infer);
  Resolve(handle, "nsa_cpu_targets", &library.targets);
  Resolve(handle, "nsa_set_cpu_target", &library.set_target);
  return library;
}

// A dense array of `rank` dims; 16-bit numbers from tiny to large, of both signs, the same
// everywhere.
struct Array {
  Array(int dtype, uint64_t seed, int64_t d0, int64_t d1, int64_t d2 = 0, int64_t d3 = 0)
      : shape{d0, d1, d2, d3},
        view{nullptr, shape,
             d3 > 0   ? 4
             : d2 > 0 ? 3
                      : 2} {
    for (int64_t i = 0; i < view.rank; ++i) size *= shape[i];
    view.data = numbers = static_cast<uint16_t*>(malloc(size * sizeof *numbers));
    for (int64_t i = 0; i < size; ++i) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      const uint32_t random = static_cast<uint32_t>(seed >> 33);
      const uint32_t exponent =
          dtype == NSA_FLOAT16 ? (random >> 16) % 22 << 10 : (110 + (random >> 16) % 25) << 7;
      numbers[i] =
          static_cast<uint16_t>((random & (dtype == NSA_FLOAT16 ? 0x83FF : 0x807F)) | exponent);
    }
  }
  ~Array() { free(numbers); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  int64_t shape[4];
  NsaArray view;
  int64_t size = 1;
  uint16_t* numbers;
};

// FNV-1a.
void Hash(const Array& array, uint64_t* hash) {
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(array.numbers);
  for (size_t i = 0; i < array.size * sizeof *array.numbers; ++i)
    *hash = (*hash ^ bytes[i]) * 0x100000001B3u;
}

struct Shape {
  int64_t heads, dim, block, stride, threads;
};
constexpr Shape kShapes[] = {{1, 16, 16, 16, 1},
                             {2, 48, 32, 16, 2},
                             {4, 128, 32, 32, 1},
                             {3, 192, 64, 16, 2},
                             {5, 256, 112, 48, 1}};

void Compress(const Library& library, int dtype, const Shape& shape, uint64_t* hash) {
  const int64_t ends[] = {7, 7, 207, 400};
  int64_t rows = 0;
  for (int i = 0; i < 4; ++i) {
    const int64_t length = ends[i] - (i > 0 ? ends[i - 1] : 0);
    if (length >= shape.block) rows += 1 + (length - shape.block) / shape.stride;
  }
  const Array input(dtype, 1, 400, shape.heads, shape.dim),
      weight(dtype, 2, shape.block, shape.heads);
  const Array output(dtype, 3, rows, shape.heads, shape.dim);
  char error[kErrorSize];
  if (library.compress(dtype, &input.view, &weight.view, shape.block, shape.stride, ends, 4,
                       &output.view, shape.threads, error, kErrorSize))
    Fail(error);
  Hash(output, hash);
}

void CompressInfer(const Library& library, int dtype, const Shape& shape, uint64_t* hash) {
  // The second sequence is one token past the end of a window and writes nothing.
  const int64_t lengths[] = {shape.block, shape.block + 1, shape.block + 2 * shape.stride};
  int32_t slots[] = {4, -1, 0}, pages[] = {5, 2, 3, 0, 7, 1, 4, 6, 0, 1, 2, 3};
  const int64_t batch = 3, table_shape[] = {3, 4};
  const NsaArray slot_mapping = {slots, &batch, 1}, block_table = {pages, table_shape, 2};
  const Array input(dtype, 4, 8, 64, shape.heads, shape.dim),
      weight(dtype, 5, shape.block, shape.heads);
  const Array cache(dtype, 6, 5, shape.heads, shape.dim);
  char error[kErrorSize];
  if (library.compress_infer(dtype, &input.view, &weight.view, &slot_mapping, shape.block,
                             shape.stride, 64, &block_table, lengths, batch, &cache.view,
                             shape.threads, error, kErrorSize))
    Fail(error);
  Hash(cache, hash);
}

void PrintHashes(const Library& library, const char* target) {
  char error[kErrorSize];
  if (library.set_target(target, error, kErrorSize)) Fail(error);
  for (int dtype = 0; dtype < 2; ++dtype) {
    uint64_t prefill = 0xCBF29CE484222325u, decode = prefill;
    for (const Shape& shape : kShapes) {
      Compress(library, dtype, shape, &prefill);
      CompressInfer(library, dtype, shape, &decode);
    }
    printf("%s compress %s %016" PRIx64 "\n", target, kDTypes[dtype], prefill);
    printf("%s compress_infer %s %016" PRIx64 "\n", target, kDTypes[dtype], decode);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) Fail("usage: calls LIBRARY [TARGET...]");
  const Library library = Open(argv[1]);
  char names[kErrorSize];
  snprintf(names, sizeof names, "%s", library.targets());
  int count = 0;
  for (char* name = strtok(names, ","); name != nullptr; name = strtok(nullptr, ",")) {
    if (argc > 2 && (2 + count >= argc || strcmp(name, argv[2 + count]) != 0))
      Fail(library.targets());
    ++count;
    PrintHashes(library, name);
  }
  if (argc > 2 && 2 + count != argc) Fail(library.targets());
}
