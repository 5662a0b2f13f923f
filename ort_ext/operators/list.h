// The operators of this library. What is done for each of them is done for this list.
#ifndef NSA_ONNX_ORT_EXT_OPERATORS_LIST_H_
#define NSA_ONNX_ORT_EXT_OPERATORS_LIST_H_

#include <tuple>

#include "operators/nsa_compress/op.h"
#include "operators/nsa_compress_attention/op.h"
#include "operators/nsa_compress_attention_infer/op.h"
#include "operators/nsa_compress_infer/op.h"
#include "operators/nsa_selected_attention/op.h"
#include "operators/nsa_selected_attention_infer/op.h"

namespace nsa {

using Operators = std::tuple<compress::Operator, compress_decode::Operator,
                             compress_attention::Operator, compress_attention_decode::Operator,
                             selected_attention::Operator, selected_attention_decode::Operator>;

}  // namespace nsa

#endif  // NSA_ONNX_ORT_EXT_OPERATORS_LIST_H_
