// See c_api.h. The call is checked and planned; then the CPU kernel runs on threads of its own.
#include "operators/nsa_compress_attention_infer/c_api.h"

#include "c_api/arguments.h"
#include "cpu/float_environment.h"
#include "operators/nsa_compress_attention_infer/kernel.h"

namespace nsa::compress_attention_decode {
namespace {

using c_api::Array;
using c_api::ReadArray;

struct Arrays {
  Array query, key, value, table, output, selected;
};

std::string Run(int dtype, const Call& call, const Arrays& arrays, int64_t threads) {
  Plan plan;
  std::string error = MakePlan(call, &plan);
  if (!error.empty()) return error;
  const int64_t batch = call.query[0], heads = call.query[1];
  const AttentionAttributes& of = call.attributes;
  error = c_api::FirstOf(
      {c_api::CheckShape("attention_out", arrays.output, {batch, heads, call.value[3]}),
       c_api::CheckShape("topk_indices", arrays.selected, {batch, *of.kv_heads, of.select_count})});
  if (!error.empty()) return error;
  const KernelData data{static_cast<const uint16_t*>(arrays.query.data),
                        static_cast<const uint16_t*>(arrays.key.data),
                        static_cast<const uint16_t*>(arrays.value.data),
                        static_cast<uint16_t*>(arrays.output.data),
                        static_cast<int32_t*>(arrays.selected.data),
                        heads,
                        *of.kv_heads,
                        call.query[2],
                        call.value[3],
                        cpu::NearestFloat(of.scale),
                        *of.block,
                        *of.stride,
                        of.select_block,
                        of.select_count,
                        *of.page,
                        plan.sequences.data(),
                        batch,
                        plan.pages.data()};
  RunKernel(static_cast<DType>(dtype), data, cpu::OwnThreads(threads));
  return {};
}

}  // namespace
}  // namespace nsa::compress_attention_decode

int nsa_compress_attention_infer(int dtype, const NsaArray* query, const NsaArray* key,
                                 const NsaArray* value, double scale_value, int64_t head_num,
                                 int64_t key_value_head_num, int64_t select_block_size,
                                 int64_t select_block_count, int64_t page_block_size,
                                 int64_t compress_block_size, int64_t compress_stride,
                                 const NsaArray* block_table, const int64_t* actual_cmp_seq_kvlen,
                                 int64_t sequences, const NsaArray* attention_out,
                                 const NsaArray* topk_indices, int64_t threads, char* error,
                                 int64_t error_size) {
  using namespace nsa;
  using namespace compress_attention_decode;
  return c_api::Guarded(error, error_size, [&] {
    Arrays arrays;
    const std::string message = c_api::FirstOf(
        {c_api::CheckCommon(dtype, threads),
         c_api::CheckLengths("actual_cmp_seq_kvlen", actual_cmp_seq_kvlen, sequences),
         ReadArray("query", query, 3, 2, &arrays.query), ReadArray("key", key, 4, 2, &arrays.key),
         ReadArray("value", value, 4, 2, &arrays.value),
         ReadArray("block_table", block_table, 2, 4, &arrays.table),
         ReadArray("attention_out", attention_out, 3, 2, &arrays.output),
         ReadArray("topk_indices", topk_indices, 3, 4, &arrays.selected)});
    if (!message.empty()) return message;
    AttentionAttributes attributes{scale_value, head_num, select_block_size, select_block_count};
    attributes.kv_heads = key_value_head_num;
    attributes.block = compress_block_size;
    attributes.stride = compress_stride;
    attributes.page = page_block_size;
    const Call call{arrays.query.shape(),
                    arrays.key.shape(),
                    arrays.value.shape(),
                    arrays.table.shape(),
                    attributes,
                    static_cast<const int32_t*>(arrays.table.data),
                    {actual_cmp_seq_kvlen, sequences}};
    return Run(dtype, call, arrays, threads);
  });
}
