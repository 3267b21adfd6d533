// Bodies of MergeKernels. Included once by each merge_kernels_<isa>.cc, which names the inner
// namespace in MARCORO_ISA and is compiled for that instruction set: plain loops that the compiler
// vectorises. As in row_kernels-inl.h, no product of float32 is fused with a sum and no template of
// the standard library is used.
#pragma once

#include "worker/weights/merge/merge_kernels.h"

namespace marcoro {
namespace MARCORO_ISA {
namespace {

inline float AsFloat(uint32_t bits) { return __builtin_bit_cast(float, bits); }
inline uint32_t AsBits(float value) { return __builtin_bit_cast(uint32_t, value); }

struct ToBF16 {
  static inline float Round(float value) {
    const uint32_t bits = AsBits(value);
    return AsFloat((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
  }
};

struct ToF16 {
  static inline float Round(float value) {
    constexpr int32_t kSmallestNormal = (127 - 14) << 23;  // 2^-14
    constexpr int32_t kAboveLargest = (127 + 16) << 23;    // 2^16
    const uint32_t bits = AsBits(value);
    const int32_t magnitude = static_cast<int32_t>(bits & 0x7fffffffu);
    const int32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1)) & ~0x1fff;
    const int32_t bounded = normal < kAboveLargest ? normal : 0x7f800000;
    // Below the smallest normal numbers stand 2^-24 apart, as float32 does from 0.5 on: the
    // addition rounds.
    const float sum = AsFloat(static_cast<uint32_t>(magnitude)) + 0.5f;
    const uint32_t subnormal = AsBits(sum - 0.5f);
    const uint32_t rounded =
        magnitude < kSmallestNormal ? subnormal : static_cast<uint32_t>(bounded);
    return AsFloat(rounded | (bits & 0x80000000u));
  }
};

struct ToF32 {
  static inline float Round(float value) { return value; }
};

template <typename To>
void Round(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = To::Round(values[i]);
}

template <typename To>
void Combine(float a, const float* __restrict x, float b, const float* __restrict y, int64_t count,
             float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = To::Round(a * x[i] + b * y[i]);
}

template <typename To>
void Subtract(const float* __restrict x, const float* __restrict y, int64_t count,
              float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = To::Round(x[i] - y[i]);
}

template <typename To>
void Add(const float* __restrict x, const float* __restrict y, int64_t count,
         float* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = To::Round(x[i] + y[i]);
}

template <typename To>
void Scale(float factor, float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = To::Round(factor * values[i]);
}

template <typename To>
void Divide(const float* __restrict divisors, float* __restrict values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = To::Round(values[i] / divisors[i]);
}

template <typename To>
void DivideBy(float divisor, float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = To::Round(values[i] / divisor);
}

// Sums in double are kept in lanes: element i goes to lane i mod kLanes, and the lanes are added in
// a balanced tree at the end.
constexpr int kVector = 8;
constexpr int kVectors = 2;
constexpr int kLanes = kVector * kVectors;
typedef float Floats __attribute__((vector_size(kVector * sizeof(float))));
typedef double Doubles __attribute__((vector_size(kVector * sizeof(double))));

inline void Load(const float* in, Doubles* out) {
  Floats floats;
  __builtin_memcpy(&floats, in, sizeof(floats));
  *out = __builtin_convertvector(floats, Doubles);
}

inline double SumLanes(const Doubles* sums) {
  double lanes[kLanes];
  __builtin_memcpy(lanes, sums, sizeof(lanes));
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// The last elements, and zeros after them.
inline void LoadTail(const float* in, int64_t count, float* out) {
  for (int i = 0; i < kLanes; ++i) out[i] = i < count ? in[i] : 0.0f;
}

// A product of two float32 is exact in double, so it does not matter whether it is fused.
inline void AddProducts(const float* x, const float* y, Doubles* xx, Doubles* yy, Doubles* xy) {
  for (int v = 0; v < kVectors; ++v) {
    Doubles a;
    Doubles b;
    Load(x + v * kVector, &a);
    Load(y + v * kVector, &b);
    xx[v] += a * a;
    yy[v] += b * b;
    xy[v] += a * b;
  }
}

void Products(const float* x, const float* y, int64_t count, double* sums) {
  Doubles xx[kVectors] = {};
  Doubles yy[kVectors] = {};
  Doubles xy[kVectors] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) AddProducts(x + i, y + i, xx, yy, xy);
  float last_x[kLanes];
  float last_y[kLanes];
  LoadTail(x + i, count - i, last_x);
  LoadTail(y + i, count - i, last_y);
  AddProducts(last_x, last_y, xx, yy, xy);
  sums[0] += SumLanes(xx);
  sums[1] += SumLanes(yy);
  sums[2] += SumLanes(xy);
}

inline void AddMagnitudes(const float* x, Doubles* sums) {
  for (int v = 0; v < kVectors; ++v) {
    Doubles a;
    Load(x + v * kVector, &a);
    sums[v] += a < 0.0 ? -a : a;
  }
}

double Magnitudes(const float* x, int64_t count) {
  Doubles sums[kVectors] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) AddMagnitudes(x + i, sums);
  float last[kLanes];
  LoadTail(x + i, count - i, last);
  AddMagnitudes(last, sums);
  return SumLanes(sums);
}

void Accumulate(const float* __restrict x, int64_t count, float* __restrict sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += x[i];
}

void AccumulateProduct(float factor, const float* __restrict x, int64_t count,
                       float* __restrict sums) {
  const double wide = static_cast<double>(factor);
  for (int64_t i = 0; i < count; ++i) {
    sums[i] = static_cast<float>(static_cast<double>(sums[i]) + wide * static_cast<double>(x[i]));
  }
}

void AccumulateAgreeing(const float* __restrict x, const float* __restrict majority, float weight,
                        int64_t count, float* __restrict sums, float* __restrict weights) {
  for (int64_t i = 0; i < count; ++i) {
    // Bitwise, since the shortcuts of && and || would be branches.
    const bool positive = majority[i] >= 0.0f;
    const bool agrees = (positive & (x[i] > 0.0f)) | (!positive & (x[i] < 0.0f));
    sums[i] += agrees ? x[i] : 0.0f;
    weights[i] += agrees ? weight : 0.0f;
  }
}

void ReplaceZeros(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = values[i] == 0.0f ? 1.0f : values[i];
}

void KeepLargest(const LargestElements& kept, int64_t first, int64_t count, float* values) {
  const int32_t threshold = static_cast<int32_t>(kept.threshold);
  const int64_t left = kept.equal_before - first;
  const int64_t bounded = left < 0 ? 0 : left < count ? left : count;
  for (int64_t i = 0; i < bounded; ++i) {
    const int32_t magnitude = static_cast<int32_t>(AsBits(values[i]) & 0x7fffffffu);
    values[i] = magnitude >= threshold ? values[i] : 0.0f;
  }
  for (int64_t i = bounded; i < count; ++i) {
    const int32_t magnitude = static_cast<int32_t>(AsBits(values[i]) & 0x7fffffffu);
    values[i] = magnitude > threshold ? values[i] : 0.0f;
  }
}

// A mixing function whose every output bit depends on every input bit.
inline uint32_t Mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x21f0aaadu;
  x ^= x >> 15;
  x *= 0x735a2d97u;
  x ^= x >> 15;
  return x;
}

// Draws of up to 2^32 elements with the same upper half of their index.
void KeepRandomOfHalf(const RandomElements& kept, uint64_t first, int64_t count, float* values) {
  const uint32_t upper = Mix(static_cast<uint32_t>(first >> 32) + 0x9e3779b9u);
  const uint32_t low = static_cast<uint32_t>(kept.key);
  const uint32_t high = static_cast<uint32_t>(kept.key >> 32) ^ upper;
  const uint32_t begin = static_cast<uint32_t>(first);
  const uint32_t n = static_cast<uint32_t>(count);
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t draw = Mix(Mix(begin + i + low) ^ high);
    values[i] = draw < kept.limit ? values[i] : 0.0f;
  }
}

void KeepRandom(const RandomElements& kept, int64_t first, int64_t count, float* values) {
  constexpr int64_t kHalf = int64_t{1} << 32;
  for (int64_t done = 0; done < count;) {
    const int64_t left = kHalf - (first + done) % kHalf;
    const int64_t step = left < count - done ? left : count - done;  // fits 32 bits: see the header
    KeepRandomOfHalf(kept, static_cast<uint64_t>(first + done), step, values + done);
    done += step;
  }
}

template <typename To>
constexpr RoundedMergeKernels Rounded() {
  return {Round<To>, Combine<To>, Subtract<To>, Add<To>, Scale<To>, Divide<To>, DivideBy<To>};
}

}  // namespace

extern const MergeKernels kMergeKernels;
const MergeKernels kMergeKernels = {MARCORO_ISA_NAME, Rounded<ToBF16>(), Rounded<ToF16>(),
                                    Rounded<ToF32>(), Products,          Magnitudes,
                                    Accumulate,       AccumulateProduct, AccumulateAgreeing,
                                    ReplaceZeros,     KeepLargest,       KeepRandom};

}  // namespace MARCORO_ISA
}  // namespace marcoro
