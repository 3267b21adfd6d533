// Measured values and what is told of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "deploy/cli/random.h"

namespace marcoro {

struct Summary {
  uint64_t count = 0;
  // 0 without values. pN is the smallest value that at least N percent of the values do not exceed.
  double mean = 0, p50 = 0, p90 = 0, p95 = 0, p99 = 0, maximum = 0;
};

// Mean and maximum are over all values. Percentiles are too, up to `capacity` values; of more, over
// an even random sample of so many.
class Samples {
 public:
  explicit Samples(size_t capacity = size_t{1} << 22) : capacity_(capacity) {}

  void Add(double value);
  // Adds the values that `other` kept: all of them, up to its capacity.
  void Add(const Samples& other);
  Summary Summarize() const;

 private:
  size_t capacity_;
  uint64_t count_ = 0;
  double sum_ = 0;
  double maximum_ = 0;
  std::vector<double> kept_;
  Random random_{0};
};

}  // namespace marcoro
