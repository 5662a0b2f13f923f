// The Ascend C kernel of NsaCompress, for prefill: every window of `block` tokens, `stride` apart,
// becomes one output row.
//
// One launch covers units: (a range of output rows) x (a group of heads). A unit's rows come as
// pieces, each of consecutive windows; a piece of r rows needs r + A - 1 chunks of `stride` tokens,
// with A = ceil(block / stride). The chunks of all pieces, one after the other, are the unit's
// *stream*, and position p of it is at once chunk p and the row whose window begins there. (The
// last A - 1 positions of a piece begin no window; what gathers there is never stored.) README.md
// has the drawing.
//
// A tile takes a stretch of the stream. Per residue class r of a chunk's tokens there is one
// strided copy; then window offset j = r + a * stride is one Axpy per head over all rows of the
// tile:
//     sum[p - a] += weight[j] * chunk[p][r]
// The last A - 1 rows of a tile are not complete: their sums move to the front of the next tile.
#ifndef NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_H_
#define NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_H_

#include "device.h"
#include "layout.h"

namespace nsa_ascend {

using namespace AscendC;

// half has a mixed-precision Axpy (float += half * half); bfloat16 has none and is widened first.
template <typename T>
struct CompressTerms {
  using Factor = float;
  static constexpr bool kWiden = true;
  static __aicore__ inline float Weight(const T& weight) { return ToFloat(weight); }
};
template <>
struct CompressTerms<half> {
  using Factor = half;
  static constexpr bool kWiden = false;
  static __aicore__ inline half Weight(const half& weight) { return weight; }
};

template <typename T>
class NsaCompressKernel {
  using Terms = CompressTerms<T>;
  using Factor = typename Terms::Factor;

 public:
  __aicore__ inline NsaCompressKernel(TPipe* pipe) : pipe_(pipe) {}

