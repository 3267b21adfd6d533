// Lengths of prompts and outputs, in tokens.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "deploy/cli/random.h"

namespace marcoro {

class LengthDistribution {
 public:
  static constexpr int32_t kMost = 1 << 20;

  // What Parse takes, for flags' help.
  static constexpr absl::string_view kSyntax =
      "N, uniform:MIN:MAX, normal:MEAN:DEVIATION, lognormal:MEDIAN:SIGMA (SIGMA of the logarithm) "
      "or exponential:MEAN";

  // INVALID_ARGUMENT says what is wrong with the text.
  static absl::StatusOr<LengthDistribution> Parse(absl::string_view text);

  // Rounded to a whole number in [1, kMost].
  int32_t Draw(Random* random) const;

  // The largest length that is drawn, where that is less than kMost.
  int32_t maximum() const;

 private:
  enum class Kind { kFixed, kUniform, kNormal, kLogNormal, kExponential };

  LengthDistribution(Kind kind, double first, double second)
      : kind_(kind), first_(first), second_(second) {}
  double DrawReal(Random* random) const;

  Kind kind_;
  double first_;
  double second_;
};

}  // namespace marcoro
