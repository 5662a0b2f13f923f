// The C interface of c_api.h: checks, plans, runs the CPU kernels on threads of its own.
#include "c_api.h"

#include <algorithm>
#include <array>
#include <exception>
#include <string>
#include <vector>

#include "cann/backend.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "plan.h"

namespace nsa {
namespace {

// Puts `message` into the caller's buffer; the return value of the function that failed.
int Fail(const char* message, char* error, int64_t error_size) noexcept {
  if (error == nullptr || error_size <= 0) return 1;
  int64_t i = 0;
  for (; i < error_size - 1 && message[i] != '\0'; ++i) error[i] = message[i];
  error[i] = '\0';
  return 1;
}

// Runs `call`, which returns a message, and turns it and whatever it throws into the return value.
template <class Call>
int Guarded(char* error, int64_t error_size, Call call) noexcept {
  try {
    const std::string message = call();
    return message.empty() ? 0 : Fail(message.c_str(), error, error_size);
  } catch (const std::exception& e) {
    return Fail(e.what(), error, error_size);
  } catch (...) {
    return Fail("unknown error", error, error_size);
  }
}

std::string Describe(const char* name, const std::string& what) { return name + (" " + what); }

std::string CheckAligned(const char* name, const void* data, int64_t item_size) {
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(item_size) == 0) return {};
  return Describe(name, "must lie at a multiple of " + std::to_string(item_size) + " bytes");
}

// An array of the caller as it was when it was looked at: rank and dims are read once, like
// indices.
struct Array {
  void* data = nullptr;
  int64_t rank = 0;
  std::array<int64_t, 4> dims{};

  Shape shape() const { return {dims.data(), rank}; }
};

// Copies what the caller says of an array, and checks what must hold before its data can be read at
// all; its contract comes after. Of an array of another rank nothing but the rank is read: it will
// be refused for that.
std::string ReadArray(const char* name, const NsaArray* given, int64_t rank, int64_t item_size,
                      Array* array) {
  if (given == nullptr) return Describe(name, "must not be null");
  const NsaArray copy = *given;
  *array = {copy.data, copy.rank, {}};
  if (copy.rank < 0) return Describe(name, "has rank " + std::to_string(copy.rank));
  if (copy.rank != rank) return {};
  if (rank > 0 && copy.shape == nullptr) return Describe(name, "has no shape");
  std::copy_n(copy.shape, rank, array->dims.begin());
  int64_t bytes = item_size;
  bool overflow = false;
  for (int64_t i = 0; i < rank; ++i) {
    const int64_t dim = array->dims[i];
    if (dim < 0) {
      return std::string(name) + ".shape[" + std::to_string(i) + "] must be >= 0, got " +
             std::to_string(dim);
    }
    if (dim == 0) bytes = 0, overflow = false;
    if (bytes != 0) overflow = overflow || __builtin_mul_overflow(bytes, dim, &bytes);
  }
  if (overflow) return Describe(name, "has more bytes than an int64 can count");
  if (bytes != 0 && array->data == nullptr) return Describe(name, "has no data");
  return CheckAligned(name, array->data, item_size);
}

std::string FirstOf(std::initializer_list<std::string> messages) {
  for (const std::string& message : messages) {
    if (!message.empty()) return message;
  }
  return {};
}

std::string CheckCommon(int dtype, int64_t threads, const int64_t* seq, int64_t count) {
  if (dtype != NSA_FLOAT16 && dtype != NSA_BFLOAT16) {
    return "dtype must be 0 (float16) or 1 (bfloat16), got " + std::to_string(dtype);
  }
  if (threads < 1) return "threads must be >= 1, got " + std::to_string(threads);
  if (count > 0 && seq == nullptr) return "actual_seq_len has no data";
  return CheckAligned("actual_seq_len", seq, sizeof *seq);
}

std::string CheckOutput(const Array& output, const int64_t (&wanted)[3]) {
  if (output.rank != 3) {
    return "output must have rank 3 [T', N, D], got rank " + std::to_string(output.rank);
  }
  for (int axis = 0; axis < 3; ++axis) {
    if (output.dims[axis] != wanted[axis]) {
      return "output.shape[" + std::to_string(axis) + "] must equal " +
             std::to_string(wanted[axis]) + ", got " + std::to_string(output.dims[axis]);
    }
  }
  return {};
}

std::string Compress(int dtype, const Array& input, const Array& weight, int64_t block,
                     int64_t stride, const int64_t* actual_seq_len, int64_t segments,
                     const Array& output, int64_t threads) {
  std::vector<RowRun> plan;
  std::string error =
      PlanCompress({input.shape(), weight.shape(), block, stride, actual_seq_len, segments}, &plan);
  if (!error.empty()) return error;
  const int64_t heads = input.dims[1], dim = input.dims[2], rows = PlannedRows(plan);
  error = CheckOutput(output, {rows, heads, dim});
  if (!error.empty()) return error;
  const cpu::CompressData data{static_cast<const uint16_t*>(input.data),
                               static_cast<const uint16_t*>(weight.data),
                               static_cast<uint16_t*>(output.data),
                               heads,
                               dim,
                               block,
                               stride,
                               plan.data(),
                               static_cast<int64_t>(plan.size())};
  cpu::RunCompress(static_cast<cpu::DType>(dtype), data, cpu::OwnThreads(threads));
  return {};
}

std::string Infer(int dtype, const InferCall& call, const Array& input, const Array& weight,
                  const Array& cache, int64_t threads) {
  std::vector<SlotWrite> plan;
  const std::string error = PlanInfer(call, &plan);
  if (!error.empty()) return error;
  const cpu::InferData data{static_cast<const uint16_t*>(input.data),
                            static_cast<const uint16_t*>(weight.data),
                            static_cast<uint16_t*>(cache.data),
                            call.input[2],
                            call.input[3],
                            call.block,
                            call.page,
                            plan.data(),
                            static_cast<int64_t>(plan.size())};
  cpu::RunInfer(static_cast<cpu::DType>(dtype), data, cpu::OwnThreads(threads));
  return {};
}

}  // namespace
}  // namespace nsa

