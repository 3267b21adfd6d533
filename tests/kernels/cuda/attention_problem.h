// What the tests of attention over a given cache ask: sequences, the steps that compute them, and
// the cache and the step's arrays as the launchers take them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/reference/element.h"
#include "kernels/reference/ops.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace marcoro::cuda {

// Elements [column, column + count) of a row.
inline std::vector<float> HeadOf(const Matrix& rows, int64_t row, int64_t column, int32_t count) {
  std::vector<float> head;
  for (int32_t i = 0; i < count; ++i) head.push_back(rows.At(row, column + i));
  return head;
}

// The rows of a matrix of keys or values become what an FP8 cache gives back for them.
inline Matrix Quantized(const Matrix& rows, int32_t head_dim) {
  Matrix result(DType::kF32, rows.rows(), rows.columns());
  for (int64_t r = 0; r < rows.rows(); ++r) {
    for (int64_t c = 0; c < rows.columns(); c += head_dim) {
      const std::vector<float> head = HeadOf(rows, r, c, head_dim);
      const float scale = reference::KvScale(head.data(), head_dim);
      for (int32_t i = 0; i < head_dim; ++i) {
        const uint8_t code = reference::FloatToE4M3(head[i] / scale);
        result.Set(r, c + i, reference::E4M3ToFloat(code) * scale);
      }
    }
  }
  return result;
}

// Sequences whose queries, keys and values are known in full; their rows lie one after the other.
struct Problem {
  Problem(const AttentionShape& shape_in, std::vector<int32_t> lengths_in, uint32_t seed = 1,
          KvFormat format_in = KvFormat::kActivation)
      : shape(shape_in),
        format(format_in),
        lengths(std::move(lengths_in)),
        q(DType::kBF16, Total(), int64_t{shape.heads} * shape.head_dim),
        k(DType::kBF16, Total(), int64_t{shape.kv_heads} * shape.head_dim),
        v(DType::kBF16, Total(), int64_t{shape.kv_heads} * shape.head_dim) {
    q.FillNormal(seed);
    k.FillNormal(seed + 1);
    v.FillNormal(seed + 2);
    if (format == KvFormat::kFp8) {
      k = Quantized(k, shape.head_dim);
      v = Quantized(v, shape.head_dim);
    }
  }
  int64_t Total() const { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }
  int64_t RowOf(int32_t sequence, int32_t position) const {
    return std::accumulate(lengths.begin(), lengths.begin() + sequence, int64_t{position});
  }

  AttentionShape shape;
  KvFormat format;
  std::vector<int32_t> lengths;
  Matrix q;
  Matrix k;
  Matrix v;
};

// Positions [begin, begin + tokens) of a sequence.
struct Chunk {
  int32_t sequence;
  int32_t begin;
  int32_t tokens;
};

struct Step {
  std::vector<Chunk> chunks;
  int padding_rows = 0;
  int padding_sequences = 0;
  int32_t context = 0;      // 0: as short as the chunks allow
  int32_t most_tokens = 0;  // likewise
  uint32_t block_seed = 1;  // which blocks of the cache the sequences get
};

inline Step Whole(const Problem& problem) {
  Step step;
  for (int32_t s = 0; s < static_cast<int32_t>(problem.lengths.size()); ++s) {
    step.chunks.push_back({s, 0, problem.lengths[s]});
  }
  return step;
}

// The cache as it is when the chunks' keys and values were just written: NaN where nothing was.
struct Cache {
  std::vector<char> blocks;
  std::vector<int32_t> table;         // of all chunks
  std::vector<int32_t> first_blocks;  // of each chunk
};

// Writes a head of a key or value, the element-th of the head's in the block.
inline void WriteHead(const std::vector<float>& head, KvFormat format, int64_t element,
                      int64_t scales, int32_t slot, char* block_head) {
  const float scale = reference::KvScale(head.data(), static_cast<int32_t>(head.size()));
  if (format == KvFormat::kFp8) std::memcpy(block_head + scales + slot * 4, &scale, sizeof(scale));
  for (size_t i = 0; i < head.size(); ++i) {
    if (format == KvFormat::kFp8) {
      const uint8_t code = std::isnan(scale) ? 0 : reference::FloatToE4M3(head[i] / scale);
      std::memcpy(block_head + element + i, &code, sizeof(code));
    } else {
      const BFloat16 rounded = ToBFloat16(head[i]);
      std::memcpy(block_head + (element + i) * sizeof(rounded), &rounded, sizeof(rounded));
    }
  }
}

