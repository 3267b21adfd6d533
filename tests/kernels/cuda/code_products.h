// Products of E4M3 codes on the device, for the tests of the CUDA matmul.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/cuda/matmul_harness.h"

namespace marcoro::cuda {

// Codes and scales (token, segment) of some tokens.
struct CodeInput {
  std::vector<uint8_t> codes;
  std::vector<float> scales;

  CodeInput Rows(int64_t begin, int64_t end, const WeightShape& shape) const {
    return {{codes.begin() + begin * shape.columns, codes.begin() + end * shape.columns},
            {scales.begin() + begin * shape.segments, scales.begin() + end * shape.segments}};
  }
  // What one of `ranks` ranks has of the whole weight's input.
  CodeInput Shard(int rank, int ranks, const WeightShape& shape) const {
    const int64_t columns = shape.columns / ranks;
    const int64_t segments = shape.segments / ranks;
    const auto tokens = static_cast<int64_t>(codes.size()) / shape.columns;
    CodeInput result;
    for (int64_t t = 0; t < tokens; ++t) {
      const auto code = codes.begin() + t * shape.columns + rank * columns;
      const auto scale = scales.begin() + t * shape.segments + rank * segments;
      result.codes.insert(result.codes.end(), code, code + columns);
      result.scales.insert(result.scales.end(), scale, scale + segments);
    }
    return result;
  }
};

inline CodeInput RandomCodeInput(int64_t tokens, const WeightShape& shape, uint32_t seed) {
  constexpr DType kCodes = DType::kF8E4M3;
  const PlainWeight codes = RandomWeight({kCodes, tokens, shape.columns, 1}, seed);
  const PlainWeight scales = RandomWeight({kCodes, tokens * shape.segments, 1, 1}, seed + 1);
  return {codes.bytes, scales.scales};
}

// Calls product(x, scales, out) with views in device memory; memory between rows begins as NaN on
// both sides and has to stay so in the output.
template <typename Product>
std::vector<float> RunCodeProduct(const WeightShape& shape, const CodeInput& input,
                                  const Gaps& gaps, const Product& product) {
  const auto tokens = static_cast<int64_t>(input.codes.size()) / shape.columns;
  std::vector<uint8_t> strided(static_cast<size_t>(tokens * (shape.columns + gaps.x)), 0x7f);
  for (int64_t t = 0; t < tokens; ++t) {
    std::copy_n(input.codes.begin() + t * shape.columns, shape.columns,
                strided.begin() + t * (shape.columns + gaps.x));
  }
  const DeviceArray<uint8_t> codes(absl::MakeConstSpan(strided));
  const DeviceArray<float> scales(absl::MakeConstSpan(input.scales));
  const DeviceArray<float> memory(static_cast<size_t>(tokens * (shape.rows + gaps.out)));
  Tensor x(codes.data(), DType::kF8E4M3, tokens, shape.columns);
  x.stride += gaps.x;
  Tensor out(memory.data(), DType::kF32, tokens, shape.rows);
  out.stride += gaps.out;
  product(x, Tensor(scales.data(), DType::kF32, tokens, shape.segments), out);
  const std::vector<float> all = memory.ToHost();
  std::vector<float> result;
  for (size_t i = 0; i < all.size(); ++i) {
    if (static_cast<int64_t>(i) % out.stride < shape.rows) {
      result.push_back(all[i]);
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(all[i]), 0xffffffffu) << "wrote between rows, at " << i;
    }
  }
  return result;
}

// The product by a plan.
inline std::vector<float> MultiplyCodes(const PackedWeight& weight, const CodeInput& input,
                                        const MatmulPlan& plan, const Gaps& gaps = {}) {
  return RunCodeProduct(
      weight.shape, input, gaps, [&](const Tensor& x, const Tensor& scales, const Tensor& out) {
        const DeviceArray<char> scratch(PlanScratchBytes(plan, weight.shape, x.rows));
        RunMatmul(TestStream(), plan, x, weight, out, scratch.data(), &scales);
        CheckDevice(Synchronize(TestStream()));
      });
}

}  // namespace marcoro::cuda