int nsa_compress(int dtype, const NsaArray* input, const NsaArray* weight,
                 int64_t compress_block_size, int64_t compress_stride,
                 const int64_t* actual_seq_len, int64_t segments, const NsaArray* output,
                 int64_t threads, char* error, int64_t error_size) {
  return nsa::Guarded(error, error_size, [&] {
    nsa::Array x, w, y;
    std::string message = nsa::FirstOf({nsa::CheckCommon(dtype, threads, actual_seq_len, segments),
                                        nsa::ReadArray("input", input, 3, 2, &x),
                                        nsa::ReadArray("weight", weight, 2, 2, &w),
                                        nsa::ReadArray("output", output, 3, 2, &y)});
    if (!message.empty()) return message;
    return nsa::Compress(dtype, x, w, compress_block_size, compress_stride, actual_seq_len,
                         segments, y, threads);
  });
}

int nsa_compress_infer(int dtype, const NsaArray* input, const NsaArray* weight,
                       const NsaArray* slot_mapping, int64_t compress_block_size,
                       int64_t compress_stride, int64_t page_block_size,
                       const NsaArray* block_table, const int64_t* actual_seq_len,
                       int64_t sequences, const NsaArray* cache, int64_t threads, char* error,
                       int64_t error_size) {
  return nsa::Guarded(error, error_size, [&] {
    const bool has_table = block_table != nullptr;
    nsa::Array x, w, slots, y, table;
    std::string message = nsa::FirstOf(
        {nsa::CheckCommon(dtype, threads, actual_seq_len, sequences),
         nsa::ReadArray("input", input, 4, 2, &x), nsa::ReadArray("weight", weight, 2, 2, &w),
         nsa::ReadArray("slot_mapping", slot_mapping, 1, 4, &slots),
         nsa::ReadArray("cache", cache, 3, 2, &y),
         has_table ? nsa::ReadArray("block_table", block_table, 2, 4, &table) : std::string()});
    if (!message.empty()) return message;
    const nsa::InferCall call{x.shape(),
                              w.shape(),
                              slots.shape(),
                              y.shape(),
                              table.shape(),
                              compress_block_size,
                              compress_stride,
                              page_block_size,
                              static_cast<const int32_t*>(slots.data),
                              static_cast<const int32_t*>(table.data),
                              actual_seq_len,
                              sequences,
                              has_table};
    return nsa::Infer(dtype, call, x, w, y, threads);
  });
}

const char* nsa_cpu_target(void) { return nsa::cpu::TargetName(); }

const char* nsa_cpu_targets(void) { return nsa::cpu::TargetNames(); }

int nsa_set_cpu_target(const char* name, char* error, int64_t error_size) {
  return nsa::Guarded(error, error_size, [&] { return nsa::cpu::SetTarget(name); });
}

const char* nsa_ascend_backends(void) {
  try {
    static const std::string lines = nsa::cann::DescribeBackends();
    return lines.c_str();
  } catch (const std::exception&) {  // out of memory
    return "";
  }
}

const char* nsa_version(void) { return nsa::spec::kVersion; }