inline Cache FillCache(const Problem& problem, const Step& step) {
  const AttentionShape& shape = problem.shape;
  std::vector<int32_t> first_blocks;
  int32_t used = 0;
  for (const Chunk& chunk : step.chunks) {
    first_blocks.push_back(used);
    used += (chunk.begin + chunk.tokens + kBlockTokens - 1) / kBlockTokens;
  }
  std::vector<int32_t> table(used + 3);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(step.block_seed));
  const int64_t block_bytes = BlockBytes(shape.kv_heads, shape.head_dim, problem.format);
  Cache cache = {std::vector<char>((used + 3) * block_bytes, static_cast<char>(0xff)),
                 std::move(table), std::move(first_blocks)};
  cache.table.resize(used);
  for (size_t i = 0; i < step.chunks.size(); ++i) {
    const Chunk& chunk = step.chunks[i];
    for (int32_t p = 0; p < chunk.begin + chunk.tokens; ++p) {
      const int32_t block = cache.table[cache.first_blocks[i] + p / kBlockTokens];
      const int64_t row = problem.RowOf(chunk.sequence, p);
      const int32_t dim = shape.head_dim;
      const int32_t slot = p % kBlockTokens;
      for (int32_t h = 0; h < shape.kv_heads; ++h) {
        char* const head = &cache.blocks[block * block_bytes + h * HeadBytes(dim, problem.format)];
        const int64_t key = int64_t{slot} * dim;
        WriteHead(HeadOf(problem.k, row, h * dim, dim), problem.format, key, KeyScales(dim), slot,
                  head);
        WriteHead(HeadOf(problem.v, row, h * dim, dim), problem.format, key + KeyElements(dim),
                  ValueScales(dim), slot, head);
      }
    }
  }
  return cache;
}

// The step's arrays on the device.
struct StepArrays {
  DeviceArray<int32_t> positions, row_sequences, first_rows, tokens, first_positions, first_blocks,
      blocks, arrivals;
  DeviceStep view;
};

inline StepArrays Upload(const Step& step, const Cache& cache) {
  std::vector<int32_t> positions, row_sequences, first_rows, tokens, first_positions;
  DeviceStep view;
  for (const Chunk& chunk : step.chunks) {
    first_rows.push_back(static_cast<int32_t>(positions.size()));
    tokens.push_back(chunk.tokens);
    first_positions.push_back(chunk.begin);
    for (int32_t t = 0; t < chunk.tokens; ++t) {
      positions.push_back(chunk.begin + t);
      row_sequences.push_back(static_cast<int32_t>(tokens.size()) - 1);
    }
    view.most_tokens = std::max({view.most_tokens, chunk.tokens, step.most_tokens});
    view.context = std::max({view.context, chunk.begin + chunk.tokens, step.context});
  }
  std::vector<int32_t> first_blocks = cache.first_blocks;
  for (int i = 0; i < step.padding_sequences; ++i) {
    for (std::vector<int32_t>* array : {&first_rows, &tokens, &first_positions, &first_blocks}) {
      array->push_back(0);
    }
  }
  positions.resize(positions.size() + step.padding_rows, -1);
  row_sequences.resize(positions.size(), 0);
  const auto upload = [](const std::vector<int32_t>& values) {
    return DeviceArray<int32_t>(absl::MakeConstSpan(values));
  };
  StepArrays arrays = {upload(positions),
                       upload(row_sequences),
                       upload(first_rows),
                       upload(tokens),
                       upload(first_positions),
                       upload(first_blocks),
                       upload(cache.table),
                       upload(std::vector<int32_t>(static_cast<size_t>(ArrivalCounters()))),
                       view};
  arrays.view.rows = static_cast<int>(positions.size());
  arrays.view.sequences = static_cast<int>(tokens.size());
  arrays.view.positions = arrays.positions.data();
  arrays.view.row_sequences = arrays.row_sequences.data();
  arrays.view.first_rows = arrays.first_rows.data();
  arrays.view.tokens = arrays.tokens.data();
  arrays.view.first_positions = arrays.first_positions.data();
  arrays.view.first_blocks = arrays.first_blocks.data();
  arrays.view.blocks = arrays.blocks.data();
  arrays.view.arrivals = reinterpret_cast<uint32_t*>(arrays.arrivals.data());
  return arrays;
}

}  // namespace marcoro::cuda
