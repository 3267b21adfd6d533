// The arithmetic of attention: what one warp does with 16 query rows and a tile of 64 positions.
//
// For one query row, in this order and no other: splits of 256 positions in ascending order, inside
// a split tiles of 64 by online softmax. Scores are matrix products over the head's dimensions, 16
// at a time; the largest score of the tile and the ones before it in the split is the base of the
// tile's probabilities 2^(score - base), which are rounded to BF16 and, 16 positions at a time,
// multiplied with the values and with ones (that is their sum). Splits are merged one after the
// other. A position that a row does not see has a probability of exactly 0, so a tile or a split of
// which it sees nothing changes nothing, and may be left out. -0 and 0 may differ by that, so
// outputs are never -0.
//
// Rows of a matrix product do not meet, with one exception: 0 · NaN (attention_bf16.h,
// attention_fp8.h).
//
// This file has what does not depend on how keys and values are held: copies of tiles are in
// attention_copy.h, the matrix products in attention_bf16.h and attention_fp8.h. `Element` says
// which: uint16_t is BF16, uint8_t an FP8 code.
#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device/numbers.h"

namespace marcoro::cuda {

inline constexpr int kDepth = 16;      // of a matrix product
inline constexpr int kScoreTiles = 8;  // 64 positions, 8 to a product
inline constexpr int kTileDepths = 4;  // 64 positions, 16 to a product

template <typename Element>
inline constexpr bool kIsCode = sizeof(Element) == 1;

MARCORO_DEVICE float Lowest() { return BitsToFloat(0xff800000u); }
// What scores are relative to: any number will do where there are none yet.
MARCORO_DEVICE float Base(float max) { return max == Lowest() ? 0.0f : max; }

// Sixteen query rows of a sequence, of which a lane has two: g and g + 8 of the fragments.
struct QueryTile {
  int first_position;  // of its first token
  int tokens;
  Visible any;      // what any of its rows sees
  Visible all;      // what all of them see; may be empty
  Visible mine[2];  // what the lane's rows see; nothing if they do not exist
  int row[2];       // of the step
  int head[2];
};

MARCORO_DEVICE QueryTile MakeQueryTile(const AttentionTask& task, const QuerySequence& sequence,
                                       int kv_head, int first) {
  const int end =
      first + kQueryTileRows < sequence.query_rows ? first + kQueryTileRows : sequence.query_rows;
  QueryTile tile = {};
  tile.any = {0, -1};
  tile.first_position = sequence.first_position + first / task.group;
  tile.tokens = end > first ? (end - 1) / task.group - first / task.group + 1 : 0;
  if (tile.tokens > 0) {
    tile.any = SeenByAny(task, sequence, first, end - 1);
    tile.all = {VisibleFrom(tile.any.high, task.window).low, tile.first_position};
  }
  MARCORO_UNROLL_LOOP
  for (int half = 0; half < 2; ++half) {
    const int row = first + Lane() / 4 + half * 8;
    tile.mine[half] = {0, -1};
    if (row >= end) continue;
    const int token = row / task.group;
    tile.mine[half] = VisibleFrom(sequence.first_position + token, task.window);
    tile.row[half] = sequence.first_row + token;
    tile.head[half] = kv_head * task.group + row % task.group;
  }
  return tile;
}

MARCORO_DEVICE void ClearScores(float (&scores)[kScoreTiles][4]) {
  MARCORO_UNROLL_LOOP
  for (int n = 0; n < kScoreTiles; ++n) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) scores[n][i] = 0;
  }
}

// What the lane's rows do not see becomes lowest. The tile begins at position `begin`.
MARCORO_DEVICE void HideScores(const QueryTile& tile, int begin, float (&scores)[kScoreTiles][4]) {
  MARCORO_UNROLL_LOOP
  for (int n = 0; n < kScoreTiles; ++n) {
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      const int position = begin + n * 8 + Lane() % 4 * 2 + i % 2;
      const Visible mine = tile.mine[i / 2];
      if (position < mine.low || position > mine.high) scores[n][i] = Lowest();
    }
  }
}

// The largest scores of rows g and g + 8, scaled.
MARCORO_DEVICE void LargestScores(const float (&scores)[kScoreTiles][4], float scale,
                                  float (&max)[2]) {
  MARCORO_UNROLL_LOOP
  for (int half = 0; half < 2; ++half) {
    float largest = Lowest();
    MARCORO_UNROLL_LOOP
    for (int n = 0; n < kScoreTiles; ++n) {
      largest = Max(largest, Max(scores[n][half * 2], scores[n][half * 2 + 1]));
    }
    largest = Max(largest, ShuffleXor(largest, 1));
    largest = Max(largest, ShuffleXor(largest, 2));
    max[half] = Multiply(largest, scale);
  }
}

// The sums of a split so far: kPairs times 16 of the dimensions, for rows g and g + 8.
template <int kPairs>
struct RunningSplit {
  float max[2];
  float sum[4];  // of probabilities: c[0] is row g's, c[2] row g + 8's
  float out[kPairs * 2][4];

