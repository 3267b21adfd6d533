// Reproducible random numbers: the same for a seed with every compiler and standard library.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace marcoro {

class Random {
 public:
  // Streams of one seed are independent of each other: one for each request, say.
  explicit Random(uint64_t seed, uint64_t stream = 0) : state_(Mix(seed ^ Mix(stream + 1))) {}

  uint64_t Next() { return Mix(state_ += kStep); }

  // In [0, 1).
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }

  // Mean 1.
  double Exponential() { return -std::log1p(-Uniform()); }

  // Mean 0, standard deviation 1 (Box and Muller's method).
  double Normal() {
    const double radius = std::sqrt(2 * Exponential());
    return radius * std::cos(2 * std::numbers::pi * Uniform());
  }

 private:
  static constexpr uint64_t kStep = 0x9e3779b97f4a7c15;

  // The output function of SplitMix64.
  static uint64_t Mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }

  uint64_t state_;
};

}  // namespace marcoro
