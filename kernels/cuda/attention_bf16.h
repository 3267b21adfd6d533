// The matrix products of attention with keys and values in BF16.
//
// What no row of a block sees is not read but zero (CopyTile). Where rows of a warp see different
// positions and one of the values is not finite, the values are multiplied token by token, each
// time without what that token does not see (AddValues, kOneByOne).
#pragma once

#include "kernels/cuda/attention_copy.h"
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/device/matrix.h"

namespace marcoro::cuda {

// Dimensions [16 depth, 16 depth + 16) of the queries, 0 for what does not exist.
MARCORO_DEVICE void LoadQueries(const AttentionTask& task, const QueryTile& tile, int depth,
                                uint32_t (&a)[4]) {
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < 4; ++i) {
    const int half = i % 2;
    const int dim = depth * kDepth + i / 2 * 8 + Lane() % 4 * 2;
    const uint16_t* row = task.q + tile.row[half] * task.q_stride;
    const bool exists = tile.mine[half].high >= 0 && dim < task.head_dim;
    a[i] = exists ? *reinterpret_cast<const uint32_t*>(row + tile.head[half] * task.head_dim + dim)
                  : 0;
  }
}

// scores += queries of 16 dimensions · the tile's keys.
template <int kDims>
MARCORO_DEVICE void AddScores(const uint32_t (&queries)[4], int depth,
                              const SharedArray<uint16_t>& keys, float (&scores)[kScoreTiles][4]) {
  const int matrix = Lane() / 8;
  const int row = matrix / 2 * 8 + Lane() % 8;
  const int column = depth * kDepth + matrix % 2 * 8;
  MARCORO_UNROLL_LOOP
  for (int n = 0; n < kScoreTiles; n += 2) {
    uint32_t b[4];
    LoadMatrices(b, keys.Address((n * 8 + row) * RowElements<uint16_t>(kDims) + column));
    MultiplyMatrix(scores[n], queries, {b[0], b[1]});
    MultiplyMatrix(scores[n + 1], queries, {b[2], b[3]});
  }
}

// Scores of positions [16 depth, 16 depth + 16) as probabilities, in the form of a left factor.
MARCORO_DEVICE void Probabilities(const float (&scores)[kScoreTiles][4], int depth, float scale,
                                  const float (&base)[2], uint32_t (&a)[4]) {
  MARCORO_UNROLL_LOOP
  for (int i = 0; i < 4; ++i) {
    const float(&two)[4] = scores[depth * 2 + i / 2];
    const int half = i % 2;
    a[i] = PackBf16(Exp2(MultiplyAdd(two[half * 2], scale, -base[half])),
                    Exp2(MultiplyAdd(two[half * 2 + 1], scale, -base[half])));
  }
}

MARCORO_DEVICE bool BothFinite(uint32_t pair) {
  return (pair & 0x7f80u) != 0x7f80u && (pair & 0x7f800000u) != 0x7f800000u;
}

// Whether the whole tile is. Called by a warp.
template <int kDims>
MARCORO_DEVICE bool AllFinite(const SharedArray<uint16_t>& tile) {
  constexpr int kChunk = kChunkElements<uint16_t>;
  constexpr int kRowChunks = kDims / kChunk;
  bool finite = true;
  for (int c = Lane(); c < kTilePositions * kRowChunks; c += kWarpThreads) {
    const auto words = tile.LoadAs<Words4>(c / kRowChunks * RowElements<uint16_t>(kDims) +
                                           c % kRowChunks * kChunk);
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) finite = finite && BothFinite(words.word[i]);
  }
  return Ballot(!finite) == 0;
}

// Which of the positions `first` and `first` + 1 are seen, as a mask of their values.
MARCORO_DEVICE uint32_t SeenHalves(Visible seen, int first) {
  const auto within = [&](int position) { return position >= seen.low && position <= seen.high; };
  return (within(first) ? 0x0000ffffu : 0u) | (within(first + 1) ? 0xffff0000u : 0u);
}

// Two right factors of 16 positions from `begin` on, added to two tiles of `out` once for each
// token of the query tile, without what that token does not see.
MARCORO_DEVICE void AddValuesOneByOne(const AttentionTask& task, const QueryTile& tile,
                                      const uint32_t (&probabilities)[4], const uint32_t (&b)[4],
                                      int begin, float (&low)[4], float (&high)[4]) {
  const int first = begin + Lane() % 4 * 2;
  for (int token = 0; token < tile.tokens; ++token) {
    const int position = tile.first_position + token;
    const Visible seen = VisibleFrom(position, task.window);
    const uint32_t upper = SeenHalves(seen, first);
    const uint32_t lower = SeenHalves(seen, first + 8);
    float out[2][4];
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      out[0][i] = low[i];
      out[1][i] = high[i];
    }
    MultiplyMatrix(out[0], probabilities, {b[0] & upper, b[1] & lower});
    MultiplyMatrix(out[1], probabilities, {b[2] & upper, b[3] & lower});
    MARCORO_UNROLL_LOOP
    for (int i = 0; i < 4; ++i) {
      if (tile.mine[i / 2].high != position) continue;
      low[i] = out[0][i];
      high[i] = out[1][i];
    }
  }
}

// running += probabilities of positions [16 depth, 16 depth + 16) · the tile's values, of which a
// warp takes the 16 dimensions from 16 first_pair on, and every pair_step-th 16 behind them.
template <int kDims, int kPairs, bool kOneByOne>
MARCORO_DEVICE void AddValues(const AttentionTask& task, const QueryTile& tile,
                              const uint32_t (&probabilities)[4], int depth, int begin,
                              const SharedArray<uint16_t>& values, int first_pair, int pair_step,
                              RunningSplit<kPairs>& running) {
  constexpr uint32_t kOnes = 0x3f803f80u;
  MultiplyMatrix(running.sum, probabilities, {kOnes, kOnes});
  const int matrix = Lane() / 8;
  const int row = depth * kDepth + matrix % 2 * 8 + Lane() % 8;
  MARCORO_UNROLL_LOOP
  for (int n = 0; n < kPairs; ++n) {
    const int pair = first_pair + n * pair_step;
    if (pair >= kDims / kDepth) break;
    uint32_t b[4];
    LoadMatricesTransposed(
        b, values.Address(row * RowElements<uint16_t>(kDims) + pair * kDepth + matrix / 2 * 8));
    if constexpr (kOneByOne) {
      AddValuesOneByOne(task, tile, probabilities, b, begin + depth * kDepth, running.out[n * 2],
                        running.out[n * 2 + 1]);
    } else {
      MultiplyMatrix(running.out[n * 2], probabilities, {b[0], b[1]});
      MultiplyMatrix(running.out[n * 2 + 1], probabilities, {b[2], b[3]});
    }
  }
}

}  // namespace marcoro::cuda