  MARCORO_DEVICE void Clear() {
    max[0] = max[1] = Lowest();
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      sum[i] = 0;
      MARCORO_UNROLL_LOOP
      for (int n = 0; n < kPairs * 2; ++n) out[n][i] = 0;
    }
  }

  // Adds the probabilities of a tile of rows g and g + 8.
  MARCORO_DEVICE void AddToSums(float first, float second) {
    sum[0] = Add(sum[0], first);
    sum[2] = Add(sum[2], second);
  }

  // Makes what was summed relative to the larger of the old base and the tile's.
  MARCORO_DEVICE void Rebase(const float (&tile_max)[2]) {
    float factor[2];
    MARCORO_UNROLL_LOOP
    for (int half = 0; half < 2; ++half) {
      const float before = max[half];
      max[half] = Max(before, tile_max[half]);
      factor[half] = Exp2(Subtract(before, Base(max[half])));
    }
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      sum[i] = Multiply(sum[i], factor[i / 2]);
      MARCORO_UNROLL_LOOP
      for (int n = 0; n < kPairs * 2; ++n) out[n][i] = Multiply(out[n][i], factor[i / 2]);
    }
  }
};

// How sums relative to two bases are put together.
struct MergeFactors {
  float max;
  float first;
  float second;
};

MARCORO_DEVICE MergeFactors FactorsOf(float first_max, float second_max) {
  const float max = Max(first_max, second_max);
  return {max, Exp2(Subtract(first_max, Base(max))), Exp2(Subtract(second_max, Base(max)))};
}
MARCORO_DEVICE float Merge(const MergeFactors& factors, float first, float second) {
  return MultiplyAdd(second, factors.second, Multiply(first, factors.first));
}

// Puts a split behind those that were merged before; none yet: a cleared one.
template <int kPairs>
MARCORO_DEVICE void MergeInto(RunningSplit<kPairs>& total, const RunningSplit<kPairs>& split) {
  MARCORO_UNROLL_LOOP
  for (int half = 0; half < 2; ++half) {
    const MergeFactors factors = FactorsOf(total.max[half], split.max[half]);
    total.max[half] = factors.max;
    total.sum[half * 2] = Merge(factors, total.sum[half * 2], split.sum[half * 2]);
    MARCORO_UNROLL_LOOP
    for (int n = 0; n < kPairs * 2; ++n) {
      MARCORO_UNROLL_LOOP
      for (int i = half * 2; i < half * 2 + 2; ++i) {
        total.out[n][i] = Merge(factors, total.out[n][i], split.out[n][i]);
      }
    }
  }
}

// An element of the output; never -0.
MARCORO_DEVICE float Normalized(float out, float inverse) {
  return Add(Multiply(out, inverse), 0.0f);
}

// Two neighbouring elements of a row of the output.
struct TwoOutputs {
  int dim;
  float first;
  float second;
};

// Pair j, of two, of what a lane has of row g + 8 half and 16 dimensions in two tiles of products.
// The tiles are eight dimensions each; of codes, the even ones and the odd ones.
template <typename Element>
MARCORO_DEVICE TwoOutputs OutputsOf(const float (&first)[4], const float (&second)[4], int half,
                                    int j) {
  if constexpr (kIsCode<Element>) {
    return {Lane() % 4 * 4 + j * 2, first[half * 2 + j], second[half * 2 + j]};
  } else {
    const float(&tile)[4] = j == 0 ? first : second;
    return {j * 8 + Lane() % 4 * 2, tile[half * 2], tile[half * 2 + 1]};
  }
}

// Stores the lane's rows of dimensions [first_dim + 16 first_pair, …) as AddValues took them.
template <typename Element, int kDims, int kPairs>
MARCORO_DEVICE void StoreRows(const AttentionTask& task, const QueryTile& tile, int first_dim,
                              int first_pair, int pair_step, const RunningSplit<kPairs>& total) {
  MARCORO_UNROLL_LOOP
  for (int half = 0; half < 2; ++half) {
    if (tile.mine[half].high < 0) continue;
    uint16_t* out = task.out + tile.row[half] * task.out_stride + tile.head[half] * task.head_dim;
    const float inverse = Divide(1.0f, total.sum[half * 2]);
    MARCORO_UNROLL_LOOP
    for (int n = 0; n < kPairs * 2; ++n) {
      const int pair = first_pair + n / 2 * pair_step;
      const TwoOutputs two =
          OutputsOf<Element>(total.out[n / 2 * 2], total.out[n / 2 * 2 + 1], half, n % 2);
      const int dim = first_dim + pair * kDepth + two.dim;
      if (pair >= kDims / kDepth || dim >= task.head_dim) continue;
      *reinterpret_cast<uint32_t*>(out + dim) =
          PackBf16(Normalized(two.first, inverse), Normalized(two.second, inverse));
    }
  }
}

}  // namespace marcoro::cuda
