// Weights, activations and products for the tests of the CUDA matmul, and what they are compared
// with.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/device_limits.h"
#include "kernels/cuda/matmul_plan.h"
#include "kernels/cuda/ops.h"
#include "kernels/reference/element.h"
#include "tests/kernels/cuda/device_array.h"

namespace marcoro::cuda {

// A weight as a checkpoint has it.
struct PlainWeight {
  WeightShape shape;
  std::vector<uint8_t> bytes;
  std::vector<float> scales;  // empty for BF16

  explicit PlainWeight(const WeightShape& shape_in)
      : shape(shape_in),
        bytes(static_cast<size_t>(shape.rows * shape.columns) * SizeOf(shape.dtype)) {
    if (shape.dtype == DType::kF8E4M3) scales.assign(static_cast<size_t>(shape.rows), 1.0f);
  }
  uint8_t& Code(int64_t row, int64_t column) {
    return bytes[static_cast<size_t>(row * shape.columns + column)];
  }
  Tensor view() const {
    return Tensor(const_cast<uint8_t*>(bytes.data()), shape.dtype, shape.rows, shape.columns);
  }
  // What one of `ranks` ranks holds: its share of the segments.
  PlainWeight Shard(int rank, int ranks) const {
    WeightShape part = shape;
    part.columns /= ranks;
    part.segments /= ranks;
    PlainWeight result(part);
    result.scales = scales;
    const size_t row_bytes = static_cast<size_t>(part.columns) * SizeOf(shape.dtype);
    for (size_t row = 0; row < static_cast<size_t>(shape.rows); ++row) {
      const auto from = bytes.begin() + static_cast<int64_t>((row * ranks + rank) * row_bytes);
      std::copy(from, from + static_cast<int64_t>(row_bytes),
                result.bytes.begin() + static_cast<int64_t>(row * row_bytes));
    }
    return result;
  }
};

inline PlainWeight RandomWeight(const WeightShape& shape, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  PlainWeight weight(shape);
  if (shape.dtype == DType::kF8E4M3) {
    for (uint8_t& code : weight.bytes) {
      do code = static_cast<uint8_t>(random());
      while ((code & 0x7f) == 0x7f);
    }
  } else {
    auto* values = reinterpret_cast<BFloat16*>(weight.bytes.data());
    for (int64_t i = 0; i < shape.rows * shape.columns; ++i) values[i] = ToBFloat16(normal(random));
  }
  for (float& scale : weight.scales) scale = std::exp(normal(random));
  return weight;
}

inline std::vector<BFloat16> RandomActivations(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<BFloat16> x(static_cast<size_t>(count));
  for (BFloat16& value : x) value = ToBFloat16(normal(random));
  return x;
}

// A weight packed on the device, in calls of `step` rows, for activations of a type.
class Packed {
 public:
  explicit Packed(const PlainWeight& plain, int64_t step = 64, DType activations = DType::kBF16)
      : data_(WeightBytes(plain.shape)), scales_(plain.scales.size()) {
    scales_.CopyFrom(plain.scales);
    weight_ = {plain.shape, data_.data(), plain.scales.empty() ? nullptr : scales_.data()};
    for (int64_t row = 0; row < plain.shape.rows; row += step) {
      const int64_t count = std::min(step, plain.shape.rows - row);
      const auto* from = static_cast<const uint8_t*>(plain.view().RowBytes(row));
      const DeviceArray<uint8_t> source(absl::MakeConstSpan(
          from, static_cast<size_t>(count * plain.shape.columns) * SizeOf(plain.shape.dtype)));
      PackWeight(TestStream(), weight_, row, count, source.data(), activations);
      CheckDevice(Synchronize(TestStream()));
    }
  }
  const PackedWeight& weight() const { return weight_; }
  std::vector<char> Bytes() const { return data_.ToHost(); }

