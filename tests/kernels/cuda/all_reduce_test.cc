#include "kernels/cuda/all_reduce.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/graph.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/device_matrix.h"
#include "tests/kernels/cuda/rank_group.h"

namespace marcoro::cuda {
namespace {

using Vector = std::vector<float>;

// Values of many magnitudes, so that a sum depends on the order of its additions.
Vector Part(int rank, size_t count, int round = 0) {
  std::mt19937 random(static_cast<unsigned>(100 * round + rank));
  Vector values(count);
  for (float& value : values) {
    const auto bits = static_cast<uint32_t>(random());
    value = std::bit_cast<float>((bits & 0x807fffffu) | (115 + (bits >> 23) % 25) << 23);
  }
  return values;
}

// Halves, added recursively.
Vector TreeOf(const std::vector<Vector>& parts, size_t begin, size_t end) {
  if (end - begin == 1) return parts[begin];
  Vector sum = TreeOf(parts, begin, (begin + end) / 2);
  const Vector right = TreeOf(parts, (begin + end) / 2, end);
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += right[i];
  return sum;
}
Vector ExpectedSum(int ranks, size_t count, int round = 0) {
  std::vector<Vector> parts;
  for (int rank = 0; rank < ranks; ++rank) parts.push_back(Part(rank, count, round));
  return TreeOf(parts, 0, parts.size());
}

::testing::AssertionResult SameBits(const Vector& expected, const float* actual) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::bit_cast<uint32_t>(expected[i]) != std::bit_cast<uint32_t>(actual[i])) {
      return ::testing::AssertionFailure()
             << "element " << i << ": " << expected[i] << ", but " << actual[i];
    }
  }
  return ::testing::AssertionSuccess();
}

// Each rank's message, at `offset` elements from an aligned address.
std::vector<DeviceArray<float>> Messages(int ranks, size_t count, int round = 0,
                                         size_t offset = 0) {
  std::vector<DeviceArray<float>> messages;
  for (int rank = 0; rank < ranks; ++rank) {
    Vector values(offset, 0);
    const Vector part = Part(rank, count, round);
    values.insert(values.end(), part.begin(), part.end());
    messages.emplace_back(values);
  }
  return messages;
}

void ExpectSums(const std::vector<DeviceArray<float>>& messages, const Vector& expected,
                size_t offset = 0) {
  for (size_t rank = 0; rank < messages.size(); ++rank) {
    EXPECT_TRUE(SameBits(expected, messages[rank].ToHost().data() + offset)) << "rank " << rank;
  }
}

TEST(CudaAllReduceTest, EveryRankGetsTheTreeOfEveryElement) {
  for (const int ranks : {2, 4, 8}) {
    // Part of a vector, of a piece, of the pieces that the blocks have at a time, and more.
    for (const size_t count : {1u, 6u, 1024u, 1027u, 2048u, 5000u}) {
      for (const size_t offset : {0u, 1u}) {
        SCOPED_TRACE(::testing::Message()
                     << ranks << " ranks, " << count << " elements from " << offset);
        const Group group({.ranks = ranks});
        const auto messages = Messages(ranks, count, 0, offset);
        group.Run([&](Stream stream, const PeerMemory& peers) {
          AllReduceTree(stream, peers, messages[static_cast<size_t>(peers.rank)].data() + offset,
                        static_cast<int64_t>(count));
        });
        ExpectSums(messages, ExpectedSum(ranks, count), offset);
        EXPECT_EQ(group.failure(0), 0u);
      }
    }
  }
}

