// When the requests of an open loop are due.
#pragma once

#include <cstdint>

#include "deploy/cli/random.h"

namespace marcoro {

// A Poisson process: independent gaps, exponentially distributed.
class PoissonArrivals {
 public:
  // `rate` requests per second on average, > 0.
  PoissonArrivals(double rate, uint64_t seed) : rate_(rate), random_(seed, kStream) {}

  // Seconds from the start to the next arrival.
  double Next() { return time_ += random_.Exponential() / rate_; }

 private:
  static constexpr uint64_t kStream = uint64_t{1} << 63;  // no request's

  double rate_;
  double time_ = 0;
  Random random_;
};

}  // namespace marcoro
