#include "worker/weights/merge/merge_parameters.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "worker/weights/merge/known_names.h"

namespace marcoro {
namespace {

// How mergekit holds masks in memory: of no consequence for the numbers.
constexpr std::string_view kIgnoredParameter = "int8_mask";

bool Matches(std::string_view filter, std::string_view tensor) {
  return filter == "*" || tensor.find(filter) != std::string_view::npos;
}

double Interpolate(const ParameterCase& gradient, double place) {
  const size_t last = gradient.values.size() - 1;
  const double scaled = place * static_cast<double>(last);
  const size_t below = static_cast<size_t>(scaled);
  if (gradient.discrete) return gradient.values[below];
  const double fraction = scaled - static_cast<double>(below);
  const size_t above = std::min(last, below + 1);
  return (1 - fraction) * gradient.values[below] + fraction * gradient.values[above];
}

std::set<std::string_view> NamesOf(const MergeMethod& method) {
  std::set<std::string_view> names;
  for (const MergeMethodParameter& parameter : method.parameters()) names.insert(parameter.name);
  return names;
}

std::vector<const ParameterSettings*> AllSettings(const Recipe& recipe) {
  std::vector<const ParameterSettings*> all = {&recipe.parameters, &recipe.module_parameters};
  for (const RecipeSlice& slice : recipe.slices) {
    all.push_back(&slice.parameters);
    for (const RecipeSource& source : slice.sources) all.push_back(&source.parameters);
  }
  return all;
}

}  // namespace

std::optional<double> EvaluateParameter(const ParameterScopes& scopes, std::string_view parameter,
                                        std::string_view tensor, double place) {
  for (const ParameterSettings* settings : scopes) {
    for (const ParameterSetting& setting : *settings) {
      if (setting.name != parameter) continue;
      for (const ParameterCase& candidate : setting.cases) {
        if (Matches(candidate.filter, tensor)) return Interpolate(candidate, place);
      }
    }
  }
  return std::nullopt;
}

absl::StatusOr<MergeParameters> EvaluateParameters(const MergeMethod& method, bool per_input,
                                                   const ParameterScopes& scopes,
                                                   std::string_view tensor, double place) {
  MergeParameters values;
  for (const MergeMethodParameter& parameter : method.parameters()) {
    if (parameter.per_input != per_input) continue;
    std::optional<double> value = EvaluateParameter(scopes, parameter.name, tensor, place);
    if (!value.has_value()) value = parameter.fallback;
    if (!value.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat(
          std::string(method.name()), " needs the parameter ", std::string(parameter.name),
          ", which has no value for ", std::string(tensor)));
    }
    values.emplace(parameter.name, *value);
  }
  return values;
}

absl::Status CheckParameterNames(const Recipe& recipe, const MergeMethod& method,
                                 std::vector<std::string>& warnings) {
  const std::set<std::string_view> own = NamesOf(method);
  std::set<std::string_view> all = {kIgnoredParameter};
  for (const std::string_view name : MergeMethodNames()) {
    all.merge(NamesOf(*FindMergeMethod(name)));
  }
  std::set<std::string_view> without_effect;
  for (const ParameterSettings* settings : AllSettings(recipe)) {
    for (const ParameterSetting& setting : *settings) {
      if (!all.contains(setting.name)) {
        return ErrorAt(recipe.file, setting.position,
                       absl::StrCat("unknown parameter ", Quoted(setting.name), " ",
                                    KnownNames(setting.name, {own.begin(), own.end()})));
      }
      if (own.contains(setting.name) || setting.name == kIgnoredParameter) continue;
      if (!without_effect.insert(setting.name).second) continue;
      warnings.push_back(absl::StrCat(recipe.file, ":", setting.position.line, ": parameter ",
                                      setting.name, " has no effect in ",
                                      std::string(method.name())));
    }
  }
  return absl::OkStatus();
}

}  // namespace marcoro
