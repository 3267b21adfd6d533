// Seeds of random data: the same in every run, but for MARCORO_TEST_SEED, which makes all of it
// new.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace marcoro {

// The seed of data that a test calls `seed`.
inline uint32_t RandomSeed(uint32_t seed) {
  const char* const of_run = std::getenv("MARCORO_TEST_SEED");
  if (of_run == nullptr) return seed;
  // Odd, so that different seeds stay different.
  return seed + 0x9e3779b1u * static_cast<uint32_t>(std::strtoul(of_run, nullptr, 10));
}

}  // namespace marcoro
