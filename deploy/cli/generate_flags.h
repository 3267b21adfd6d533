// The fields of a GenerateRequest as flags. What is not given stays unset, for the server to
// choose.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "deploy/flags/flag_table.h"
#include "marcoro/v1/inference.pb.h"

namespace marcoro {

struct SamplingFlags {
  std::optional<int32_t> max_tokens, min_tokens, n, top_k, priority;
  std::optional<uint64_t> seed;
  std::optional<double> temperature, top_p, min_p, typical_p;
  std::optional<double> repetition_penalty, presence_penalty, frequency_penalty;
  std::vector<std::string> logit_bias;                         // "ID:BIAS", several with commas
  std::vector<std::string> allowed_token_ids, stop_token_ids;  // ids, several with commas
  std::vector<std::string> bad_words, stop;
  std::optional<bool> ignore_eos, include_stop, skip_special_tokens, parse_special_tokens, add_bos;
};

void AddSamplingFlags(FlagTable* table, SamplingFlags* flags);

// Sets the request's fields. INVALID_ARGUMENT names the flag that is no list of ids. Ranges are
// the server's to check, which knows the model.
absl::Status SetSampling(const SamplingFlags& flags, v1::GenerateRequest* request);

// "1,5,7" → ids; INVALID_ARGUMENT names the flag.
absl::StatusOr<std::vector<uint32_t>> ParseTokenIds(absl::string_view flag, absl::string_view text);

}  // namespace marcoro
