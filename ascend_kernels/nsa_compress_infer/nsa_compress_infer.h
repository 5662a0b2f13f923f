// The Ascend C kernel of NsaCompressInfer, a decode step: the last `block` tokens of every sequence
// that writes become one row of the cache.
//
// Units of work are (a group of heads) x (a write), all writes of a group before the next group,
// and a core takes neighbouring units: its weights are broadcast once, or twice where two groups
// meet.
//
// A unit: one copy per page run brings the window [block, width]; it is widened to float32,
// multiplied with the weights, and its rows are added up pairwise, as a tree; one rounding; one
// copy out. The next unit's tokens arrive meanwhile. A window that does not fit is processed in
// slices of its tokens.
#ifndef NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_H_
#define NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_H_

#include "device.h"
#include "layout.h"

namespace nsa_ascend {

using namespace AscendC;

template <typename T>
class NsaCompressInferKernel {
 public:
  __aicore__ inline NsaCompressInferKernel(TPipe* pipe) : pipe_(pipe) {}

  __aicore__ inline void Init(GM_ADDR input, GM_ADDR weight, GM_ADDR cache, GM_ADDR plan) {
    // The first word says how many there are.
    plan_.SetGlobalBuffer(reinterpret_cast<__gm__ int64_t*>(plan), 1);
    plan_.SetGlobalBuffer(reinterpret_cast<__gm__ int64_t*>(plan), plan_.GetValue(kPlanWords));
    all_heads_ = Word(kPlanHeads);
    dim_ = Word(kPlanDim);
    block_ = Word(kPlanBlock);
    groups_ = Word(kPlanGroups);
    writes_ = Word(kDecodeWrites);
    slice_ = CeilDiv(block_, Word(kDecodeSlices));
    row_ = static_cast<int64_t>(all_heads_) * dim_;
    input_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(input), plan_.GetValue(kPlanInputElements));
    weight_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(weight),
                            static_cast<int64_t>(block_) * all_heads_);
    cache_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(cache), plan_.GetValue(kPlanOutputElements));
    pipe_->InitBuffer(in_queue_, Word(kPlanInBuffers), Word(kPlanInBytes));
    pipe_->InitBuffer(out_queue_, 2, Word(kPlanOutBytes));
    pipe_->InitBuffer(work_buffer_, Word(kPlanWorkBytes));
    pipe_->InitBuffer(sum_buffer_, Word(kPlanSumBytes));
    pipe_->InitBuffer(weight_buffer_, Word(kPlanWeightBytes));
  }

  __aicore__ inline void Process() {
    const int64_t units = static_cast<int64_t>(groups_) * writes_;
    const int64_t begin = units * GetBlockIdx() / GetBlockNum();
    end_unit_ = units * (GetBlockIdx() + 1) / GetBlockNum();
    load_unit_ = begin;
    load_token_ = 0;
    for (int64_t unit = begin; unit < end_unit_; ++unit) {
      const int32_t group = static_cast<int32_t>(unit / writes_);
      if (unit == begin || unit % writes_ == 0) {
        // The queue is empty here: the weights pass through it.
        heads_ = GroupOf(group, groups_, all_heads_);
        width_ = heads_.heads * dim_;
        BroadcastWeights();
        if (Word(kPlanInBuffers) > 1) Load(group);  // from here on one ahead
      }
      RunUnit(unit, group);
    }
  }

 private:
  __aicore__ inline int32_t Word(int32_t index) {
    return static_cast<int32_t>(plan_.GetValue(index));
  }

  // weights_[offset][head]: a block of 8 equal float32, which a multiplication repeats over the
  // head.
  __aicore__ inline void BroadcastWeights() {
    const int32_t pitch = CeilDiv(heads_.heads, kBlockHalves) * kBlockHalves;
    LocalTensor<T> raw = in_queue_.template AllocTensor<T>();
    DataCopyPad(raw, weight_[heads_.first],
                DataCopyExtParams(block_, heads_.heads * sizeof(T),
                                  (all_heads_ - heads_.heads) * sizeof(T), 0, 0),
                DataCopyPadExtParams<T>(true, 0, pitch - heads_.heads, T()));
    in_queue_.EnQue(raw);
    raw = in_queue_.template DeQue<T>();
    weight_pitch_ = CeilDiv(heads_.heads, kBlockFloats) * kBlockFloats;
    const LocalTensor<float> wide = work_buffer_.template Get<float>();
    Cast(wide, raw, RoundMode::CAST_NONE, weight_pitch_, block_,
         UnaryRepeatParams(1, 1, weight_pitch_ / kBlockFloats, pitch / kBlockHalves));
    in_queue_.FreeTensor(raw);
    PipeBarrier<PIPE_V>();
    const LocalTensor<float> weights = weight_buffer_.template Get<float>();
    const int32_t repeats = block_ * weight_pitch_ / kBlockFloats;
    for (int32_t done = 0; done < repeats; done += kMaxRepeats) {
      Brcb(weights[done * kLanes], wide[done * kBlockFloats], Min(kMaxRepeats, repeats - done),
           BrcbRepeatParams(1, kBlockFloats));
    }
    PipeBarrier<PIPE_V>();
  }

  // Starts the copies of the next slice of the group's next unit: one per page run that it meets.
  __aicore__ inline void Load(int32_t group) {
    if (load_unit_ >= end_unit_ || load_unit_ / writes_ != group) return;
    LocalTensor<T> target = in_queue_.template AllocTensor<T>();
    const int64_t write = kDecodeHeader + load_unit_ % writes_ * kWriteWords;
    const int32_t end = Min(load_token_ + slice_, block_);
    int32_t run_begin = 0;  // in tokens of the window
    for (int32_t run = 0; run < kWriteRuns; ++run) {
      const int32_t run_end = run_begin + Word(write + 2 + 2 * run);
      const int32_t first = Max(run_begin, load_token_), last = Min(run_end, end);
      if (first < last) {
        const int64_t token = plan_.GetValue(write + 1 + 2 * run) + first - run_begin;
        CopyTokens(target[(first - load_token_) * width_], token, last - first);
      }
      run_begin = run_end;
    }
    in_queue_.EnQue(target);
    load_token_ = end;
    if (end == block_) {
      load_token_ = 0;
      ++load_unit_;
    }
  }

  __aicore__ inline void CopyTokens(const LocalTensor<T>& target, int64_t token, int32_t tokens) {
    const DataCopyPadExtParams<T> no_padding(false, 0, 0, T());
    const int64_t burst = width_ * sizeof(T);
    const GlobalTensor<T> source = input_[token * row_ + heads_.first * dim_];
    if (heads_.heads == all_heads_) {  // neighbouring tokens are one burst
      DataCopyPad(target, source, DataCopyExtParams(1, tokens * burst, 0, 0, 0), no_padding);
    } else {
      DataCopyPad(target, source, DataCopyExtParams(tokens, burst, row_ * sizeof(T) - burst, 0, 0),
                  no_padding);
    }
  }

  __aicore__ inline void RunUnit(int64_t unit, int32_t group) {
    for (int32_t first = 0; first < block_; first += slice_) {
      Load(group);
      AddSlice(first, Min(slice_, block_ - first));
    }
    const LocalTensor<float> sums = sum_buffer_.template Get<float>();
    LocalTensor<T> rounded = out_queue_.template AllocTensor<T>();
    Cast(rounded, sums, RoundMode::CAST_RINT, width_);
    out_queue_.EnQue(rounded);
    rounded = out_queue_.template DeQue<T>();
    const int64_t slot = plan_.GetValue(kDecodeHeader + unit % writes_ * kWriteWords);
    DataCopyPad(cache_[slot * row_ + heads_.first * dim_], rounded,
                DataCopyExtParams(1, width_ * sizeof(T), 0, 0, 0));
    out_queue_.FreeTensor(rounded);
  }

  // The weighted sum of `tokens` tokens, from offset `first` of the window on, into sum_buffer_.
  __aicore__ inline void AddSlice(int32_t first, int32_t tokens) {
    const LocalTensor<float> wide = work_buffer_.template Get<float>();
    const LocalTensor<float> weights = weight_buffer_.template Get<float>();
    LocalTensor<T> narrow = in_queue_.template DeQue<T>();
    Cast(wide, narrow, RoundMode::CAST_NONE, tokens * width_);
    in_queue_.FreeTensor(narrow);
    PipeBarrier<PIPE_V>();
    // Per head and 64 columns one instruction over all tokens; source 1 repeats one block of 8
    // weights.
    const BinaryRepeatParams strides(1, 1, 0, width_ / kBlockFloats, width_ / kBlockFloats,
                                     weight_pitch_);
    for (int32_t head = 0; head < heads_.heads; ++head) {
      const LocalTensor<float> weight = weights[(first * weight_pitch_ + head) * kBlockFloats];
      for (int32_t d = 0; d < dim_; d += kLanes) {
        const LocalTensor<float> column = wide[head * dim_ + d];
        Mul(column, column, weight, Min(kLanes, dim_ - d), tokens, strides);
      }
    }
    PipeBarrier<PIPE_V>();
    AddRows(first, tokens);
  }

  // Halves the number of rows until one is left; that one is the sum, or is added to it.
  __aicore__ inline void AddRows(int32_t first, int32_t tokens) {
    const LocalTensor<float> wide = work_buffer_.template Get<float>();
    const LocalTensor<float> sums = sum_buffer_.template Get<float>();
    int32_t rows = tokens;
    for (; rows > 2; rows -= rows / 2) {
      Add(wide, wide, wide[(rows - rows / 2) * width_], rows / 2 * width_);
      PipeBarrier<PIPE_V>();
    }
    if (first == 0) {
      Add(sums, wide, wide[width_], width_);
    } else {
      if (rows == 2) {
        Add(wide, wide, wide[width_], width_);
        PipeBarrier<PIPE_V>();
      }
      Add(sums, sums, wide, width_);
    }
    PipeBarrier<PIPE_V>();
  }

  TPipe* pipe_;
  GlobalTensor<int64_t> plan_;
  GlobalTensor<T> input_, weight_, cache_;
  TQue<TPosition::VECIN, 2> in_queue_;
  TQue<TPosition::VECOUT, 1> out_queue_;
  TBuf<TPosition::VECCALC> work_buffer_;    // [tokens][width], float32
  TBuf<TPosition::VECCALC> sum_buffer_;     // [width], float32
  TBuf<TPosition::VECCALC> weight_buffer_;  // [block][weight_pitch_][8], float32

  int32_t all_heads_, dim_, block_, groups_, writes_;
  int32_t slice_;  // tokens of a slice
  int64_t row_;    // elements of a token or slot, all heads

  // Of the head group.
  HeadGroup heads_;
  int32_t width_, weight_pitch_;

  int64_t end_unit_;
  int64_t load_unit_;  // what Load brings next
  int32_t load_token_;
};

}  // namespace nsa_ascend

#endif  // NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_INFER_H_
