// See c_api.h. The call is checked and planned; then the CPU kernel runs on threads of its own.
#include "operators/nsa_selected_attention_infer/c_api.h"

#include "c_api/arguments.h"
#include "cpu/float_environment.h"
#include "operators/nsa_selected_attention_infer/kernel.h"

namespace nsa::selected_attention_decode {
namespace {

using c_api::Array;
using c_api::ReadArray;

std::string Run(int dtype, const Call& call, const Array& query, const Array& key,
                const Array& value, const Array& output, int64_t threads) {
  Plan plan;
  std::string error = MakePlan(call, &plan);
  if (error.empty()) {
    error =
        c_api::CheckShape("attention_out", output, {query.dims[0], query.dims[1], value.dims[3]});
  }
  if (!error.empty()) return error;
  const KernelData data{static_cast<const uint16_t*>(query.data),
                        static_cast<const uint16_t*>(key.data),
                        static_cast<const uint16_t*>(value.data),
                        static_cast<uint16_t*>(output.data),
                        query.dims[0],
                        *call.attributes.kv_heads,
                        call.attributes.heads / *call.attributes.kv_heads,
                        key.dims[3],
                        value.dims[3],
                        call.attributes.select_block,
                        call.attributes.select_count,
                        cpu::NearestFloat(call.attributes.scale),
                        &plan,
                        nullptr};
  RunKernel(static_cast<DType>(dtype), data, cpu::OwnThreads(threads));
  return {};
}

}  // namespace
}  // namespace nsa::selected_attention_decode

int nsa_selected_attention_infer(int dtype, const NsaArray* query, const NsaArray* key,
                                 const NsaArray* value, const NsaArray* topk_indices,
                                 double scale_value, int64_t head_num, int64_t key_value_head_num,
                                 int64_t select_block_size, int64_t select_block_count,
                                 int64_t page_block_size, const NsaArray* block_table,
                                 const int64_t* actual_seq_kvlen, int64_t sequences,
                                 const NsaArray* attention_out, int64_t threads, char* error,
                                 int64_t error_size) {
  using namespace nsa;
  using namespace selected_attention_decode;
  return c_api::Guarded(error, error_size, [&] {
    Array q, k, v, topk, table, out;
    const std::string message = c_api::FirstOf(
        {c_api::CheckCommon(dtype, threads),
         c_api::CheckLengths("actual_seq_kvlen", actual_seq_kvlen, sequences),
         ReadArray("query", query, 3, 2, &q), ReadArray("key", key, 4, 2, &k),
         ReadArray("value", value, 4, 2, &v), ReadArray("topk_indices", topk_indices, 3, 4, &topk),
         ReadArray("block_table", block_table, 2, 4, &table),
         ReadArray("attention_out", attention_out, 3, 2, &out)});
    if (!message.empty()) return message;
    AttentionAttributes attributes{scale_value, head_num, select_block_size, select_block_count};
    attributes.kv_heads = key_value_head_num;
    attributes.page = page_block_size;
    const Call call{q.shape(),
                    k.shape(),
                    v.shape(),
                    topk.shape(),
                    table.shape(),
                    attributes,
                    static_cast<const int32_t*>(topk.data),
                    static_cast<const int32_t*>(table.data),
                    {actual_seq_kvlen, sequences}};
    return Run(dtype, call, q, k, v, out, threads);
  });
}
