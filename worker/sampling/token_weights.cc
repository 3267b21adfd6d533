#include "worker/sampling/token_weights.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/check.h"

namespace marcoro {
namespace {

// exp(x) * kFullWeight, rounded, for x <= 0. Written so that compilers turn loops over it into
// vector code.
inline uint32_t ScaledExp(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High =
      0.693359375f;  // exact in 10 bits: its product with a small integer is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  x = x > -30.0f ? x : -30.0f;                                    // exp(-30) * 2^30 rounds to 0
  const int32_t power = static_cast<int32_t>(x * kLog2E - 0.5f);  // to the nearest
  const auto n = static_cast<float>(power);
  const float r = (x - n * kLn2High) - n * kLn2Low;  // |r| <= ln(2) / 2
  // Taylor's series: what is left out is less than 2^-27.
  float sum = 1.0f / 5040;
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const float scale = std::bit_cast<float>((power + 127 + 30) << 23);  // 2^(power + 30)
  return static_cast<uint32_t>(static_cast<int32_t>(sum * scale + 0.5f));
}

}  // namespace

void WeighTokens(absl::Span<const float> logits, float max, float temperature,
                 absl::Span<float> exponents, absl::Span<uint32_t> weights) {
  MARCORO_CHECK(temperature > 0);
  MARCORO_CHECK(logits.size() == exponents.size() && logits.size() == weights.size());
  const float factor = std::min(1.0f / temperature, std::numeric_limits<float>::max());
  const float* in = logits.data();
  float* x = exponents.data();
  uint32_t* weight = weights.data();
  for (size_t i = 0; i < logits.size(); ++i) x[i] = (in[i] - max) * factor;
  for (size_t i = 0; i < logits.size(); ++i) weight[i] = ScaledExp(x[i]);
}

}  // namespace marcoro