  __aicore__ inline void Init(GM_ADDR input, GM_ADDR weight, GM_ADDR output, GM_ADDR plan) {
    // The first word says how many there are.
    plan_.SetGlobalBuffer(reinterpret_cast<__gm__ int64_t*>(plan), 1);
    plan_.SetGlobalBuffer(reinterpret_cast<__gm__ int64_t*>(plan), plan_.GetValue(kPlanWords));
    all_heads_ = Word(kPlanHeads);
    dim_ = Word(kPlanDim);
    block_ = Word(kPlanBlock);
    stride_ = Word(kCompressStride);
    groups_ = Word(kPlanGroups);
    max_chunks_ = Word(kCompressChunks);
    classes_ = Word(kCompressClasses);
    shifts_ = CeilDiv(block_, stride_);
    last_tokens_ = block_ - (shifts_ - 1) * stride_;
    row_ = static_cast<int64_t>(all_heads_) * dim_;
    input_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(input), plan_.GetValue(kPlanInputElements));
    weight_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(weight),
                            static_cast<int64_t>(block_) * all_heads_);
    output_.SetGlobalBuffer(reinterpret_cast<__gm__ T*>(output),
                            plan_.GetValue(kPlanOutputElements));
    pipe_->InitBuffer(in_queue_, Word(kPlanInBuffers), Word(kPlanInBytes));
    pipe_->InitBuffer(work_buffer_, Word(kPlanWorkBytes));
    pipe_->InitBuffer(sum_buffer_, Word(kPlanSumBytes));
    pipe_->InitBuffer(weight_buffer_, Word(kPlanWeightBytes));
  }

  __aicore__ inline void Process() {
    const int32_t units = Word(kCompressSplits) * groups_;
    for (int32_t unit = GetBlockIdx(); unit < units; unit += GetBlockNum()) {
      RunUnit(unit / groups_, unit % groups_);
    }
    AwaitStore();
  }

 private:
  // A piece of a unit and where it stands in the stream.
  struct Piece {
    int32_t index;
    int32_t position;  // of its first chunk
    int32_t rows;
    int64_t first_row;
    int64_t first_token;
  };

  __aicore__ inline int32_t Word(int32_t index) {
    return static_cast<int32_t>(plan_.GetValue(index));
  }

  __aicore__ inline void Open(Piece& piece, int32_t index, int32_t position) {
    const int64_t at = pieces_at_ + static_cast<int64_t>(index) * kPieceWords;
    piece = {index, position, static_cast<int32_t>(plan_.GetValue(at + 1)), plan_.GetValue(at),
             plan_.GetValue(at + 2)};
  }

  // The stream positions of a piece, those that begin no window included.
  __aicore__ inline int32_t End(const Piece& piece) {
    return piece.position + piece.rows + shifts_ - 1;
  }

  __aicore__ inline void RunUnit(int32_t split, int32_t group) {
    const HeadGroup heads = GroupOf(group, groups_, all_heads_);
    first_head_ = heads.first;
    heads_ = heads.heads;
    width_ = heads_ * dim_;
    const int32_t first_piece = Word(kCompressHeader + split);
    const int32_t end_piece = Word(kCompressHeader + split + 1);
    pieces_at_ = kCompressHeader + Word(kCompressSplits) + 1;
    positions_ = 0;
    for (int32_t piece = first_piece; piece < end_piece; ++piece) {
      positions_ += Word(pieces_at_ + piece * kPieceWords + 1) + shifts_ - 1;
    }
    LoadWeights();
    Open(load_, first_piece, 0);
    Open(store_, first_piece, 0);
    load_tile_ = 0;
    load_class_ = 0;
    Load();
    for (int32_t tile = 0; tile < positions_; tile += max_chunks_) RunTile(tile);
  }

  // [block, heads] of this unit's heads, each row padded to 32 bytes, for the scalar unit to read.
  __aicore__ inline void LoadWeights() {
    const LocalTensor<T> weights = weight_buffer_.template Get<T>();
    weight_pitch_ = CeilDiv(heads_, kBlockHalves) * kBlockHalves;
    const TEventID reads_done = pipe_->FetchEventID(HardEvent::S_MTE2);
    SetFlag<HardEvent::S_MTE2>(reads_done);  // the last unit's weights have been read
    WaitFlag<HardEvent::S_MTE2>(reads_done);
    DataCopyPad(
        weights, weight_[first_head_],
        DataCopyExtParams(block_, heads_ * sizeof(T), (all_heads_ - heads_) * sizeof(T), 0, 0),
        DataCopyPadExtParams<T>(true, 0, weight_pitch_ - heads_, T()));
    const TEventID arrived = pipe_->FetchEventID(HardEvent::MTE2_S);
    SetFlag<HardEvent::MTE2_S>(arrived);
    WaitFlag<HardEvent::MTE2_S>(arrived);
  }

  // How many chunks of a tile have the residue classes from `first_class` on: the stream's very
  // last chunk ends where its window ends, and behind it there may be no token.
  __aicore__ inline int32_t LoadedEnd(int32_t tile, int32_t first_class) {
    const int32_t end = first_class < last_tokens_ ? positions_ : positions_ - 1;
    return Min(tile + max_chunks_, end);
  }

  // Starts the next copies: `classes_` residue classes of all chunks of a tile,
  // [chunk][class][width].
  __aicore__ inline void Load() {
    if (load_tile_ >= positions_) return;
    LocalTensor<T> target = in_queue_.template AllocTensor<T>();
    const int32_t tile = load_tile_;
    const int32_t end = LoadedEnd(tile, load_class_);
    Piece piece = load_;
    for (int32_t chunk = tile; chunk < end;) {
      if (chunk >= End(piece)) Open(piece, piece.index + 1, End(piece));
      const int32_t chunks = Min(end, End(piece)) - chunk;
      const int64_t token =
          piece.first_token + static_cast<int64_t>(chunk - piece.position) * stride_ + load_class_;
      CopyChunks(target[(chunk - tile) * classes_ * width_], token, chunks);
      chunk += chunks;
    }
    in_queue_.EnQue(target);
    load_class_ += classes_;
    if (load_class_ == stride_) {
      load_class_ = 0;
      load_tile_ += max_chunks_;
      load_ = piece;
    }
  }

  // `chunks` bursts, `stride` tokens apart. With all heads, neighbouring tokens are one burst.
  __aicore__ inline void CopyChunks(const LocalTensor<T>& target, int64_t token, int32_t chunks) {
    const int64_t pitch = stride_ * row_ * sizeof(T);
    const DataCopyPadExtParams<T> no_padding(false, 0, 0, T());
    if (heads_ == all_heads_) {
      const int64_t burst = classes_ * row_ * sizeof(T);
      DataCopyPad(target, input_[token * row_],
                  DataCopyExtParams(chunks, burst, pitch - burst, 0, 0), no_padding);
      return;
    }
    const int64_t burst = width_ * sizeof(T);
    for (int32_t c = 0; c < classes_; ++c) {
      DataCopyPad(
          target[c * width_], input_[(token + c) * row_ + first_head_ * dim_],
          DataCopyExtParams(chunks, burst, pitch - burst, (classes_ - 1) * burst / kBlockBytes, 0),
          no_padding);
    }
  }

  __aicore__ inline void RunTile(int32_t tile) {
    const LocalTensor<float> sums = sum_buffer_.template Get<float>();
    const int32_t carried = shifts_ - 1;  // rows in front that began in the tile before
    const int32_t chunks = Min(max_chunks_, positions_ - tile);
    AwaitStore();  // and with it for all that the vector unit did to the tile before
    Duplicate(sums[carried * width_], 0.0f, chunks * width_);
    PipeBarrier<PIPE_V>();
    for (int32_t first_class = 0; first_class < stride_; first_class += classes_) {
      AddClasses(tile, first_class);
    }
    // Complete: the rows whose last chunk is in this tile. There are some, because every tile but
    // the last has more than A - 1 chunks, and so has a unit.
    const int32_t begin = Max(tile - carried, 0);
    const int32_t end = tile + chunks - carried;
    const LocalTensor<T> rounded = work_buffer_.template Get<T>();
    Cast(rounded, sums[(begin - tile + carried) * width_], RoundMode::CAST_RINT,
         (end - begin) * width_);
    if (carried > 0 && tile + chunks < positions_) {
      PipeBarrier<PIPE_V>();  // the rows in front have been rounded
      Muls(sums, sums[chunks * width_], 1.0f, carried * width_);
    }
    Store(rounded, begin, end);
  }

  __aicore__ inline void AddClasses(int32_t tile, int32_t first_class) {
    LocalTensor<T> tokens = in_queue_.template DeQue<T>();
    if constexpr (Terms::kWiden) {
      const LocalTensor<float> wide = work_buffer_.template Get<float>();
      const int32_t chunks = LoadedEnd(tile, first_class) - tile;
      Cast(wide, tokens, RoundMode::CAST_NONE, chunks * classes_ * width_);
      in_queue_.FreeTensor(tokens);
      Load();  // what comes next, while this is summed up
      PipeBarrier<PIPE_V>();
      AddTokens(wide, tile, first_class);
    } else {
      Load();
      AddTokens(tokens, tile, first_class);
      in_queue_.FreeTensor(tokens);
    }
  }

  __aicore__ inline void AddTokens(const LocalTensor<Factor>& tokens, int32_t tile,
                                   int32_t first_class) {
    for (int32_t c = 0; c < classes_; ++c) {
      for (int32_t shift = 0; shift < shifts_; ++shift) {
        const int32_t offset = first_class + c + shift * stride_;
        if (offset >= block_) break;
        AddOffset(tokens[c * width_], tile, offset, shift);
        PipeBarrier<PIPE_V>();  // the next offset adds to the same rows
      }
    }
  }

  // One window offset: row p gets weight[offset] times the token at it, which is in chunk p +
  // shift.
  __aicore__ inline void AddOffset(const LocalTensor<Factor>& tokens, int32_t tile, int32_t offset,
                                   int32_t shift) {
    const LocalTensor<float> sums = sum_buffer_.template Get<float>();
    const LocalTensor<T> weights = weight_buffer_.template Get<T>();
    const int32_t begin = Max(tile, shift);  // row -1 does not exist,
    const int32_t end =
        Min(tile + max_chunks_, positions_ - (shifts_ - 1) + shift);  // nor one behind the last
    if (begin >= end) return;
    const int32_t row = begin - shift - tile + (shifts_ - 1);
    const int32_t source = (begin - tile) * classes_ * width_;
    const UnaryRepeatParams strides(1, 1, width_ / kBlockFloats,
                                    classes_ * width_ * sizeof(Factor) / kBlockBytes);
    for (int32_t head = 0; head < heads_; ++head) {
      const Factor weight = Terms::Weight(weights.GetValue(offset * weight_pitch_ + head));
      for (int32_t d = 0; d < dim_; d += kLanes) {
        const int32_t column = head * dim_ + d;
        Axpy(sums[row * width_ + column], tokens[source + column], weight, Min(kLanes, dim_ - d),
             end - begin, strides);
      }
    }
  }

  // Writes the rows at stream positions [begin, end), piece by piece.
  __aicore__ inline void Store(const LocalTensor<T>& rounded, int32_t begin, int32_t end) {
    const TEventID ready = pipe_->FetchEventID(HardEvent::V_MTE3);
    SetFlag<HardEvent::V_MTE3>(ready);
    WaitFlag<HardEvent::V_MTE3>(ready);
    for (int32_t position = begin; position < end;) {
      while (position >= End(store_)) Open(store_, store_.index + 1, End(store_));
      const int32_t rows = Min(end, store_.position + store_.rows) - position;
      if (rows > 0) {
        CopyRows(store_.first_row + position - store_.position,
                 rounded[(position - begin) * width_], rows);
      }
      position = rows > 0 ? position + rows : End(store_);
    }
    SetFlag<HardEvent::MTE3_V>(kStored);
    storing_ = true;
  }

  __aicore__ inline void CopyRows(int64_t row, const LocalTensor<T>& rounded, int32_t rows) {
    const int64_t burst = width_ * sizeof(T);
    if (heads_ == all_heads_) {  // neighbouring rows are one burst
      DataCopyPad(output_[row * row_], rounded, DataCopyExtParams(1, rows * burst, 0, 0, 0));
    } else {
      DataCopyPad(output_[row * row_ + first_head_ * dim_], rounded,
                  DataCopyExtParams(rows, burst, 0, row_ * sizeof(T) - burst, 0));
    }
  }

  // The work buffer may be written again.
  __aicore__ inline void AwaitStore() {
    if (storing_) WaitFlag<HardEvent::MTE3_V>(kStored);
    storing_ = false;
  }

  static constexpr int32_t kStored = 0;  // event id: no queue uses MTE3_V here

  TPipe* pipe_;
  GlobalTensor<int64_t> plan_;
  GlobalTensor<T> input_, weight_, output_;
  TQue<TPosition::VECIN, 2> in_queue_;
  TBuf<TPosition::VECOUT>
      work_buffer_;  // rounded rows; until then, where the type needs it, widened tokens
  TBuf<TPosition::VECCALC> sum_buffer_;  // [shifts - 1 + chunks][width], float32
  TBuf<TPosition::VECIN> weight_buffer_;

  int32_t all_heads_, dim_, block_, stride_, groups_, max_chunks_, classes_;
  int32_t shifts_;       // A: chunks that a window touches
  int32_t last_tokens_;  // tokens of a window's last chunk
  int64_t row_;          // elements of a token or output row, all heads

  // Of the unit.
  int32_t first_head_, heads_, width_, weight_pitch_, pieces_at_, positions_;
  Piece load_, store_;
  bool storing_ = false;
  int32_t load_tile_, load_class_;  // what Load brings next
};

}  // namespace nsa_ascend

#endif  // NSA_ONNX_ASCEND_KERNELS_NSA_COMPRESS_H_
