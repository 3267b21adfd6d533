#include "coordinator/routing/policy.h"

#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace marcoro {
namespace {

struct Registration {
  absl::string_view name;
  std::unique_ptr<Policy> (*make)();
};

constexpr std::array kPolicies = {
    Registration{"least_loaded", MakeLeastLoadedPolicy},
    Registration{"prefix_affinity", MakePrefixAffinityPolicy},
    Registration{"round_robin", MakeRoundRobinPolicy},
};

}  // namespace

absl::StatusOr<std::unique_ptr<Policy>> MakePolicy(absl::string_view name) {
  for (const Registration& registration : kPolicies) {
    if (registration.name == name) return registration.make();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown routing policy '", name, "'; known are: ", absl::StrJoin(PolicyNames(), ", ")));
}

std::vector<absl::string_view> PolicyNames() {
  std::vector<absl::string_view> names;
  for (const Registration& registration : kPolicies) names.push_back(registration.name);
  return names;
}

}  // namespace marcoro
