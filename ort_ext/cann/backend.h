// Who computes on an Ascend device: one small interface, chosen by name or by what the machine has.
#ifndef NSA_ONNX_ORT_EXT_CANN_BACKEND_H_
#define NSA_ONNX_ORT_EXT_CANN_BACKEND_H_

#include <string>
#include <vector>

#include "cann/library.h"
#include "cpu/kernels.h"
#include "plan.h"

namespace nsa::cann {

// What a launch may use. All memory is the device's and stays valid for everything that has been
// put on the stream before the run of the node ends.
class Launch {
 public:
  virtual ~Launch() = default;

  virtual Stream stream() const = 0;
  virtual void* Scratch(size_t bytes) = 0;
  // Scratch memory that holds `bytes` of `data`, which is free on return.
  virtual void* Upload(const void* data, size_t bytes) = 0;
};

// NsaCompress, checked and planned: at least one output element. Device pointers.
struct CompressRun {
  cpu::DType dtype;
  const void* input;   // [tokens, heads, dim]
  const void* weight;  // [block, heads]
  void* output;        // [rows, heads, dim]
  int64_t tokens;
  int64_t heads;
  int64_t dim;
  int64_t rows;
  int64_t block;
  int64_t stride;
  const int64_t* actual_seq_len;  // host, prefix sums
  int64_t segments;
  const std::vector<RowRun>* plan;
};

// NsaCompressInfer, in place, checked and planned: at least one write, D not 0. Device pointers.
struct InferRun {
  cpu::DType dtype;
  const void* input;   // [block_num, page, heads, dim]
  const void* weight;  // [block, heads]
  void* cache;         // [slots, heads, dim]
  int64_t block_num;
  int64_t page;
  int64_t heads;
  int64_t dim;
  int64_t slots;
  int64_t block;
  const std::vector<SlotWrite>* plan;
  mutable bool cache_touched = false;  // set by the backend before it launches what writes
};

// Puts work on the stream and does not wait for it. Throws CannError; what cannot be done at all is
// refused before anything is launched.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual const char* name() const = 0;
  // Throws CannError if no node with this block can ever run: found when a session is made.
  virtual void RequireInferBlock(int64_t block) const = 0;
  virtual void Compress(const CompressRun& run, Launch& launch) const = 0;
  virtual void Infer(const InferRun& run, Launch& launch) const = 0;
};

enum class BackendChoice { kAuto, kAclnn, kAscendKernels };

// Key of the session configuration entry, and of the environment variable that stands in for it.
constexpr const char* kBackendKey = "nsa_onnx.ascend_backend";
constexpr const char* kBackendVariable = "NSA_ONNX_ASCEND_BACKEND";

// "auto" or "", "aclnn", "ascend_kernels"; throws std::invalid_argument for anything else.
BackendChoice ParseBackend(const std::string& name);

// The one that is asked for, or the first that this machine has. It lives as long as the process.
// Throws CannError that says what each of them lacks.
const Backend& GetBackend(BackendChoice choice);

// One line per backend, in the order of preference: "name: ok" or "name: what it lacks".
std::string DescribeBackends();

// Our own kernels. Throws CannError if their library is not there or does not fit.
const Backend& GetAscendKernelsBackend();

// The vendor's operators. Throws CannError if this machine does not have them.
const Backend& GetAclnnBackend();

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_CANN_BACKEND_H_
