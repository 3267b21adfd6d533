// A method's parameters for one tensor: which setting applies (source before slice before module
// before the whole recipe), which of its cases matches the tensor, where in a gradient its layer
// lies.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/weights/merge/merge_method.h"
#include "worker/weights/merge/merge_plan.h"
#include "worker/weights/merge/recipe.h"

namespace marcoro {

// Settings from the closest to the widest.
using ParameterScopes = std::vector<const ParameterSettings*>;

// Value of the first case whose filter is in the tensor's name, of the first scope that has one.
// `place` is where the layer lies in its slice, from 0 (first) to 1 (last): a gradient of n values
// has them at equal distances, and is linear between them. Nothing if no scope has one.
std::optional<double> EvaluateParameter(const ParameterScopes& scopes, std::string_view parameter,
                                        std::string_view tensor, double place);

// All the method's parameters of a tensor, or (per_input) of one of its inputs, defaults included;
// `tensor` is the name that filters look at. INVALID_ARGUMENT naming parameter and tensor if a
// parameter without default has no value.
absl::StatusOr<MergeParameters> EvaluateParameters(const MergeMethod& method, bool per_input,
                                                   const ParameterScopes& scopes,
                                                   std::string_view tensor, double place);

// INVALID_ARGUMENT, naming the place, for a parameter that no method has; a warning for one that
// only other methods have: mergekit lets it pass, and so recipes have such.
absl::Status CheckParameterNames(const Recipe& recipe, const MergeMethod& method,
                                 std::vector<std::string>& warnings);

}  // namespace marcoro
