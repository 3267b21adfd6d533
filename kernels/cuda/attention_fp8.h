// The matrix products of attention with keys and values in FP8.
//
// They are products of codes, which become BF16, exactly, on the way from shared memory to the
// matrix product: a matrix load takes two codes for one element, and the four codes that a lane
// gets make two pairs. So pairs are not of neighbours, but of elements two apart: for scores the
// queries are taken in that order, too; of values, the even dimensions are one product's and the
// odd ones another's. A tile takes half of the shared memory and half of the loads that it takes in
// BF16, and nine instructions of arithmetic for four codes.
//
// Scores are multiplied by the keys' scales, probabilities by the values', after they were added up
// and before they are rounded to BF16. Codes are never NaN: what must not be seen is only kept out
// of the scales, and there is no other 0 · NaN.
#pragma once

#include "kernels/cuda/attention_copy.h"
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/device/e4m3.h"
#include "kernels/cuda/device/matrix.h"

namespace marcoro::cuda {

// Dimensions [16 depth, 16 depth + 16) of the queries as DecodeCodes orders those of keys, 0 for
// what does not exist.
MARCORO_DEVICE void LoadQueriesForCodes(const AttentionTask& task, const QueryTile& tile, int depth,
                                        uint32_t (&a)[4]) {
  const int dim = depth * kDepth + Lane() % 4 * 4;
  MARCORO_UNROLL_LOOP
  for (int half = 0; half < 2; ++half) {
    const uint16_t* row =
        task.q + tile.row[half] * task.q_stride + tile.head[half] * task.head_dim + dim;
    const bool exists = tile.mine[half].high >= 0;
    const auto load = [&](int i) {
      return exists && dim + i < task.head_dim ? *reinterpret_cast<const uint32_t*>(row + i) : 0;
    };
    const uint32_t low = load(0);
    const uint32_t high = load(2);
    a[half] = (low & 0xffffu) | high << 16;
    a[half + 2] = low >> 16 | (high & 0xffff0000u);
  }
}

// scores += queries of 16 dimensions · the codes of the tile's keys.
template <int kDims>
MARCORO_DEVICE void AddScores(const uint32_t (&queries)[4], int depth,
                              const SharedArray<uint8_t>& keys, float (&scores)[kScoreTiles][4]) {
  MARCORO_UNROLL_LOOP
  for (int n = 0; n < kScoreTiles; n += 4) {
    uint32_t codes[4];
    LoadMatrices(codes,
                 keys.Address((n * 8 + Lane()) * RowElements<uint8_t>(kDims) + depth * kDepth));
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      uint32_t b[2];
      DecodeCodes(codes[i], b[0], b[1]);
      MultiplyMatrix(scores[n + i], queries, b);
    }
  }
}

// Those of a lane for positions `first` and `first` + 1 of the tile.
MARCORO_DEVICE Words2 TwoScales(const SharedArray<float>& scales, int first) {
  return scales.LoadAs<Words2>(first);
}

MARCORO_DEVICE void ScaleScores(const SharedArray<float>& key_scales,
                                float (&scores)[kScoreTiles][4]) {
  MARCORO_UNROLL_LOOP
  for (int n = 0; n < kScoreTiles; ++n) {
    const Words2 scales = TwoScales(key_scales, n * 8 + Lane() % 4 * 2);
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      scores[n][i] = Multiply(scores[n][i], BitsToFloat(scales.word[i % 2]));
    }
  }
}

// What a score's probability is multiplied by; the scale of what is not seen may be NaN.
MARCORO_DEVICE float ScaleOfSeen(float score, uint32_t scale) {
  return score == Lowest() ? 0.0f : BitsToFloat(scale);
}

// Scores of positions [16 depth, 16 depth + 16) as probabilities times the values' scales, in the
// form of a left factor; sums (as RunningSplit's) += the probabilities.
MARCORO_DEVICE void ScaledProbabilities(const float (&scores)[kScoreTiles][4], int depth,
                                        float scale, const float (&base)[2],
                                        const SharedArray<float>& value_scales, uint32_t (&a)[4],
                                        float (&sums)[4]) {
  constexpr uint32_t kOnes = 0x3f803f80u;
  uint32_t unscaled[4];
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < 4; ++i) {
    const float(&two)[4] = scores[depth * 2 + i / 2];
    const int half = i % 2;
    const Words2 scales = TwoScales(value_scales, depth * kDepth + i / 2 * 8 + Lane() % 4 * 2);
    const float first = Exp2(MultiplyAdd(two[half * 2], scale, -base[half]));
    const float second = Exp2(MultiplyAdd(two[half * 2 + 1], scale, -base[half]));
    unscaled[i] = PackBf16(first, second);
    a[i] = PackBf16(Multiply(first, ScaleOfSeen(two[half * 2], scales.word[0])),
                    Multiply(second, ScaleOfSeen(two[half * 2 + 1], scales.word[1])));
  }
  MultiplyMatrix(sums, unscaled, {kOnes, kOnes});
}

// running.out += scaled probabilities of positions [16 depth, 16 depth + 16) · the codes of the
// tile's values, of which a warp takes the 16 dimensions from 16 first_pair on, and every
// pair_step-th 16 behind them.
template <int kDims, int kPairs>
MARCORO_DEVICE void AddValues(const uint32_t (&probabilities)[4], int depth,
                              const SharedArray<uint8_t>& values, int first_pair, int pair_step,
                              RunningSplit<kPairs>& running) {
  const int matrix = Lane() / 8;
  const int row = depth * kDepth + matrix % 2 * 8 + Lane() % 8;
  MARCORO_UNROLL_LOOP
  for (int n = 0; n < kPairs; n += 2) {
    // A load takes two pairs; where there is no second one it takes the first again.
    const int pair = first_pair + n * pair_step;
    const int second = pair + pair_step;
    const bool has_second = n + 1 < kPairs && second < kDims / kDepth;
    if (pair >= kDims / kDepth) break;
    const int loaded = matrix / 2 == 1 && has_second ? second : pair;
    uint32_t codes[4];
    LoadMatricesTransposed(codes,
                           values.Address(row * RowElements<uint8_t>(kDims) + loaded * kDepth));
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 2; ++i) {
      if (i == 1 && !has_second) break;
      uint32_t even[2];
      uint32_t odd[2];
      DecodeCodes(codes[i * 2], even[0], odd[0]);
      DecodeCodes(codes[i * 2 + 1], even[1], odd[1]);
      MultiplyMatrix(running.out[(n + i) * 2], probabilities, even);
      MultiplyMatrix(running.out[(n + i) * 2 + 1], probabilities, odd);
    }
  }
}

}  // namespace marcoro::cuda
