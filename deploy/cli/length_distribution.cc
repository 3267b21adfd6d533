#include "deploy/cli/length_distribution.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace marcoro {

absl::StatusOr<LengthDistribution> LengthDistribution::Parse(absl::string_view text) {
  struct Form {
    absl::string_view name;
    Kind kind;
    size_t numbers;
  };
  static constexpr Form kForms[] = {{"fixed", Kind::kFixed, 1},
                                    {"uniform", Kind::kUniform, 2},
                                    {"normal", Kind::kNormal, 2},
                                    {"lognormal", Kind::kLogNormal, 2},
                                    {"exponential", Kind::kExponential, 1}};
  const absl::Status malformed =
      absl::InvalidArgumentError(absl::StrCat("'", text, "' must be ", kSyntax));
  std::vector<std::string> parts = absl::StrSplit(text, ':');
  if (parts.size() == 1) parts.insert(parts.begin(), "fixed");
  const auto* const form = std::find_if(std::begin(kForms), std::end(kForms),
                                        [&](const Form& f) { return f.name == parts[0]; });
  if (form == std::end(kForms) || parts.size() != form->numbers + 1) return malformed;
  double numbers[2] = {0, 0};
  for (size_t i = 0; i < form->numbers; ++i) {
    if (!absl::SimpleAtod(parts[i + 1], &numbers[i]) || !(numbers[i] >= 0) || numbers[i] > kMost) {
      return malformed;
    }
  }
  if (numbers[0] < 1) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "': lengths are at least 1"));
  }
  if (form->kind == Kind::kUniform && numbers[1] < numbers[0]) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "': MAX is below MIN"));
  }
  return LengthDistribution(form->kind, numbers[0], numbers[1]);
}

int32_t LengthDistribution::Draw(Random* random) const {
  return static_cast<int32_t>(std::clamp(std::round(DrawReal(random)), 1.0, double{kMost}));
}

int32_t LengthDistribution::maximum() const {
  if (kind_ == Kind::kFixed) return static_cast<int32_t>(std::round(first_));
  return kind_ == Kind::kUniform ? static_cast<int32_t>(std::floor(second_)) : kMost;
}

double LengthDistribution::DrawReal(Random* random) const {
  switch (kind_) {
    case Kind::kFixed:
      return first_;
    case Kind::kUniform: {
      const double low = std::ceil(first_);
      const double values = std::max(1.0, std::floor(second_) - low + 1);
      return low + std::floor(random->Uniform() * values);
    }
    case Kind::kNormal:
      return first_ + second_ * random->Normal();
    case Kind::kLogNormal:
      return first_ * std::exp(second_ * random->Normal());
    case Kind::kExponential:
      return first_ * random->Exponential();
  }
  return first_;
}

}  // namespace marcoro
