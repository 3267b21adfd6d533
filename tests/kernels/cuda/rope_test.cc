#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/device_matrix.h"

namespace marcoro::cuda {
namespace {

constexpr int kCacheBlocks = 9;
constexpr int kPositions = 60;

// Two sequences and two rows of padding in one step: rows 0 … 17 are positions 14 … 31 of the
// first, row 18 is position 33 of the second.
struct Step {
  std::vector<int32_t> positions;
  std::vector<int32_t> sequences;
  std::vector<int32_t> first_blocks = {0, 2};
  std::vector<int32_t> blocks = {7, 3, 0, 8, 4};

  Step() {
    for (int p = 14; p < 32; ++p) {
      positions.push_back(p);
      sequences.push_back(0);
    }
    positions.insert(positions.end(), {33, -1, -1});
    sequences.insert(sequences.end(), {1, 0, 0});
  }
  int rows() const { return static_cast<int>(positions.size()); }
};

struct Result {
  Matrix q;
  Matrix cache;  // (blocks, BlockElements)
};

Matrix RopeTable(int head_dim) {
  Matrix table(DType::kF32, kPositions, head_dim);
  for (int p = 0; p < kPositions; ++p) {
    for (int i = 0; i < head_dim / 2; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / head_dim);
      table.Set(p, i, static_cast<float>(std::cos(angle)));
      table.Set(p, head_dim / 2 + i, static_cast<float>(std::sin(angle)));
    }
  }
  return table;
}

Result RunOp(const Matrix& qkv, const AttentionShape& shape, const Step& step, int64_t q_padding) {
  const DeviceArray<int32_t> positions{absl::MakeConstSpan(step.positions)};
  const DeviceArray<int32_t> sequences{absl::MakeConstSpan(step.sequences)};
  const DeviceArray<int32_t> first_blocks{absl::MakeConstSpan(step.first_blocks)};
  const DeviceArray<int32_t> blocks{absl::MakeConstSpan(step.blocks)};
  DeviceStep device_step;
  device_step.rows = step.rows();
  device_step.sequences = 2;
  device_step.positions = positions.data();
  device_step.row_sequences = sequences.data();
  device_step.first_blocks = first_blocks.data();
  device_step.blocks = blocks.data();

  const DeviceMatrix device_qkv(qkv);
  const DeviceMatrix rope(RopeTable(shape.head_dim));
  const DeviceMatrix q(
      Matrix(DType::kBF16, step.rows(), int64_t{shape.heads} * shape.head_dim, q_padding));
  const DeviceMatrix cache(
      Matrix(DType::kBF16, kCacheBlocks, BlockElements(shape.kv_heads, shape.head_dim)));
  RopeAndStoreKv(TestStream(), device_qkv.view(), rope.view(), shape, device_step,
                 {.data = cache.view().data,
                  .blocks = kCacheBlocks,
                  .kv_heads = shape.kv_heads,
                  .head_dim = shape.head_dim},
                 q.view());
  return {q.ToHost(), cache.ToHost()};
}

// What must be in q and in the cache, element by element; everything else is as it was.
Result Expected(const Matrix& qkv, const AttentionShape& shape, const Step& step) {
  const int head_dim = shape.head_dim;
  const int half = head_dim / 2;
  const Matrix rope = RopeTable(head_dim);
  Result result = {Matrix(DType::kBF16, step.rows(), int64_t{shape.heads} * head_dim),
                   Matrix(DType::kBF16, kCacheBlocks, BlockElements(shape.kv_heads, head_dim))};
  for (int row = 0; row < step.rows(); ++row) {
    const int position = step.positions[row];
    if (position < 0) continue;
    const int64_t block = step.blocks[step.first_blocks[step.sequences[row]] + position / 16];
    const auto rotated = [&](int head, int i) {
      const float cosine = rope.At(position, i % half);
      const float sine = rope.At(position, half + i % half);
      const float a = qkv.At(row, int64_t{head} * head_dim + i);
      const float b = qkv.At(row, int64_t{head} * head_dim + (i + half) % head_dim);
      const float x = a * cosine;
      const float y = b * sine;
      return i < half ? x - y : x + y;
    };
    for (int i = 0; i < head_dim; ++i) {
      for (int h = 0; h < shape.heads; ++h) {
        result.q.Set(row, int64_t{h} * head_dim + i, rotated(h, i));
      }
      for (int c = 0; c < shape.kv_heads; ++c) {
        const int64_t key = c * 32 * head_dim + position % 16 * head_dim + i;
        const int value_head = shape.heads + shape.kv_heads + c;
        result.cache.Set(block, key, rotated(shape.heads + c, i));
        result.cache.Set(block, key + 16 * head_dim,
                         qkv.At(row, int64_t{value_head} * head_dim + i));
      }
    }
  }
  return result;
}

TEST(CudaRopeTest, RotatesAndStores) {
  for (const AttentionShape shape : {AttentionShape{.heads = 4, .kv_heads = 2, .head_dim = 128},
                                     AttentionShape{.heads = 3, .kv_heads = 3, .head_dim = 64},
                                     AttentionShape{.heads = 8, .kv_heads = 1, .head_dim = 10},
                                     AttentionShape{.heads = 1, .kv_heads = 1, .head_dim = 2}}) {
    for (const int64_t padding : {0, 1, 4}) {
      SCOPED_TRACE(::testing::Message() << shape.head_dim << ", padding " << padding);
      const Step step;
      const Matrix qkv = Matrix(DType::kF32, step.rows(),
                                (shape.heads + 2 * shape.kv_heads) * shape.head_dim, padding)
                             .FillNormal(1);
      const Result result = RunOp(qkv, shape, step, padding);
      const Result expected = Expected(qkv, shape, step);
      EXPECT_TRUE(BitwiseEqual(expected.q, result.q));
      EXPECT_TRUE(result.q.PaddingIsIntact());
      EXPECT_TRUE(BitwiseEqual(expected.cache, result.cache));
    }
  }
}

}  // namespace
}  // namespace marcoro::cuda
