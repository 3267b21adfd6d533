// A token's weight and the filters that cut it off, as the worker's sampling has them
// (worker/sampling/token_weights.h, distribution.h): the same operations in the same order, for
// which nothing is fused. For sampling.cu.
#pragma once

#include "kernels/cuda/device/bits.h"
#include "kernels/cuda/device/numbers.h"
#include "kernels/cuda/sampling_selection.h"

namespace marcoro::cuda {

inline constexpr uint32_t kFullWeight = 1u << 30;

// exp(x) * kFullWeight, rounded, for x <= 0.
MARCORO_DEVICE uint32_t ScaledExp(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  x = x > -30.0f ? x : -30.0f;
  const int power = static_cast<int>(Subtract(Multiply(x, kLog2E), 0.5f));
  const auto n = static_cast<float>(power);
  const float r = Subtract(Subtract(x, Multiply(n, kLn2High)), Multiply(n, kLn2Low));
  float sum = 1.0f / 5040;
  sum = Add(Multiply(sum, r), 1.0f / 720);
  sum = Add(Multiply(sum, r), 1.0f / 120);
  sum = Add(Multiply(sum, r), 1.0f / 24);
  sum = Add(Multiply(sum, r), 1.0f / 6);
  sum = Add(Multiply(sum, r), 0.5f);
  sum = Add(Multiply(sum, r), 1.0f);
  sum = Add(Multiply(sum, r), 1.0f);
  const float scale = BitsToFloat(static_cast<uint32_t>(power + 127 + 30) << 23);
  return static_cast<uint32_t>(static_cast<int>(Add(Multiply(sum, scale), 0.5f)));
}

// Larger logits have smaller keys; 0 and -0 have the same.
MARCORO_DEVICE uint32_t KeyOfLogit(float logit) {
  const uint32_t bits = FloatToBits(Add(logit, 0.0f));
  const uint32_t rising = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return ~rising;
}

// Of a distance >= 0.
MARCORO_DEVICE uint32_t KeyOfDistance(float distance) { return FloatToBits(Add(distance, 0.0f)); }

MARCORO_DEVICE float NegativeInfinity() { return BitsToFloat(0xff800000u); }

// What is left of a row's tokens. A filter that is off keeps all.
struct KeptTokens {
  float max;     // the largest logit
  float factor;  // of exponents: 1 / temperature
  Rank last_of_top_k = kLastRank;
  Rank last_of_top_p = kLastRank;
  uint32_t least_weight = 0;  // min_p
  float mean_exponent = 0;    // typical_p
  Rank last_of_typical = kLastRank;
};

struct WeighedToken {
  float exponent;
  uint32_t weight;  // 0: cut off, or too unlikely to weigh anything
};

// Of entries as the worker's distribution has them: all tokens without top_k, else those it keeps.
MARCORO_DEVICE bool IsEntry(const KeptTokens& kept, int id, float logit) {
  if (kept.last_of_top_k == kLastRank) return true;
  return logit > NegativeInfinity() && RankOf(KeyOfLogit(logit), id) <= kept.last_of_top_k;
}

MARCORO_DEVICE float TypicalDistance(const KeptTokens& kept, float exponent) {
  return BitsToFloat(FloatToBits(Subtract(kept.mean_exponent, exponent)) & 0x7fffffffu);
}

MARCORO_DEVICE float ExponentOf(const KeptTokens& kept, float logit) {
  return Multiply(Subtract(logit, kept.max), kept.factor);
}

// The exponential, most of the work, is for those tokens only that no threshold cuts off.
MARCORO_DEVICE WeighedToken Weigh(const KeptTokens& kept, int id, float logit) {
  const float exponent = ExponentOf(kept, logit);
  const bool is_near =
      IsEntry(kept, id, logit) && RankOf(KeyOfDistance(-exponent), id) <= kept.last_of_top_p &&
      (kept.last_of_typical == kLastRank ||
       RankOf(KeyOfDistance(TypicalDistance(kept, exponent)), id) <= kept.last_of_typical);
  if (!is_near) return {exponent, 0};
  const uint32_t weight = ScaledExp(exponent);
  return {exponent, weight >= kept.least_weight ? weight : 0};
}

// Philox4x32-10, as worker/sampling/philox.h: 53 random bits for a position of a seed's stream.
MARCORO_DEVICE uint64_t RandomBits53(uint64_t seed, uint64_t position) {
  uint32_t counter[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), 0,
                         0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  MARCORO_UNROLL_LOOP
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter[0] = static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0];
    counter[1] = static_cast<uint32_t>(product1);
    counter[2] = static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1];
    counter[3] = static_cast<uint32_t>(product0);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return (static_cast<uint64_t>(counter[1]) << 32 | counter[0]) >> 11;
}

// bits · total / 2^53, rounded down.
MARCORO_DEVICE uint64_t PartOfTotal(uint64_t bits, uint64_t total) {
  return MultiplyHigh(bits, total) << 11 | (bits * total) >> 53;
}

}  // namespace marcoro::cuda
