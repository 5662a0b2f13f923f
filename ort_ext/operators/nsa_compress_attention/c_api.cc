// See c_api.h. The call is checked and planned; then the CPU kernel runs on threads of its own.
#include "operators/nsa_compress_attention/c_api.h"

#include <vector>

#include "c_api/arguments.h"
#include "cpu/float_environment.h"
#include "operators/nsa_compress_attention/kernel.h"

namespace nsa::compress_attention {
namespace {

using c_api::Array;
using c_api::ReadArray;

struct Arrays {
  Array query, key, value, topk_mask, atten_mask, output, selected;
};

std::string Run(int dtype, const Call& call, const Arrays& arrays, int64_t threads) {
  std::vector<Sequence> plan;
  std::string error = MakePlan(call, &plan);
  if (!error.empty()) return error;
  const int64_t rows = call.query[0], heads = call.query[1], kv_heads = call.key[1];
  const AttentionAttributes& of = call.attributes;
  error = c_api::FirstOf(
      {c_api::CheckShape("attention_out", arrays.output, {rows, heads, call.value[2]}),
       c_api::CheckShape("topk_indices", arrays.selected, {rows, kv_heads, of.select_count})});
  if (!error.empty()) return error;
  const KernelData data{static_cast<const uint16_t*>(arrays.query.data),
                        static_cast<const uint16_t*>(arrays.key.data),
                        static_cast<const uint16_t*>(arrays.value.data),
                        static_cast<const uint8_t*>(arrays.topk_mask.data),
                        static_cast<const uint8_t*>(arrays.atten_mask.data),
                        static_cast<uint16_t*>(arrays.output.data),
                        static_cast<int32_t*>(arrays.selected.data),
                        arrays.topk_mask.dims[1],
                        arrays.atten_mask.dims[1],
                        rows,
                        heads,
                        kv_heads,
                        call.query[2],
                        call.value[2],
                        cpu::NearestFloat(of.scale),
                        *of.block,
                        *of.stride,
                        of.select_block,
                        of.select_count,
                        plan.data(),
                        static_cast<int64_t>(plan.size()),
                        MostTokens(plan)};
  RunKernel(static_cast<DType>(dtype), data, cpu::OwnThreads(threads));
  return {};
}

}  // namespace
}  // namespace nsa::compress_attention

int nsa_compress_attention(int dtype, const NsaArray* query, const NsaArray* key,
                           const NsaArray* value, double scale_value, int64_t head_num,
                           int64_t compress_block_size, int64_t compress_stride,
                           int64_t select_block_size, int64_t select_block_count,
                           const NsaArray* topk_mask, const NsaArray* atten_mask,
                           const int64_t* actual_seq_qlen, int64_t query_sequences,
                           const int64_t* actual_cmp_seq_kvlen, int64_t compressed_sequences,
                           const int64_t* actual_sel_seq_kvlen, int64_t block_sequences,
                           const NsaArray* attention_out, const NsaArray* topk_indices,
                           int64_t threads, char* error, int64_t error_size) {
  using namespace nsa;
  using namespace compress_attention;
  return c_api::Guarded(error, error_size, [&] {
    const auto mask = [](const char* name, const NsaArray* given, Array* array) {
      return given == nullptr ? std::string() : ReadArray(name, given, 2, 1, array);
    };
    Arrays arrays;
    const std::string message = c_api::FirstOf(
        {c_api::CheckCommon(dtype, threads),
         c_api::CheckLengths("actual_seq_qlen", actual_seq_qlen, query_sequences),
         c_api::CheckLengths("actual_cmp_seq_kvlen", actual_cmp_seq_kvlen, compressed_sequences),
         c_api::CheckLengths("actual_sel_seq_kvlen", actual_sel_seq_kvlen, block_sequences),
         ReadArray("query", query, 3, 2, &arrays.query), ReadArray("key", key, 3, 2, &arrays.key),
         ReadArray("value", value, 3, 2, &arrays.value),
         mask("topk_mask", topk_mask, &arrays.topk_mask),
         mask("atten_mask", atten_mask, &arrays.atten_mask),
         ReadArray("attention_out", attention_out, 3, 2, &arrays.output),
         ReadArray("topk_indices", topk_indices, 3, 4, &arrays.selected)});
    if (!message.empty()) return message;
    AttentionAttributes attributes{scale_value, head_num, select_block_size, select_block_count};
    attributes.block = compress_block_size;
    attributes.stride = compress_stride;
    const Call call{arrays.query.shape(),
                    arrays.key.shape(),
                    arrays.value.shape(),
                    arrays.topk_mask.shape(),
                    arrays.atten_mask.shape(),
                    topk_mask != nullptr,
                    atten_mask != nullptr,
                    attributes,
                    {actual_seq_qlen, query_sequences},
                    {actual_cmp_seq_kvlen, compressed_sequences},
                    {actual_sel_seq_kvlen, block_sequences}};
    return Run(dtype, call, arrays, threads);
  });
}