 private:
  DeviceArray<char> data_;
  DeviceArray<float> scales_;
  PackedWeight weight_;
};

struct Gaps {
  int64_t x = 0;
  int64_t out = 0;
};

// The product of dense x (tokens, columns) by a plan; memory between rows begins as NaN on both
// sides and has to stay so in the output.
inline std::vector<float> Multiply(const PackedWeight& weight, const std::vector<BFloat16>& x,
                                   const MatmulPlan& plan, const Gaps& gaps = {}) {
  const int64_t columns = weight.shape.columns;
  const int64_t rows = weight.shape.rows;
  const auto tokens = static_cast<int64_t>(x.size()) / columns;
  std::vector<BFloat16> strided(static_cast<size_t>((tokens - 1) * (columns + gaps.x) + columns),
                                BFloat16{0x7fc0});
  for (int64_t token = 0; token < tokens; ++token) {
    std::copy_n(x.begin() + token * columns, columns, strided.begin() + token * (columns + gaps.x));
  }
  const DeviceArray<BFloat16> device_x(absl::MakeConstSpan(strided));
  const DeviceArray<float> device_out(static_cast<size_t>((tokens - 1) * (rows + gaps.out) + rows));
  const DeviceArray<char> scratch(PlanScratchBytes(plan, weight.shape, tokens));
  Tensor x_view(device_x.data(), DType::kBF16, tokens, columns);
  x_view.stride += gaps.x;
  Tensor out_view(device_out.data(), DType::kF32, tokens, rows);
  out_view.stride += gaps.out;
  RunMatmul(TestStream(), plan, x_view, weight, out_view, scratch.data());

  const std::vector<float> memory = device_out.ToHost();
  std::vector<float> result;
  for (size_t i = 0; i < memory.size(); ++i) {
    if (static_cast<int64_t>(i) % out_view.stride < rows) {
      result.push_back(memory[i]);
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(memory[i]), 0xffffffffu) << "wrote between rows, at " << i;
    }
  }
  return result;
}

inline std::vector<float> Multiply(const PackedWeight& weight, const std::vector<BFloat16>& x,
                                   const Gaps& gaps = {}) {
  const auto tokens = static_cast<int64_t>(x.size()) / weight.shape.columns;
  return Multiply(weight, x, PlanMatmul(weight.shape, tokens, DeviceMatmulLimits()), gaps);
}

inline std::string Describe(const WeightShape& shape, int64_t tokens) {
  return std::to_string(tokens) + " x " + std::to_string(shape.columns) + " x " +
         std::to_string(shape.rows) + " in " + std::to_string(shape.segments) + " segments, " +
         (shape.dtype == DType::kBF16 ? "bf16" : "fp8");
}

inline void ExpectSameBits(const std::vector<float>& expected, const std::vector<float>& actual,
                           int64_t rows, const std::string& what) {
  ASSERT_EQ(expected.size(), actual.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(expected[i]), std::bit_cast<uint32_t>(actual[i]))
        << what << ": token " << static_cast<int64_t>(i) / rows << ", row "
        << static_cast<int64_t>(i) % rows << ": expected " << expected[i] << ", not " << actual[i];
  }
}

// Compares with sums in double; the bound is that of a float sum of as many terms.
inline void ExpectNearPlainSums(const PlainWeight& weight, const std::vector<BFloat16>& x,
                                const std::vector<float>& actual, const std::string& what) {
  const auto columns = static_cast<size_t>(weight.shape.columns);
  const auto rows = static_cast<size_t>(weight.shape.rows);
  const size_t tokens = x.size() / columns;
  ASSERT_EQ(actual.size(), tokens * rows);
  for (size_t row = 0; row < rows; ++row) {
    const std::vector<float> values =
        reference::RowToFloats(weight.view(), static_cast<int64_t>(row));
    const double scale = weight.scales.empty() ? 1.0 : weight.scales[row];
    for (size_t token = 0; token < tokens; ++token) {
      double sum = 0;
      double magnitude = 0;
      for (size_t column = 0; column < columns; ++column) {
        const double product = double{ToFloat(x[token * columns + column])} * values[column];
        sum += product;
        magnitude += std::abs(product);
      }
      const double bound = magnitude * scale * 1.2e-7 * static_cast<double>(columns + 4);
      ASSERT_NEAR(actual[token * rows + row], sum * scale, bound)
          << what << ": token " << token << ", row " << row;
    }
  }
}

// ((0 + 1) + (2 + 3)) + … over equally long vectors.
inline std::vector<float> TreeSum(std::vector<std::vector<float>> parts) {
  while (parts.size() > 1) {
    std::vector<std::vector<float>> sums;
    for (size_t i = 0; i < parts.size(); i += 2) {
      for (size_t j = 0; j < parts[i].size(); ++j) parts[i][j] += parts[i + 1][j];
      sums.push_back(parts[i]);
    }
    parts = sums;
  }
  return parts[0];
}

inline std::vector<BFloat16> Columns(const std::vector<BFloat16>& x, int64_t columns, int64_t begin,
                                     int64_t count) {
  std::vector<BFloat16> part;
  for (auto row = x.begin(); row != x.end(); row += columns) {
    part.insert(part.end(), row + begin, row + begin + count);
  }
  return part;
}

}  // namespace marcoro::cuda
