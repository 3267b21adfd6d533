#include "worker/service/convert.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace marcoro {
namespace {

using worker::v1::SequenceEnd;
using worker::v1::SequenceError;

constexpr int kMaxLogprobs = 20;

absl::Status OutOfRange(absl::string_view field, double value) {
  return absl::InvalidArgumentError(absl::StrCat(field, " is out of range: ", value));
}

template <typename Ids>
absl::Status CopyIds(absl::string_view field, const Ids& ids, int32_t vocabulary_size,
                     std::vector<TokenId>* out) {
  out->reserve(ids.size());
  for (const uint32_t id : ids) {
    if (id >= static_cast<uint32_t>(vocabulary_size)) {
      return absl::InvalidArgumentError(absl::StrCat(
          field, " holds ", id, ", but the vocabulary has ", vocabulary_size, " tokens"));
    }
    out->push_back(static_cast<TokenId>(id));
  }
  return absl::OkStatus();
}

// The negated comparisons refuse NaN as well.
absl::Status CheckRanges(const worker::v1::Sampling& sampling) {
  if (!(sampling.temperature() >= 0 && std::isfinite(sampling.temperature()))) {
    return OutOfRange("temperature", sampling.temperature());
  }
  if (!(sampling.top_p() > 0 && sampling.top_p() <= 1))
    return OutOfRange("top_p", sampling.top_p());
  if (!(sampling.min_p() >= 0 && sampling.min_p() <= 1))
    return OutOfRange("min_p", sampling.min_p());
  if (!(sampling.typical_p() > 0 && sampling.typical_p() <= 1))
    return OutOfRange("typical_p", sampling.typical_p());
  if (!(sampling.repetition_penalty() > 0 && std::isfinite(sampling.repetition_penalty()))) {
    return OutOfRange("repetition_penalty", sampling.repetition_penalty());
  }
  if (!std::isfinite(sampling.presence_penalty()))
    return OutOfRange("presence_penalty", sampling.presence_penalty());
  if (!std::isfinite(sampling.frequency_penalty()))
    return OutOfRange("frequency_penalty", sampling.frequency_penalty());
  if (sampling.top_k() > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) {
    return OutOfRange("top_k", sampling.top_k());
  }
  for (const auto& [id, bias] : sampling.logit_bias()) {
    if (!std::isfinite(bias)) return OutOfRange(absl::StrCat("logit_bias[", id, "]"), bias);
  }
  return absl::OkStatus();
}

absl::Status CopySampling(const worker::v1::Sampling& sampling, int32_t vocabulary_size,
                          SamplingParams* out) {
  if (absl::Status status = CheckRanges(sampling); !status.ok()) return status;
  out->seed = sampling.seed();
  out->temperature = sampling.temperature();
  out->top_k = static_cast<int32_t>(sampling.top_k());
  out->top_p = sampling.top_p();
  out->min_p = sampling.min_p();
  out->typical_p = sampling.typical_p();
  out->repetition_penalty = sampling.repetition_penalty();
  out->presence_penalty = sampling.presence_penalty();
  out->frequency_penalty = sampling.frequency_penalty();
  for (const auto& [id, bias] : sampling.logit_bias()) {
    if (id >= static_cast<uint32_t>(vocabulary_size)) return OutOfRange("logit_bias", id);
    out->logit_bias.emplace_back(static_cast<TokenId>(id), bias);
  }
  // A protobuf map has no order; arithmetic must have one.
  std::sort(out->logit_bias.begin(), out->logit_bias.end());
  absl::Status status = CopyIds("allowed_token_ids", sampling.allowed_token_ids(), vocabulary_size,
                                &out->allowed_token_ids);
  if (!status.ok()) return status;
  for (const auto& word : sampling.bad_words()) {
    status = CopyIds("bad_words", word.ids(), vocabulary_size, &out->bad_words.emplace_back());
    if (!status.ok()) return status;
    if (out->bad_words.back().empty())
      return absl::InvalidArgumentError("bad_words holds an empty sequence");
  }
  return absl::OkStatus();
}

SequenceEnd ToProto(EndReason reason) {
  switch (reason) {
    case EndReason::kRunning:
      return worker::v1::SEQUENCE_END_UNSPECIFIED;
    case EndReason::kStopToken:
      return worker::v1::SEQUENCE_END_STOP_TOKEN;
    case EndReason::kLength:
      return worker::v1::SEQUENCE_END_LENGTH;
    case EndReason::kError:
      return worker::v1::SEQUENCE_END_ERROR;
  }
  return worker::v1::SEQUENCE_END_UNSPECIFIED;
}

SequenceError ToProto(EndError error) {
  switch (error) {
    case EndError::kNone:
      return worker::v1::SEQUENCE_ERROR_UNSPECIFIED;
    case EndError::kQueueFull:
      return worker::v1::SEQUENCE_ERROR_QUEUE_FULL;
    case EndError::kDeadline:
      return worker::v1::SEQUENCE_ERROR_DEADLINE;
    case EndError::kDraining:
      return worker::v1::SEQUENCE_ERROR_DRAINING;
    case EndError::kInvalid:
      return worker::v1::SEQUENCE_ERROR_INVALID;
    case EndError::kNotANumber:
      return worker::v1::SEQUENCE_ERROR_NOT_A_NUMBER;
    case EndError::kTooLong:
      return worker::v1::SEQUENCE_ERROR_TOO_LONG;
  }
  return worker::v1::SEQUENCE_ERROR_UNSPECIFIED;
}

void ToProto(const OutputLogprob& logprob, worker::v1::TokenLogprobs* out) {
  if (logprob.logprob.has_value()) out->set_logprob(*logprob.logprob);
  for (const auto& [id, value] : logprob.top) {
    auto* entry = out->add_top();
    entry->set_token_id(static_cast<uint32_t>(id));
    entry->set_logprob(value);
  }
}

}  // namespace

