#include <algorithm>

#include "kernels/check.h"
#include "worker/weights/merge/merge_method.h"

// Every method: the function of this name lies in the method's own file.
#define MARCORO_MERGE_METHODS(METHOD) \
  METHOD(DareLinearMethod)            \
  METHOD(DareTiesMethod)              \
  METHOD(LinearMethod)                \
  METHOD(PassthroughMethod)           \
  METHOD(SlerpMethod)                 \
  METHOD(TaskArithmeticMethod)        \
  METHOD(TiesMethod)

namespace marcoro {

#define MARCORO_DECLARE(method) const MergeMethod& method();
MARCORO_MERGE_METHODS(MARCORO_DECLARE)
#undef MARCORO_DECLARE

namespace {

std::span<const MergeMethod* const> Methods() {
#define MARCORO_ADDRESS(method) &method(),
  static const MergeMethod* const methods[] = {MARCORO_MERGE_METHODS(MARCORO_ADDRESS)};
#undef MARCORO_ADDRESS
  return methods;
}

}  // namespace

const MergeMethod* FindMergeMethod(std::string_view name) {
  const auto methods = Methods();
  const auto found =
      std::find_if(methods.begin(), methods.end(),
                   [name](const MergeMethod* method) { return method->name() == name; });
  return found == methods.end() ? nullptr : *found;
}

std::vector<std::string_view> MergeMethodNames() {
  std::vector<std::string_view> names;
  for (const MergeMethod* method : Methods()) names.push_back(method->name());
  return names;
}

double MergeParameter(const MergeMethod& method, const MergeParameters& given,
                      std::string_view name) {
  if (const auto found = given.find(std::string(name)); found != given.end()) return found->second;
  const auto parameters = method.parameters();
  const auto known = std::find_if(
      parameters.begin(), parameters.end(),
      [name](const MergeMethodParameter& parameter) { return parameter.name == name; });
  MARCORO_CHECK(known != parameters.end() && known->fallback.has_value());
  return *known->fallback;
}

}  // namespace marcoro
