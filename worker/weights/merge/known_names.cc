#include "worker/weights/merge/known_names.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace marcoro {
namespace {

constexpr size_t kMaxCompared = 256;  // bytes; longer names are no slips

// Letters to insert, remove or replace (Levenshtein).
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string_view NearestName(std::string_view name, const std::vector<std::string_view>& known) {
  if (name.empty() || name.size() > kMaxCompared) return {};
  size_t best = std::max<size_t>(2, name.size() / 3) + 1;
  std::string_view nearest;
  for (const std::string_view candidate : known) {
    if (candidate.size() > kMaxCompared) continue;
    const size_t distance = EditDistance(name, candidate);
    // A name of which nothing is left is another one.
    if (distance < best && distance < std::min(name.size(), candidate.size())) {
      best = distance;
      nearest = candidate;
    }
  }
  return nearest;
}

std::string KnownNames(std::string_view name, const std::vector<std::string_view>& known) {
  const std::string_view nearest = NearestName(name, known);
  const std::string question =
      nearest.empty() ? "" : absl::StrCat("did you mean ", std::string(nearest), "? ");
  const std::vector<std::string> names(known.begin(), known.end());
  return absl::StrCat("(", question, "known: ", absl::StrJoin(names, ", "), ")");
}

}  // namespace marcoro
