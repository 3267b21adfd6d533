#include "kernels/cpu/matmul.h"

#include <sys/mman.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/tensor.h"
#include "tests/kernels/cuda/device_backends.h"
#include "tests/kernels/matmul_problem.h"

namespace marcoro::cpu {
namespace {

struct Family {
  const char* name;
  bool (*runs_here)();
  size_t (*weight_bytes)(const WeightShape&);
  void (*pack_weight)(const PackedWeight&, int64_t, int64_t, const void*);
  void (*matmul)(ThreadPool&, const Tensor&, const PackedWeight&, const Tensor&);
};

bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool HasAvx512() {
  return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
}

// A device's backend as a family: it brings threads of its own.
Backend* Device() {
  static const auto backend = MakeStagedDeviceBackend(1);
  return backend.ok() ? backend->get() : nullptr;
}
bool HasDevice() { return Device() != nullptr; }
size_t DeviceWeightBytes(const WeightShape& shape) { return Device()->WeightBytes(shape); }
void DevicePackWeight(const PackedWeight& weight, int64_t first_row, int64_t count,
                      const void* source) {
  Device()->PackWeight(weight, first_row, count, source);
}
void DeviceMatmul(ThreadPool&, const Tensor& x, const PackedWeight& weight, const Tensor& out) {
  Device()->Matmul(x, weight, out);
}

// Memory that ends where a page begins that nobody may touch.
template <typename T>
class GuardedArray {
 public:
  explicit GuardedArray(size_t count, T fill = T{}) : count_(count) {
    const size_t page = sysconf(_SC_PAGESIZE);
    mapped_bytes_ = (count * sizeof(T) + page - 1) / page * page + page;
    mapped_ = static_cast<char*>(
        mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(mapped_ + mapped_bytes_ - page, page, PROT_NONE);
    for (size_t i = 0; i < count; ++i) data()[i] = fill;
  }
  ~GuardedArray() { munmap(mapped_, mapped_bytes_); }
  GuardedArray(const GuardedArray&) = delete;
  GuardedArray& operator=(const GuardedArray&) = delete;

  T* data() const {
    const size_t page = sysconf(_SC_PAGESIZE);
    return reinterpret_cast<T*>(mapped_ + mapped_bytes_ - page) - count_;
  }
  T& operator[](size_t i) const { return data()[i]; }
  size_t size() const { return count_; }

 private:
  size_t count_;
  size_t mapped_bytes_;
  char* mapped_;
};

float DecodeE4M3(uint8_t code) {
  const float sign = (code & 0x80) != 0 ? -1.0f : 1.0f;
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  if ((code & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -9);
  return sign * std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
}

// A weight packed by a family.
class Packed {
 public:
  Packed(const Family& family, const PlainWeight& plain)
      : bytes_(family.weight_bytes(plain.shape)), scales_(plain.scales.size()) {
    data_ = static_cast<char*>(std::aligned_alloc(64, (bytes_ + 63) / 64 * 64));
    std::memset(data_, 0xff, bytes_);  // NaN in every format: padding has to be written
    for (size_t i = 0; i < scales_.size(); ++i) scales_[i] = plain.scales[i];
    weight_ = {plain.shape, data_, plain.scales.empty() ? nullptr : scales_.data()};
    for (int64_t row = 0; row < plain.shape.rows; row += 64) {
      const int64_t count = std::min<int64_t>(64, plain.shape.rows - row);
      family.pack_weight(weight_, row, count, plain.view().RowBytes(row));
    }
  }
  ~Packed() { std::free(data_); }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;

  const PackedWeight& weight() const { return weight_; }

 private:
  size_t bytes_;
  char* data_;
  GuardedArray<float> scales_;
  PackedWeight weight_;
};

// Rows of (tokens, columns) with NaN between them and no memory after the last one.
struct StridedActivations {
  GuardedArray<BFloat16> memory;
  Tensor tensor;

  StridedActivations(const BFloat16* x, int64_t tokens, int64_t columns, int64_t gap)
      : memory((tokens - 1) * (columns + gap) + columns, BFloat16{0x7fc0}),
        tensor(memory.data(), DType::kBF16, tokens, columns) {
    tensor.stride = columns + gap;
    for (int64_t t = 0; t < tokens; ++t) {
      std::memcpy(tensor.Row<BFloat16>(t), x + t * columns, columns * sizeof(BFloat16));
    }
  }
};

constexpr float kPoison = -12345.0f;

// The product of dense x (tokens, columns); fails the test if anything but the output's elements is
// written.
std::vector<float> Multiply(const Family& family, const PackedWeight& weight,
                            const std::vector<BFloat16>& x, int threads = 1, int64_t x_gap = 0,
                            int64_t out_gap = 0) {
  const int64_t columns = weight.shape.columns;
  const int64_t rows = weight.shape.rows;
  const int64_t tokens = static_cast<int64_t>(x.size()) / columns;
  const StridedActivations activations(x.data(), tokens, columns, x_gap);
  const GuardedArray<float> memory((tokens - 1) * (rows + out_gap) + rows, kPoison);
  Tensor out(memory.data(), DType::kF32, tokens, rows);
  out.stride = rows + out_gap;
  ThreadPool pool(threads);
  family.matmul(pool, activations.tensor, weight, out);
  std::vector<float> result(tokens * rows);
  for (size_t i = 0; i < memory.size(); ++i) {
    const int64_t token = static_cast<int64_t>(i) / out.stride;
    const int64_t row = static_cast<int64_t>(i) % out.stride;
    if (row < rows) {
      result[token * rows + row] = memory[i];
    } else {
      EXPECT_EQ(memory[i], kPoison) << "wrote between rows, token " << token << ", " << row;
    }
  }
  return result;
}

class MatmulTest : public testing::TestWithParam<Family> {
 protected:
  void SetUp() override {
    if (!family().runs_here()) GTEST_SKIP() << "this machine lacks " << family().name;
  }
  const Family& family() const { return GetParam(); }
};

TEST_P(MatmulTest, DecodesEveryE4M3CodeExactly) {
  constexpr int kColumns = 9;
  for (int column = 0; column < kColumns; ++column) {
    PlainWeight weight({DType::kF8E4M3, 256, kColumns, 1});
    for (int row = 0; row < 256; ++row) {
      weight.Code(row, column) = static_cast<uint8_t>(row);
    }
    const Packed packed(family(), weight);
    const std::vector<float> out =
        Multiply(family(), packed.weight(), std::vector<BFloat16>(kColumns, ToBFloat16(1.0f)));
    for (int code = 0; code < 256; ++code) {
      if ((code & 0x7f) == 0x7f) {
        EXPECT_TRUE(std::isnan(out[code])) << code;
      } else {
        EXPECT_EQ(out[code], DecodeE4M3(static_cast<uint8_t>(code))) << code;
      }
    }
  }
}

TEST_P(MatmulTest, TakesEveryNormalBF16WeightExactly) {
  constexpr int kCodes = 1 << 16;
  PlainWeight weight({DType::kBF16, kCodes, 1, 1});
  for (int code = 0; code < kCodes; ++code) {
    weight.SetValue(code, 0, {static_cast<uint16_t>(code)});
  }
  const Packed packed(family(), weight);
  const std::vector<float> out =
      Multiply(family(), packed.weight(), std::vector<BFloat16>(1, ToBFloat16(1.0f)));
  for (int code = 0; code < kCodes; ++code) {
    const float value = ToFloat({static_cast<uint16_t>(code)});
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(out[code])) << code;
    } else if (value == 0 || std::isnormal(value) || std::isinf(value)) {
      EXPECT_EQ(out[code], value) << code;
    } else {
      EXPECT_TRUE(out[code] == value || out[code] == 0) << code;  // subnormals may be flushed
    }
  }
}

TEST_P(MatmulTest, MatchesPlainSumsForRaggedSizes) {
  uint32_t seed = 1;
  for (DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    for (int64_t rows : {1, 15, 16, 17, 31, 33, 64, 65, 97, 130}) {
      for (int64_t segment_columns : {1, 2, 3, 4, 5, 22, 64, 131}) {
        for (int segments : {1, 2, 8}) {
          const WeightShape shape{dtype, rows, segment_columns * segments, segments};
          const PlainWeight weight = RandomWeight(shape, ++seed);
          const Packed packed(family(), weight);
          const int64_t tokens = 1 + seed % 14;
          const std::vector<BFloat16> x = RandomActivations(tokens * shape.columns, ++seed);
          const std::vector<float> out = Multiply(family(), packed.weight(), x, 2, 3, 5);
          ExpectNearPlainSums(weight, x, out, Describe(shape, tokens));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(MatmulTest, BitsDependOnNeitherTokensNorThreads) {
  for (const WeightShape& shape :
       {WeightShape{DType::kF8E4M3, 200, 8 * 22, 8}, WeightShape{DType::kF8E4M3, 96, 300, 1},
        WeightShape{DType::kBF16, 130, 4 * 31, 4}}) {
    constexpr int64_t kTokens = 80;
    const Packed packed(family(), RandomWeight(shape, 7));
    const std::vector<BFloat16> x = RandomActivations(kTokens * shape.columns, 8);
    std::vector<float> alone;
    for (int64_t token = 0; token < kTokens; ++token) {
      const auto begin = x.begin() + token * shape.columns;
      const std::vector<float> out =
          Multiply(family(), packed.weight(), {begin, begin + shape.columns});
      alone.insert(alone.end(), out.begin(), out.end());
    }
    const bool emulated = family().runs_here == HasDevice && DeviceIsEmulated();
    for (int threads = 1; threads <= (emulated ? 1 : 3); ++threads) {
      for (int64_t tokens = 1; tokens <= kTokens; tokens += emulated ? 6 : tokens < 34 ? 1 : 23) {
        const std::vector<float> out = Multiply(
            family(), packed.weight(), {x.begin(), x.begin() + tokens * shape.columns}, threads);
        ExpectSameBits({alone.begin(), alone.begin() + tokens * shape.rows}, out, shape.rows,
                       Describe(shape, tokens) + ", threads " + std::to_string(threads));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_P(MatmulTest, PassesOfManyTokensHaveTheSameBits) {
  // 20 MB of activations: several passes of any division that keeps them in a cache.
  const WeightShape shape{DType::kF8E4M3, 40, 4096, 2};
  constexpr int64_t kTokens = 2500;
  const Packed packed(family(), RandomWeight(shape, 9));
  const std::vector<BFloat16> x = RandomActivations(kTokens * shape.columns, 10);
  const std::vector<float> out = Multiply(family(), packed.weight(), x, 2);
  for (int64_t token : {0, 1, 499, 500, 624, 625, 1000, 1249, 1250, 1500, 2000, 2498, 2499}) {
    const auto begin = x.begin() + token * shape.columns;
    const std::vector<float> alone =
        Multiply(family(), packed.weight(), {begin, begin + shape.columns});
    ExpectSameBits(alone,
                   {out.begin() + token * shape.rows, out.begin() + (token + 1) * shape.rows},
                   shape.rows, "token " + std::to_string(token));
  }
}

TEST_P(MatmulTest, RowsDoNotChangeBits) {
  const WeightShape shape{DType::kF8E4M3, 300, 8 * 10, 8};
  const PlainWeight whole = RandomWeight(shape, 11);
  const Packed packed(family(), whole);
  const std::vector<BFloat16> x = RandomActivations(5 * shape.columns, 12);
  const std::vector<float> expected = Multiply(family(), packed.weight(), x);
  PlainWeight some({shape.dtype, 70, shape.columns, shape.segments});
  constexpr int64_t kFirst = 123;
  for (int64_t row = 0; row < some.shape.rows; ++row) {
    some.scales[row] = whole.scales[kFirst + row];
    std::memcpy(some.view().RowBytes(row), whole.view().RowBytes(kFirst + row), shape.columns);
  }
  const Packed packed_some(family(), some);
  const std::vector<float> out = Multiply(family(), packed_some.weight(), x, 2);
  for (int64_t token = 0; token < 5; ++token) {
    for (int64_t row = 0; row < some.shape.rows; ++row) {
      ASSERT_EQ(std::bit_cast<uint32_t>(out[token * some.shape.rows + row]),
                std::bit_cast<uint32_t>(expected[token * shape.rows + kFirst + row]));
    }
  }
}

TEST_P(MatmulTest, SegmentsAreSummedInTheBalancedTreeAtEveryDegreeOfParallelism) {
  for (DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    for (int64_t segment_columns : {22, 64}) {
      for (int64_t tokens : {1, 3, 8, 29}) {
        const WeightShape shape{dtype, 70, 8 * segment_columns, 8};
        const PlainWeight weight = RandomWeight(shape, 13);
        const Packed packed(family(), weight);
        const std::vector<BFloat16> x = RandomActivations(tokens * shape.columns, 14);
        const std::vector<float> whole = Multiply(family(), packed.weight(), x, 2);
        for (int ranks : {2, 4, 8}) {
          std::vector<std::vector<float>> parts;
          for (int rank = 0; rank < ranks; ++rank) {
            const Packed shard(family(), weight.Shard(rank, ranks));
            const int64_t columns = shape.columns / ranks;
            const std::vector<BFloat16> part = Columns(x, shape.columns, rank * columns, columns);
            parts.push_back(Multiply(family(), shard.weight(), part, 1 + rank % 2));
          }
          ExpectSameBits(whole, TreeSum(parts), shape.rows,
                         Describe(shape, tokens) + ", ranks " + std::to_string(ranks));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(MatmulTest, ScalesEachSegmentBeforeTheTree) {
  // 2^127 + 2^127 overflows unless each is scaled first; 2^-1 · 2^127 twice is 2^127.
  PlainWeight weight({DType::kF8E4M3, 1, 2, 2});
  weight.bytes = {0x38, 0x38};  // 1, 1
  weight.scales = {0.5f};
  const Packed packed(family(), weight);
  const BFloat16 x = ToBFloat16(std::ldexp(1.0f, 127));
  EXPECT_EQ(Multiply(family(), packed.weight(), {x, x})[0], std::ldexp(1.0f, 127));
}

TEST_P(MatmulTest, NonFiniteActivationsStayInTheirToken) {
  const WeightShape shape{DType::kF8E4M3, 70, 8 * 22, 8};
  const Packed packed(family(), RandomWeight(shape, 15));
  for (int64_t tokens : {2, 5, 13, 30}) {
    const std::vector<BFloat16> clean = RandomActivations(tokens * shape.columns, 16);
    const std::vector<float> expected = Multiply(family(), packed.weight(), clean);
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY, -INFINITY}) {
      const int64_t token = tokens / 2;
      std::vector<BFloat16> x = clean;
      x[token * shape.columns + 21] = ToBFloat16(bad);  // last column of a padded segment
      const std::vector<float> out = Multiply(family(), packed.weight(), x);
      for (size_t i = 0; i < out.size(); ++i) {
        if (static_cast<int64_t>(i) / shape.rows == token) {
          EXPECT_FALSE(std::isfinite(out[i])) << i;
        } else {
          EXPECT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(expected[i])) << i;
        }
      }
    }
  }
}

TEST_P(MatmulTest, NaNWeightsStayInTheirRow) {
  const WeightShape shape{DType::kF8E4M3, 70, 2 * 22, 2};
  PlainWeight weight = RandomWeight(shape, 17);
  const std::vector<BFloat16> x = RandomActivations(9 * shape.columns, 18);
  const Packed clean(family(), weight);
  const std::vector<float> expected = Multiply(family(), clean.weight(), x);
  constexpr int64_t kRow = 33;
  weight.Code(kRow, 21) = 0xff;
  const Packed packed(family(), weight);
  const std::vector<float> out = Multiply(family(), packed.weight(), x);
  for (size_t i = 0; i < out.size(); ++i) {
    if (static_cast<int64_t>(i) % shape.rows == kRow) {
      EXPECT_TRUE(std::isnan(out[i])) << i;
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(expected[i])) << i;
    }
  }
}

TEST_P(MatmulTest, InfinityFollowsIeee) {
  PlainWeight weight({DType::kBF16, 3, 5, 1});
  for (int column = 0; column < 5; ++column) {
    weight.SetValue(0, column, ToBFloat16(1.0f));
    weight.SetValue(1, column, ToBFloat16(0.0f));
    weight.SetValue(2, column, ToBFloat16(-1.0f));
  }
  const Packed packed(family(), weight);
  std::vector<BFloat16> x(5, ToBFloat16(1.0f));
  x[4] = ToBFloat16(INFINITY);
  const std::vector<float> out = Multiply(family(), packed.weight(), x);
  EXPECT_EQ(out[0], INFINITY);
  EXPECT_TRUE(std::isnan(out[1]));
  EXPECT_EQ(out[2], -INFINITY);
}

TEST_P(MatmulTest, PacksTheSameInOneCallOrInMany) {
  for (DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    const WeightShape shape{dtype, 210, 4 * 7, 4};
    const PlainWeight plain = RandomWeight(shape, 19);
    const size_t bytes = family().weight_bytes(shape);
    EXPECT_GE(bytes, shape.rows * shape.columns * SizeOf(dtype));
    std::vector<std::unique_ptr<GuardedArray<char>>> copies;
    for (int64_t step : {64, 128, 256}) {
      copies.push_back(std::make_unique<GuardedArray<char>>(bytes, char{0x55}));
      std::vector<float> scales(shape.rows, 1.0f);
      const PackedWeight weight{shape, copies.back()->data(),
                                dtype == DType::kBF16 ? nullptr : scales.data()};
      for (int64_t row = 0; row < shape.rows; row += step) {
        family().pack_weight(weight, row, std::min(step, shape.rows - row),
                             plain.view().RowBytes(row));
      }
      EXPECT_EQ(std::memcmp(copies.back()->data(), copies.front()->data(), bytes), 0) << step;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Families, MatmulTest,
    testing::Values(Family{"avx2", HasAvx2, avx2::WeightBytes, avx2::PackWeight, avx2::Matmul},
                    Family{"avx512", HasAvx512, avx512::WeightBytes, avx512::PackWeight,
                           avx512::Matmul},
                    Family{"cuda", HasDevice, DeviceWeightBytes, DevicePackWeight, DeviceMatmul}),
    [](const auto& family) { return std::string(family.param.name); });

}  // namespace
}  // namespace marcoro::cpu
