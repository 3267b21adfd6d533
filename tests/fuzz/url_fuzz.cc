// Input: a hub's URL, a zero byte and the Location that it answers with.
#include "absl/strings/match.h"
#include "deploy/hub/url.h"
#include "tests/fuzz/input.h"

namespace marcoro {

void FuzzOne(absl::string_view input) {
  const std::vector<std::string> parts = Parts(input, 2);
  HostForMessages(parts[0]);
  MARCORO_CHECK(!absl::StrContains(PercentEncoded(parts[0], false), '/'));
  const auto origin = OriginOf(parts[0]);
  const auto redirect = ResolveRedirect(parts[0], parts[1]);
  if (!origin.ok() || !redirect.ok()) return;
  const auto target = OriginOf(*redirect);
  MARCORO_CHECK(target.ok());
  MARCORO_CHECK(!absl::StartsWith(*origin, "https:") || absl::StartsWith(*target, "https:"));
}

}  // namespace marcoro