absl::StatusOr<EngineRequest> ToEngineRequest(const worker::v1::Submit& submit,
                                              int32_t vocabulary_size) {
  EngineRequest request;
  request.client_id = submit.sequence_id();
  if (submit.prompt_ids().empty()) return absl::InvalidArgumentError("prompt_ids is empty");
  absl::Status status =
      CopyIds("prompt_ids", submit.prompt_ids(), vocabulary_size, &request.prompt);
  if (!status.ok()) return status;
  status = CopyIds("generated_ids", submit.generated_ids(), vocabulary_size, &request.generated);
  if (!status.ok()) return status;
  // Ids that end the sequence may lie outside the vocabulary: they just never come.
  for (const uint32_t id : submit.stop_token_ids())
    request.stop_token_ids.push_back(static_cast<TokenId>(id));
  status = CopySampling(submit.sampling(), vocabulary_size, &request.sampling);
  if (!status.ok()) return status;
  constexpr uint32_t kMaxTokens = std::numeric_limits<int32_t>::max();
  if (submit.max_tokens() > kMaxTokens) return OutOfRange("max_tokens", submit.max_tokens());
  if (submit.min_tokens() > kMaxTokens) return OutOfRange("min_tokens", submit.min_tokens());
  if (submit.logprobs() > kMaxLogprobs) return OutOfRange("logprobs", submit.logprobs());
  if (submit.prompt_logprobs() > kMaxLogprobs)
    return OutOfRange("prompt_logprobs", submit.prompt_logprobs());
  request.max_tokens = static_cast<int32_t>(submit.max_tokens());
  request.sampling.min_tokens = static_cast<int32_t>(submit.min_tokens());
  request.sampling.end_token_ids = request.stop_token_ids;
  request.sampling.logprobs = submit.has_logprobs() ? static_cast<int32_t>(submit.logprobs()) : -1;
  request.prompt_logprobs =
      submit.has_prompt_logprobs() ? static_cast<int32_t>(submit.prompt_logprobs()) : -1;
  request.priority = submit.priority();
  request.cache_salt = submit.cache_salt();
  if (submit.queue_timeout_microseconds() > 0) {
    request.queue_timeout =
        absl::Microseconds(static_cast<double>(submit.queue_timeout_microseconds()));
  }
  return request;
}

void ToProto(const SequenceOutput& output, worker::v1::SequenceUpdate* update) {
  update->set_sequence_id(output.client_id);
  for (const TokenId token : output.tokens) update->add_token_ids(static_cast<uint32_t>(token));
  for (const auto& logprob : output.logprobs) ToProto(logprob, update->add_logprobs());
  for (const auto& logprob : output.prompt_logprobs)
    ToProto(logprob, update->add_prompt_logprobs());
  update->set_end(ToProto(output.end));
  update->set_error(ToProto(output.error));
  if (!output.detail.empty()) update->set_detail(output.detail);
  if (output.queue_time.has_value()) {
    update->set_queue_microseconds(
        static_cast<uint64_t>(absl::ToInt64Microseconds(*output.queue_time)));
  }
  if (output.cached_tokens.has_value())
    update->set_cached_tokens(static_cast<uint32_t>(*output.cached_tokens));
}

}  // namespace marcoro
