#include "deploy/cli/byte_size.h"

#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace marcoro {
namespace {

constexpr std::pair<absl::string_view, double> kUnits[] = {
    {"B", 1},        {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},    {"TB", 1e12},
    {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
constexpr double kLargest = 0x1p60;

}  // namespace

absl::StatusOr<uint64_t> ParseByteSize(const std::string& text) {
  const size_t unit_begin = text.find_first_not_of("0123456789.");
  const absl::string_view view = text;
  if (unit_begin != std::string::npos) {
    for (const auto& [unit, factor] : kUnits) {
      double number = 0;
      if (view.substr(unit_begin) != unit || !absl::SimpleAtod(view.substr(0, unit_begin), &number))
        continue;
      const double bytes = std::floor(number * factor);
      if (bytes >= 1 && bytes <= kLargest) return static_cast<uint64_t>(bytes);
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", text, "' is no size; sizes look like 500MB, 5GB or 1.5GiB"));
}

}  // namespace marcoro
