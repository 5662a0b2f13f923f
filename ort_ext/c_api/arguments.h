// What every function of the C interface (c_api.h) does: read the caller's arguments, hand errors
// back.
#ifndef NSA_ONNX_ORT_EXT_C_API_ARGUMENTS_H_
#define NSA_ONNX_ORT_EXT_C_API_ARGUMENTS_H_

#include <array>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>

#include "c_api/c_api.h"
#include "plan/caller.h"

namespace nsa::c_api {

// Puts `message` into the caller's buffer; the return value of the function that failed.
int Fail(const char* message, char* error, int64_t error_size) noexcept;

// Runs `call`, which returns a message, and turns it and whatever it throws into the return value.
template <class Call>
int Guarded(char* error, int64_t error_size, Call call) noexcept {
  try {
    const std::string message = call();
    return message.empty() ? 0 : Fail(message.c_str(), error, error_size);
  } catch (const std::bad_alloc&) {
    return Fail("not enough memory for this call", error, error_size);
  } catch (const std::exception& e) {
    return Fail(e.what(), error, error_size);
  } catch (...) {
    return Fail("unknown error", error, error_size);
  }
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
                      Array* array);

// dtype and threads, which all operators have, and lengths under the name that most give them.
std::string CheckCommon(int dtype, int64_t threads, const int64_t* seq, int64_t count);
std::string CheckCommon(int dtype, int64_t threads);
std::string CheckLengths(const char* name, const int64_t* seq, int64_t count);

// An array that the function writes: it has these dims.
std::string CheckShape(const char* name, const Array& array, std::initializer_list<int64_t> dims);

// The first that is not empty.
std::string FirstOf(std::initializer_list<std::string> messages);

}  // namespace nsa::c_api

#endif  // NSA_ONNX_ORT_EXT_C_API_ARGUMENTS_H_
