// See attention.h.
#include "device/cann/attention.h"

#include "device/cann/library.h"

namespace nsa::cann {
namespace {

std::string Text(int64_t number) { return std::to_string(number); }

// Of a number that is known and bounded.
void RequireAtMost(const std::string& what, int64_t number, int64_t most) {
  if (most == 0 || number <= most) return;
  RefuseAttention("takes " + what + " <= " + Text(most) + ", got " + Text(number));
}

void RequireDim(const std::string& what, int64_t dim, int64_t most, bool exact) {
  if (most == 0 || dim == most || (!exact && dim < most)) return;
  RefuseAttention("takes " + what + (exact ? " = " : " <= ") + Text(most) + ", got " + Text(dim));
}

void RequireHeads(const spec::AttentionSizes& sizes, int64_t heads, int64_t key_heads) {
  RequireAtMost("N2", key_heads, sizes.key_heads);
  const int64_t group = heads / key_heads;
  const bool divides = sizes.dividing_group == 0 || spec::kVendorGroupDivides % group == 0;
  if (group <= sizes.group && divides) return;
  const std::string that =
      sizes.dividing_group == 0 ? "" : " that divide " + Text(spec::kVendorGroupDivides);
  RefuseAttention("takes N1 / N2 <= " + Text(sizes.group) + that + ", got " + Text(group));
}

void RequirePage(const spec::AttentionSizes& sizes, int64_t page) {
  if (sizes.min_page == 0) return RequireAtMost("page_block_size", page, sizes.page);
  if (page == sizes.min_page || page == sizes.page) return;
  RefuseAttention("takes page_block_size " + Text(sizes.min_page) + " or " + Text(sizes.page) +
                  ", got " + Text(page));
}

}  // namespace

void RefuseAttention(const std::string& what) {
  throw CannError("the aclnn backend " + what + ": use device=\"cpu\"");
}

void RequireAttributes(const spec::AttentionSizes& sizes, const AttentionAttributes& attributes) {
  RequireAtMost("N1", attributes.heads, sizes.heads);
  if (attributes.kv_heads) RequireHeads(sizes, attributes.heads, *attributes.kv_heads);
  RequireAtMost("compress_stride", attributes.stride.value_or(0), sizes.stride);
  RequireAtMost("select_block_count", attributes.select_count, sizes.count);
  if (attributes.page) RequirePage(sizes, *attributes.page);
}

void RequireDims(const spec::AttentionSizes& sizes, int64_t heads, int64_t key_heads,
                 int64_t head_dim, int64_t value_dim) {
  RequireHeads(sizes, heads, key_heads);
  RequireDim("D", head_dim, sizes.head_dim, sizes.exact_dims != 0);
  RequireDim("Dv", value_dim, sizes.value_dim, sizes.exact_dims != 0);
}

void RequireKeySequences(const spec::AttentionSizes& sizes, const char* lengths,
                         const KeySequences& sequences, int64_t count) {
  const auto size = static_cast<int64_t>(sequences.tokens.size());
  if (size > sizes.sequences) {
    RefuseAttention("takes at most " + Text(sizes.sequences) + " sequences, got " + Text(size));
  }
  for (size_t b = 0; b < sequences.tokens.size(); ++b) {
    const int64_t tokens = sequences.tokens[b], blocks = sequences.blocks[b];
    const std::string has =
        std::string(lengths) + ": sequence " + std::to_string(b) + " has " + Text(tokens);
    if (tokens < 1) RefuseAttention("takes sequences of at least 1 token, " + has);
    if (sizes.length != 0 && tokens > sizes.length) {
      RefuseAttention("takes sequences of at most " + Text(sizes.length) + " tokens, " + has);
    }
    if (blocks < count) {
      RefuseAttention("takes select_block_count <= the blocks of every sequence, got " +
                      Text(count) + ", " + has + " tokens in " + Text(blocks) + " blocks");
    }
    if (sizes.blocks != 0 && blocks > sizes.blocks) {
      RefuseAttention("takes sequences of at most " + Text(sizes.blocks) + " blocks, " + has +
                      " tokens in " + Text(blocks));
    }
  }
}

SoftmaxOutputs::SoftmaxOutputs(device::Launch& launch, int64_t rows, int64_t heads) {
  constexpr int64_t kWidth = 8;  // every number stands eight times
  for (Tensor* made : {&maxima_, &sums_}) {
    const size_t bytes = static_cast<size_t>(rows * heads * kWidth) * sizeof(float);
    *made = MakeTensor<3>({rows, heads, kWidth}, kAclFloat, launch.Scratch(bytes));
  }
}

}  // namespace nsa::cann
