#include "coordinator/api/sampling_fields.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace marcoro {
namespace {

constexpr int kMaxLogitBias = 1024;
constexpr int kMaxAllowedTokenIds = 4096;

struct Range {
  double low;
  double high;
  bool open;  // low itself is outside

  // False for NaN.
  bool Holds(double value) const { return value <= high && (open ? value > low : value >= low); }
  std::string Text() const { return absl::StrCat(open ? "(" : "[", low, ", ", high, "]"); }
};

constexpr Range kTemperature = {0, 100, false};
constexpr Range kProbability = {0, 1, true};
constexpr Range kMinP = {0, 1, false};
constexpr Range kRepetitionPenalty = {0, 100, true};
constexpr Range kPenalty = {-100, 100, false};

void CheckRange(absl::string_view field, double value, const Range& range,
                FieldViolations* violations) {
  if (range.Holds(value)) return;
  violations->Add(field, absl::StrCat("must be in ", range.Text(), ", is ", value));
}

void ReadLogitBias(const v1::GenerateRequest& request, uint32_t vocabulary_size,
                   worker::v1::Sampling* sampling, FieldViolations* violations) {
  if (request.logit_bias_size() > kMaxLogitBias) {
    violations->Add("logit_bias",
                    absl::StrCat("has ", request.logit_bias_size(), " entries, at most ",
                                 kMaxLogitBias, " are allowed"));
    return;
  }
  for (const auto& [id, bias] : request.logit_bias()) {
    const std::string field = absl::StrCat("logit_bias[", id, "]");
    if (id >= vocabulary_size) {
      violations->Add(field, absl::StrCat("token ids must be below ", vocabulary_size));
    }
    CheckRange(field, bias, kPenalty, violations);
    (*sampling->mutable_logit_bias())[id] = bias;
  }
}

}  // namespace

void CheckTokenIds(absl::string_view field, const google::protobuf::RepeatedField<uint32_t>& ids,
                   int max_count, uint32_t vocabulary_size, FieldViolations* violations) {
  if (ids.size() > max_count) {
    violations->Add(field,
                    absl::StrCat("has ", ids.size(), " ids, at most ", max_count, " are allowed"));
    return;
  }
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < vocabulary_size) continue;
    violations->Add(absl::StrCat(field, "[", i, "]"),
                    absl::StrCat("token ids must be below ", vocabulary_size, ", is ", ids[i]));
  }
}

void ReadSamplingFields(const v1::GenerateRequest& request, const GenerationDefaults& defaults,
                        uint32_t vocabulary_size, worker::v1::Sampling* sampling,
                        FieldViolations* violations) {
  const auto choose = [violations](absl::string_view field, bool given, float value,
                                   std::optional<float> checkpoint, float fallback,
                                   const Range& range) {
    if (!given) return checkpoint.value_or(fallback);
    CheckRange(field, value, range, violations);
    return value;
  };
  const v1::GenerateRequest& r = request;
  sampling->set_temperature(choose("temperature", r.has_temperature(), r.temperature(),
                                   defaults.temperature, 1, kTemperature));
  sampling->set_top_p(choose("top_p", r.has_top_p(), r.top_p(), defaults.top_p, 1, kProbability));
  sampling->set_min_p(choose("min_p", r.has_min_p(), r.min_p(), defaults.min_p, 0, kMinP));
  sampling->set_typical_p(
      choose("typical_p", r.has_typical_p(), r.typical_p(), defaults.typical_p, 1, kProbability));
  sampling->set_repetition_penalty(choose("repetition_penalty", r.has_repetition_penalty(),
                                          r.repetition_penalty(), defaults.repetition_penalty, 1,
                                          kRepetitionPenalty));
  sampling->set_presence_penalty(choose("presence_penalty", r.has_presence_penalty(),
                                        r.presence_penalty(), std::nullopt, 0, kPenalty));
  sampling->set_frequency_penalty(choose("frequency_penalty", r.has_frequency_penalty(),
                                         r.frequency_penalty(), std::nullopt, 0, kPenalty));
  // More than the vocabulary keeps everything, as the vocabulary does.
  sampling->set_top_k(
      std::min(r.has_top_k() ? r.top_k() : defaults.top_k.value_or(0), vocabulary_size));
  ReadLogitBias(request, vocabulary_size, sampling, violations);
  CheckTokenIds("allowed_token_ids", r.allowed_token_ids(), kMaxAllowedTokenIds, vocabulary_size,
                violations);
  *sampling->mutable_allowed_token_ids() = r.allowed_token_ids();
}

}  // namespace marcoro
