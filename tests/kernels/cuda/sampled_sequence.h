// A sequence of the worker's sampler, and the same one as the device's sampling sees it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/sampling.h"
#include "tests/kernels/cuda/device_array.h"
#include "worker/sampling/sampler.h"

namespace marcoro::cuda {

class TestSequence {
 public:
  TestSequence(const SamplingParams& params, const std::vector<TokenId>& prompt,
               const std::vector<TokenId>& generated, int32_t vocabulary);

  SequenceSampler& host() { return host_; }
  const SamplingParams& params() const { return host_.params(); }
  // Points to memory of this object.
  SampledSequence device() const;

  // What the device remembers.
  std::vector<uint32_t> Counts() const { return counts_.ToHost(); }
  std::vector<int32_t> Tail() const { return tail_.ToHost(); }

 private:
  SequenceSampler host_;
  int32_t generated_;
  int32_t tail_length_;
  bool has_counts_;
  DeviceArray<TokenBias> biases_;
  DeviceArray<uint32_t> allowed_;
  DeviceArray<int32_t> end_tokens_;
  DeviceArray<int32_t> bad_words_;
  DeviceArray<int32_t> bad_word_ends_;
  DeviceArray<uint32_t> counts_;
  DeviceArray<int32_t> tail_;
};

}  // namespace marcoro::cuda
