// The requests of a load test. Request i is a function of the options and i alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "deploy/cli/length_distribution.h"
#include "marcoro/v1/inference.pb.h"

namespace marcoro {

struct WorkloadOptions {
  LengthDistribution prompt_tokens;
  LengthDistribution output_tokens;
  // If not empty: texts, taken in turn, instead of random ids.
  std::vector<std::string> prompts = {};
  uint32_t vocabulary_size = 0;  // more than kFirstId
  uint32_t context_length = 0;   // at least 2; lengths are cut to it
  std::optional<double> temperature = std::nullopt;
  uint64_t seed = 0;
};

class Workload {
 public:
  // Ids below are special tokens in every vocabulary of this family.
  static constexpr uint32_t kFirstId = 3;

  explicit Workload(WorkloadOptions options) : options_(std::move(options)) {}

  // Generates exactly its max_tokens (where the context allows): the end of sequence is ignored.
  v1::GenerateRequest Request(uint64_t index) const;

 private:
  WorkloadOptions options_;
};

}  // namespace marcoro