// The slots are used again and again, by kernels of different grids, while ranks run ahead of each
// other.
TEST(CudaAllReduceTest, CallsFollowEachOtherWithoutABarrier) {
  const std::vector<size_t> counts = {900, 40, 2300, 7, 1500, 130};
  for (const int ranks : {2, 4}) {
    InSeveralThreadOrders([&] {
      Group group({.ranks = ranks, .most_blocks = 3, .slot_elements = 256});
      group.SetNumbersToTheLargest();
      std::vector<std::vector<DeviceArray<float>>> messages;
      for (size_t i = 0; i < counts.size(); ++i) {
        messages.push_back(Messages(ranks, counts[i], static_cast<int>(i)));
      }
      group.Run([&](Stream stream, const PeerMemory& peers) {
        for (size_t i = 0; i < counts.size(); ++i) {
          AllReduceTree(stream, peers, messages[i][static_cast<size_t>(peers.rank)].data(),
                        static_cast<int64_t>(counts[i]));
        }
      });
      for (size_t i = 0; i < counts.size(); ++i) {
        SCOPED_TRACE(::testing::Message() << ranks << " ranks, call " << i);
        ExpectSums(messages[i], ExpectedSum(ranks, counts[i], static_cast<int>(i)));
      }
    });
  }
}

constexpr float kEpsilon = 1e-5f;

Matrix Delta(int rank, int64_t rows, int64_t columns) {
  Matrix delta(DType::kF32, rows, columns);
  const Vector values = Part(rank, static_cast<size_t>(rows * columns));
  for (int64_t i = 0; i < rows * columns; ++i) {
    delta.Set(i / columns, i % columns, values[static_cast<size_t>(i)]);
  }
  return delta;
}

// Fused on several ranks, against RmsNorm with the expected sum as its delta.
void ExpectFusedIsBoth(const GroupShape& shape, int64_t rows, int64_t columns, int64_t padding) {
  const Matrix residual = Matrix(DType::kF32, rows, columns, padding).FillNormal(1);
  const Matrix weight = Matrix(DType::kF32, 1, columns).FillNormal(2);
  const Matrix out(DType::kBF16, rows, columns, padding);

  const Vector sum = ExpectedSum(shape.ranks, static_cast<size_t>(rows * columns));
  Matrix delta(DType::kF32, rows, columns);
  std::memcpy(delta.view().data, sum.data(), sum.size() * sizeof(float));
  const DeviceMatrix expected_residual(residual);
  const DeviceMatrix expected_out(out);
  const DeviceMatrix device_delta(delta);
  const DeviceMatrix device_weight(weight);
  const Tensor delta_view = device_delta.view();
  RmsNorm(TestStream(), expected_residual.view(), &delta_view, device_weight.view().Row<float>(0),
          kEpsilon, expected_out.view());
  CheckDevice(Synchronize(TestStream()));

  const Group group(shape);
  std::vector<DeviceMatrix> residuals;
  std::vector<DeviceMatrix> deltas;
  std::vector<DeviceMatrix> outs;
  for (int rank = 0; rank < shape.ranks; ++rank) {
    residuals.emplace_back(residual);
    deltas.emplace_back(Delta(rank, rows, columns));
    outs.emplace_back(out);
  }
  group.Run([&](Stream stream, const PeerMemory& peers) {
    const auto rank = static_cast<size_t>(peers.rank);
    AllReduceAddRmsNorm(stream, peers, residuals[rank].view(), deltas[rank].view(),
                        device_weight.view().Row<float>(0), kEpsilon, outs[rank].view());
  });
  for (size_t rank = 0; rank < outs.size(); ++rank) {
    const Matrix result = outs[rank].ToHost();
    EXPECT_TRUE(BitwiseEqual(expected_out.ToHost(), result)) << "rank " << rank;
    EXPECT_TRUE(BitwiseEqual(expected_residual.ToHost(), residuals[rank].ToHost()));
    EXPECT_TRUE(result.PaddingIsIntact() && residuals[rank].ToHost().PaddingIsIntact());
  }
}

