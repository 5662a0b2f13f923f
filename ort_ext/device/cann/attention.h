// What the vendor's operators for attention take: what all of them are asked before they are
// called. The bounds of each are in nsa_onnx/targets/vendor_attention.py, and from there in the
// generated header.
#ifndef NSA_ONNX_ORT_EXT_DEVICE_CANN_ATTENTION_H_
#define NSA_ONNX_ORT_EXT_DEVICE_CANN_ATTENTION_H_

#include <cstdint>
#include <string>
#include <vector>

#include "device/cann/aclnn.h"
#include "nsa_spec.h"
#include "plan/attention.h"

namespace nsa::cann {

// Throws CannError: "the aclnn backend <what>", and that there is only the CPU instead.
[[noreturn]] void RefuseAttention(const std::string& what);

// What a node says.
void RequireAttributes(const spec::AttentionSizes& sizes, const AttentionAttributes& attributes);

// Dims of a call; `heads` and `key_heads` as its attributes or its key have them.
void RequireDims(const spec::AttentionSizes& sizes, int64_t heads, int64_t key_heads,
                 int64_t head_dim, int64_t value_dim);

// The sequences of a call: how many tokens of key each has, and how many blocks to choose from.
struct KeySequences {
  std::vector<int64_t> tokens;
  std::vector<int64_t> blocks;
};

// `lengths`: the input that says how long they are. Each of them must have `count` blocks.
void RequireKeySequences(const spec::AttentionSizes& sizes, const char* lengths,
                         const KeySequences& sequences, int64_t count);

// What its operators on sequences without pages write for the gradient, and nobody reads here:
// maximum and sum of every row's softmax.
class SoftmaxOutputs {
 public:
  SoftmaxOutputs(device::Launch& launch, int64_t rows, int64_t heads);

  const aclTensor* maxima() const { return maxima_.get(); }
  const aclTensor* sums() const { return sums_.get(); }

 private:
  Tensor maxima_;
  Tensor sums_;
};

// The sparse mode of calls on pages, which have no mask.
constexpr int64_t kNoMask = 0;

}  // namespace nsa::cann

#endif  // NSA_ONNX_ORT_EXT_DEVICE_CANN_ATTENTION_H_
