// Weights, activations and the checks of products that all tests of matmul share.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/reference/element.h"
#include "kernels/tensor.h"
#include "tests/kernels/random_seed.h"

namespace marcoro {

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
  // Of a BF16 weight.
  void SetValue(int64_t row, int64_t column, BFloat16 value) {
    std::memcpy(bytes.data() + static_cast<size_t>(row * shape.columns + column) * sizeof(value),
                &value, sizeof(value));
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
  std::mt19937 random(RandomSeed(seed));
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
  std::mt19937 random(RandomSeed(seed));
  std::normal_distribution<float> normal;
  std::vector<BFloat16> x(static_cast<size_t>(count));
  for (BFloat16& value : x) value = ToBFloat16(normal(random));
  return x;
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

}  // namespace marcoro