TEST(CudaAllReduceTest, FusedWithTheNormItHasTheBitsOfBoth) {
  for (const int ranks : {2, 4, 8}) {
    for (const int64_t columns : {1, 7, 96, 1030}) {
      for (const int64_t padding : {0, 3}) {
        SCOPED_TRACE(::testing::Message()
                     << ranks << " ranks, " << columns << " columns, padding " << padding);
        ExpectFusedIsBoth({.ranks = ranks, .slot_elements = 2048}, 5, columns, padding);
      }
    }
  }
  for (const int64_t columns : {4096, 4097, 8192}) {  // more of them in a thread's registers
    SCOPED_TRACE(columns);
    ExpectFusedIsBoth({.ranks = 2, .slot_elements = 8192}, 3, columns, 0);
    ExpectFusedIsBoth({.ranks = 8, .most_blocks = 1, .slot_elements = 8192}, 1, columns, 0);
  }
}

TEST(CudaAllReduceTest, RowsLongerThanASlotAreNormedToo) {
  ExpectFusedIsBoth({.ranks = 4, .slot_elements = 512}, 2, 700, 0);
  ExpectFusedIsBoth({.ranks = 2, .slot_elements = 12000}, 2, 9001, 0);
}

TEST(CudaAllReduceTest, NanStaysInItsRow) {
  constexpr int64_t kColumns = 40;
  const Group group({.ranks = 2});
  std::vector<DeviceMatrix> residuals;
  std::vector<DeviceMatrix> deltas;
  std::vector<DeviceMatrix> outs;
  const DeviceMatrix weight(Matrix(DType::kF32, 1, kColumns).FillNormal(2));
  for (int rank = 0; rank < 2; ++rank) {
    Matrix delta = Delta(rank, 3, kColumns);
    if (rank == 1) delta.Set(1, 39, NAN);
    deltas.emplace_back(delta);
    residuals.emplace_back(Matrix(DType::kF32, 3, kColumns).FillNormal(1));
    outs.emplace_back(Matrix(DType::kBF16, 3, kColumns));
  }
  group.Run([&](Stream stream, const PeerMemory& peers) {
    const auto rank = static_cast<size_t>(peers.rank);
    AllReduceAddRmsNorm(stream, peers, residuals[rank].view(), deltas[rank].view(),
                        weight.view().Row<float>(0), kEpsilon, outs[rank].view());
  });
  for (const DeviceMatrix& out : outs) {
    const Matrix result = out.ToHost();
    for (int64_t i = 0; i < kColumns; ++i) {
      EXPECT_FALSE(std::isnan(result.At(0, i)));
      EXPECT_TRUE(std::isnan(result.At(1, i)));
      EXPECT_FALSE(std::isnan(result.At(2, i)));
    }
  }
}

TEST(CudaAllReduceTest, RootGathersSideBySide) {
  for (const int ranks : {2, 4, 8}) {
    for (const size_t count : {1u, 1024u, 3001u}) {
      SCOPED_TRACE(::testing::Message() << ranks << " ranks, " << count << " elements");
      const Group group({.ranks = ranks});
      const auto sent = Messages(ranks, count);
      const auto sums = Messages(ranks, count);
      const DeviceArray<float> received(count * static_cast<size_t>(ranks));
      group.Run([&](Stream stream, const PeerMemory& peers) {
        // Ranks that only send run ahead: the sum after it finds its slots free all the same.
        const auto rank = static_cast<size_t>(peers.rank);
        GatherToRoot(stream, peers, sent[rank].data(), static_cast<int64_t>(count),
                     peers.rank == 0 ? received.data() : nullptr);
        AllReduceTree(stream, peers, sums[rank].data(), static_cast<int64_t>(count));
      });
      const Vector all = received.ToHost();
      for (int rank = 0; rank < ranks; ++rank) {
        EXPECT_TRUE(SameBits(Part(rank, count), &all[static_cast<size_t>(rank) * count]));
      }
      ExpectSums(sums, ExpectedSum(ranks, count));
    }
  }
}

std::vector<int32_t> Ids(int rank, size_t count) {
  std::vector<int32_t> ids(count);
  for (size_t i = 0; i < count; ++i) ids[i] = static_cast<int32_t>(i * 37 + 1) * (rank + 1);
  return ids;
}

