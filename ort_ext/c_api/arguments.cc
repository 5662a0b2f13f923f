// See arguments.h.
#include "c_api/arguments.h"

namespace nsa::c_api {
namespace {

std::string Describe(const char* name, const std::string& what) { return name + (" " + what); }

std::string CheckAligned(const char* name, const void* data, int64_t item_size) {
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(item_size) == 0) return {};
  return Describe(name, "must lie at a multiple of " + std::to_string(item_size) + " bytes");
}

}  // namespace

int Fail(const char* message, char* error, int64_t error_size) noexcept {
  if (error == nullptr || error_size <= 0) return 1;
  int64_t i = 0;
  for (; i < error_size - 1 && message[i] != '\0'; ++i) error[i] = message[i];
  error[i] = '\0';
  return 1;
}

std::string ReadArray(const char* name, const NsaArray* given, int64_t rank, int64_t item_size,
                      Array* array) {
  if (given == nullptr) return Describe(name, "must not be null");
  const NsaArray copy = *given;
  *array = {copy.data, copy.rank, {}};
  if (copy.rank < 0) {
    return Describe(name, "must have a rank >= 0, got " + std::to_string(copy.rank));
  }
  if (copy.rank != rank) return {};
  if (rank > 0 && copy.shape == nullptr) return Describe(name, "has no shape");
  int64_t bytes = item_size;
  bool overflow = false;
  for (int64_t i = 0; i < rank; ++i) {
    const int64_t dim = array->dims[i] = ReadOnce(copy.shape, i);
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

std::string CheckCommon(int dtype, int64_t threads, const int64_t* seq, int64_t count) {
  std::string message = CheckCommon(dtype, threads);
  return message.empty() ? CheckLengths("actual_seq_len", seq, count) : message;
}

std::string CheckCommon(int dtype, int64_t threads) {
  if (dtype != NSA_FLOAT16 && dtype != NSA_BFLOAT16) {
    return "dtype must be 0 (float16) or 1 (bfloat16), got " + std::to_string(dtype);
  }
  if (threads < 1) return "threads must be >= 1, got " + std::to_string(threads);
  return {};
}

std::string CheckLengths(const char* name, const int64_t* seq, int64_t count) {
  if (count > 0 && seq == nullptr) return Describe(name, "has no data");
  return CheckAligned(name, seq, sizeof *seq);
}

std::string CheckShape(const char* name, const Array& array, std::initializer_list<int64_t> dims) {
  const auto rank = static_cast<int64_t>(dims.size());
  if (array.rank != rank) {
    return Describe(name, "must have rank " + std::to_string(rank) + ", got rank " +
                              std::to_string(array.rank));
  }
  size_t axis = 0;
  for (const int64_t dim : dims) {
    if (array.dims[axis] != dim) {
      return std::string(name) + ".shape[" + std::to_string(axis) + "] must equal " +
             std::to_string(dim) + ", got " + std::to_string(array.dims[axis]);
    }
    ++axis;
  }
  return {};
}

std::string FirstOf(std::initializer_list<std::string> messages) {
  for (const std::string& message : messages) {
    if (!message.empty()) return message;
  }
  return {};
}

}  // namespace nsa::c_api
