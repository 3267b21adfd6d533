// What this machine can do at best: the denominators of every speed that the project reports.
// Measured in the same run as the speeds themselves, because machines differ and clocks and
// neighbours change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace marcoro {

struct MachineLimits {
  double read_bytes_per_second = 0;  // a plain read loop over memory far larger than any cache
  double bf16_flops = 0;  // independent BF16 dot products, per second; F32 FMAs without AVX512-BF16

  // Seconds that work of so many bytes and operations takes at least.
  double Seconds(double bytes, double flops) const;
};

// The larger of each limit.
MachineLimits Best(const MachineLimits& a, const MachineLimits& b);

// Measures repeatedly without setting up its memory each time.
class LimitMeter {
 public:
  // Measures with `threads` threads, the caller's included. RESOURCE_EXHAUSTED without memory for a
  // buffer far larger than the caches (256 MB to 1 GB).
  static absl::StatusOr<LimitMeter> Create(int threads);
  LimitMeter(LimitMeter&&) noexcept;
  LimitMeter& operator=(LimitMeter&&) noexcept;
  ~LimitMeter();

  // The best of `rounds` rounds, each about 20 ms: what to hold the best run of an operation
  // against.
  MachineLimits Measure(int rounds);
  // The middle ones of `rounds` rounds: what to hold the usual run of something against.
  MachineLimits MeasureUsual(int rounds);

 private:
  struct State;
  explicit LimitMeter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace marcoro
