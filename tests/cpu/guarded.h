// Arrays whose surroundings must not be touched: a read or write outside of them ends the process.
#ifndef NSA_ONNX_TESTS_CPU_GUARDED_H_
#define NSA_ONNX_TESTS_CPU_GUARDED_H_

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace nsa::cpu {

// Where the array lies between the forbidden page before it and the one after it. The rest of its
// own pages is filled with kFill, which is a NaN in every type here.
enum class Place { kAgainstEnd, kAgainstStart, kUnaligned };

// `size` elements, each of them kFill until written.
template <class T>
class Guarded {
 public:
  static constexpr unsigned char kFill = 0xFF;

  Guarded(size_t size, Place place)
      : size_(size), page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    const size_t bytes = size * sizeof(T);
    // Room for two elements more, so that an array that is not aligned fits everywhere.
    usable_ = (bytes + 2 * sizeof(T) + page_ - 1) / page_ * page_;
    void* memory =
        mmap(nullptr, usable_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) Die("mmap");
    first_ = static_cast<unsigned char*>(memory) + page_;
    Protect(PROT_READ | PROT_WRITE);
    std::memset(first_, kFill, usable_);
    offset_ = place == Place::kAgainstEnd  ? usable_ - bytes
              : place == Place::kUnaligned ? sizeof(T)
                                           : 0;
  }
  ~Guarded() { munmap(first_ - page_, usable_ + 2 * page_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return reinterpret_cast<T*>(first_ + offset_); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data()[i]; }

  void Refill() { std::memset(first_, kFill, usable_); }
  void MakeReadOnly() { Protect(PROT_READ); }
  // Forbids the whole array; Allow then opens elements begin .. end - 1, whole pages of memory.
  void Forbid() { Protect(PROT_NONE); }
  void Allow(size_t begin, size_t end) {
    if (mprotect(data() + begin, (end - begin) * sizeof(T), PROT_READ)) Die("mprotect");
  }

  // Whether what lies on the array's own pages before and after it is as it was.
  bool SurroundingsUntouched() const {
    for (size_t i = 0; i < usable_; ++i) {
      if (i == offset_) i += size_ * sizeof(T);
      if (i < usable_ && first_[i] != kFill) return false;
    }
    return true;
  }

 private:
  [[noreturn]] static void Die(const char* what) {
    std::perror(what);
    std::exit(2);
  }
  void Protect(int allowed) {
    if (mprotect(first_, usable_, allowed)) Die("mprotect");
  }

  size_t size_, page_, usable_, offset_;
  unsigned char* first_;
};

}  // namespace nsa::cpu

#endif  // NSA_ONNX_TESTS_CPU_GUARDED_H_
