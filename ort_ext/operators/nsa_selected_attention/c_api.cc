// See c_api.h. The call is checked and planned; then the CPU kernel runs on threads of its own.
#include "operators/nsa_selected_attention/c_api.h"

#include "c_api/arguments.h"
#include "cpu/float_environment.h"
#include "operators/nsa_selected_attention/kernel.h"

namespace nsa::selected_attention {
namespace {

using c_api::Array;
using c_api::ReadArray;

std::string Run(int dtype, const Call& call, const Array& query, const Array& key,
                const Array& value, const Array& output, int64_t threads) {
  Plan plan;
  std::string error = MakePlan(call, &plan);
  if (error.empty()) {
    error =
        c_api::CheckShape("attention_out", output, {query.dims[0], query.dims[1], value.dims[2]});
  }
  if (!error.empty()) return error;
  const KernelData data{static_cast<const uint16_t*>(query.data),
                        static_cast<const uint16_t*>(key.data),
                        static_cast<const uint16_t*>(value.data),
                        static_cast<uint16_t*>(output.data),
                        query.dims[0],
                        key.dims[1],
                        call.attributes.heads / key.dims[1],
                        key.dims[2],
                        value.dims[2],
                        call.attributes.select_block,
                        call.attributes.select_count,
                        cpu::NearestFloat(call.attributes.scale),
                        *call.attributes.causal != 0,
                        &plan};
  RunKernel(static_cast<DType>(dtype), data, cpu::OwnThreads(threads));
  return {};
}

}  // namespace
}  // namespace nsa::selected_attention

int nsa_selected_attention(int dtype, const NsaArray* query, const NsaArray* key,
                           const NsaArray* value, const NsaArray* topk_indices, double scale_value,
                           int64_t head_num, int64_t select_block_size, int64_t select_block_count,
                           int64_t causal, const int64_t* actual_seq_qlen, int64_t query_sequences,
                           const int64_t* actual_seq_kvlen, int64_t key_sequences,
                           const NsaArray* attention_out, int64_t threads, char* error,
                           int64_t error_size) {
  using namespace nsa;
  using namespace selected_attention;
  return c_api::Guarded(error, error_size, [&] {
    Array q, k, v, topk, out;
    const std::string message = c_api::FirstOf(
        {c_api::CheckCommon(dtype, threads),
         c_api::CheckLengths("actual_seq_qlen", actual_seq_qlen, query_sequences),
         c_api::CheckLengths("actual_seq_kvlen", actual_seq_kvlen, key_sequences),
         ReadArray("query", query, 3, 2, &q), ReadArray("key", key, 3, 2, &k),
         ReadArray("value", value, 3, 2, &v), ReadArray("topk_indices", topk_indices, 3, 4, &topk),
         ReadArray("attention_out", attention_out, 3, 2, &out)});
    if (!message.empty()) return message;
    AttentionAttributes attributes{scale_value, head_num, select_block_size, select_block_count};
    attributes.causal = causal;
    const Call call{q.shape(),
                    k.shape(),
                    v.shape(),
                    topk.shape(),
                    attributes,
                    static_cast<const int32_t*>(topk.data),
                    {actual_seq_qlen, query_sequences},
                    {actual_seq_kvlen, key_sequences}};
    return Run(dtype, call, q, k, v, out, threads);
  });
}