std::vector<DeviceArray<int32_t>> IdsOfRanks(int ranks, size_t count) {
  std::vector<DeviceArray<int32_t>> ids;
  for (int rank = 0; rank < ranks; ++rank) ids.emplace_back(Ids(rank, count));
  return ids;
}

TEST(CudaAllReduceTest, EveryRankGetsTheIdsOfRankZero) {
  for (const int ranks : {2, 4, 8}) {
    for (const size_t count : {1u, 255u, 1024u, 3001u}) {
      SCOPED_TRACE(::testing::Message() << ranks << " ranks, " << count << " ids");
      InSeveralThreadOrders([&] {
        const Group group({.ranks = ranks});
        const auto ids = IdsOfRanks(ranks, count);
        const auto more = IdsOfRanks(ranks, count);
        const auto sums = Messages(ranks, count);
        group.Run([&](Stream stream, const PeerMemory& peers) {
          // Ranks that only receive run ahead: what follows finds its slots free all the same.
          const auto rank = static_cast<size_t>(peers.rank);
          BroadcastIds(stream, peers, ids[rank].data(), static_cast<int64_t>(count));
          AllReduceTree(stream, peers, sums[rank].data(), static_cast<int64_t>(count));
          BroadcastIds(stream, peers, more[rank].data(), static_cast<int64_t>(count));
        });
        for (size_t rank = 0; rank < ids.size(); ++rank) {
          EXPECT_EQ(ids[rank].ToHost(), Ids(0, count)) << "rank " << rank;
          EXPECT_EQ(more[rank].ToHost(), Ids(0, count)) << "rank " << rank;
        }
        ExpectSums(sums, ExpectedSum(ranks, count));
      });
    }
  }
}

// A table is looked up with them all the same.
TEST(CudaAllReduceTest, IdsAreZerosOnceARankHasNotCome) {
  constexpr size_t kCount = 2600;
  const Group group({.ranks = 4, .patience = kShortTime});
  const auto ids = IdsOfRanks(4, kCount);
  group.Run(
      [&](Stream stream, const PeerMemory& peers) {
        BroadcastIds(stream, peers, ids[static_cast<size_t>(peers.rank)].data(), kCount);
      },
      {true, true, false, true});
  for (const int rank : {0, 1, 3}) {
    EXPECT_EQ(group.failure(rank), 3u);
    EXPECT_EQ(ids[static_cast<size_t>(rank)].ToHost(), std::vector<int32_t>(kCount, 0));
  }
}

// The numbers of exchanges live in device memory.
TEST(CudaAllReduceTest, ACapturedSumIsRepeated) {
  constexpr size_t kCount = 2600;
  const Group group({.ranks = 4});
  auto messages = Messages(4, kCount);
  std::vector<Graph> graphs;
  for (int rank = 0; rank < 4; ++rank) {
    auto graph = CaptureGraph(TestStream(), [&] {
      AllReduceTree(TestStream(), group.OfRank(rank), messages[static_cast<size_t>(rank)].data(),
                    kCount);
      return absl::OkStatus();
    });
    CheckDevice(graph.status());
    graphs.push_back(*std::move(graph));
  }
  for (int round = 0; round < 5; ++round) {
    for (int rank = 0; rank < 4; ++rank) {
      messages[static_cast<size_t>(rank)].CopyFrom(Part(rank, kCount, round));
    }
    group.Run([&](Stream stream, const PeerMemory& peers) {
      graphs[static_cast<size_t>(peers.rank)].Launch(stream);
    });
    ExpectSums(messages, ExpectedSum(4, kCount, round));
  }
}

