// Weights and products on the device, for the tests of the CUDA matmul.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/matmul_limits.h"
#include "kernels/cuda/matmul_plan.h"
#include "kernels/cuda/ops.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/matmul_problem.h"

namespace marcoro::cuda {

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

}  // namespace marcoro::cuda