// As a captured step begins.
TEST(CudaAllReduceTest, ACapturedBroadcastTakesTheIdsOfEachRepetition) {
  constexpr size_t kCount = 300;
  const Group group({.ranks = 4});
  auto ids = IdsOfRanks(4, kCount);
  std::vector<Graph> graphs;
  for (int rank = 0; rank < 4; ++rank) {
    auto graph = CaptureGraph(TestStream(), [&] {
      BroadcastIds(TestStream(), group.OfRank(rank), ids[static_cast<size_t>(rank)].data(), kCount);
      return absl::OkStatus();
    });
    CheckDevice(graph.status());
    graphs.push_back(*std::move(graph));
  }
  for (int round = 0; round < 3; ++round) {
    for (int rank = 0; rank < 4; ++rank) {
      ids[static_cast<size_t>(rank)].CopyFrom(Ids(10 * round + rank, kCount));
    }
    group.Run([&](Stream stream, const PeerMemory& peers) {
      graphs[static_cast<size_t>(peers.rank)].Launch(stream);
    });
    for (const auto& of_rank : ids) EXPECT_EQ(of_rank.ToHost(), Ids(10 * round, kCount));
  }
}

TEST(CudaAllReduceTest, TreeSumAddsPartsOfOneMemory) {
  for (const int ranks : {2, 4, 8}) {
    for (const size_t count : {1u, 1023u, 5000u}) {
      auto parts = Messages(ranks, count);
      TreeParts pointers;
      for (size_t i = 0; i < parts.size(); ++i) pointers.part[i] = parts[i].data();
      TreeSum(TestStream(), pointers, ranks, static_cast<int64_t>(count), parts[1].data());
      EXPECT_TRUE(SameBits(ExpectedSum(ranks, count), parts[1].ToHost().data()));
    }
  }
}

TEST(CudaAllReduceTest, ARankThatDoesNotComeIsNamedAndLeavesNoNumbers) {
  constexpr size_t kCount = 2600;
  const Group group({.ranks = 4, .patience = kShortTime});
  const std::vector<bool> without_rank_2 = {true, true, false, true};
  const auto messages = Messages(4, kCount);
  group.Run(
      [&](Stream stream, const PeerMemory& peers) {
        AllReduceTree(stream, peers, messages[static_cast<size_t>(peers.rank)].data(), kCount);
      },
      without_rank_2);
  for (const int rank : {0, 1, 3}) {
    EXPECT_EQ(group.failure(rank), 3u);
    for (const float value : messages[static_cast<size_t>(rank)].ToHost()) {
      EXPECT_TRUE(std::isnan(value));
    }
  }

  // Later calls give up at once and write to nobody: the lost rank may be late and still read.
  const std::vector<uint8_t> before = group.MemoryOf(2);
  const auto more = Messages(4, kCount);
  const DeviceArray<float> received(4 * kCount);
  group.Run(
      [&](Stream stream, const PeerMemory& peers) {
        const auto rank = static_cast<size_t>(peers.rank);
        AllReduceTree(stream, peers, more[rank].data(), kCount);
        GatherToRoot(stream, peers, more[rank].data(), kCount,
                     peers.rank == 0 ? received.data() : nullptr);
      },
      without_rank_2);
  for (const float value : received.ToHost()) EXPECT_TRUE(std::isnan(value));
  EXPECT_EQ(before, group.MemoryOf(2));
}

TEST(CudaAllReduceTest, FusedWithTheNormALostRankLeavesNoNumbersEither) {
  const Group group({.ranks = 2, .patience = kShortTime});
  const DeviceMatrix residual(Matrix(DType::kF32, 3, 50).FillNormal(1));
  const DeviceMatrix delta(Delta(0, 3, 50));
  const DeviceMatrix weight(Matrix(DType::kF32, 1, 50).FillNormal(2));
  const DeviceMatrix out(Matrix(DType::kBF16, 3, 50).FillNormal(3));
  group.Run(
      [&](Stream stream, const PeerMemory& peers) {
        AllReduceAddRmsNorm(stream, peers, residual.view(), delta.view(),
                            weight.view().Row<float>(0), kEpsilon, out.view());
      },
      {true, false});
  EXPECT_EQ(group.failure(0), 2u);
  const Matrix result = out.ToHost();
  for (int64_t row = 0; row < 3; ++row) {
    for (int64_t i = 0; i < 50; ++i) EXPECT_TRUE(std::isnan(result.At(row, i)));
  }
}

}  // namespace
}  // namespace marcoro::cuda
