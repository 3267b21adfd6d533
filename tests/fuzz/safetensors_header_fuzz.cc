// Input: how many bytes of data follow the header, in decimal, a line end, and the header.
#include <limits>

#include "absl/strings/numbers.h"
#include "tests/fuzz/input.h"
#include "worker/weights/safetensors.h"

namespace marcoro {
namespace {

// Elements times their size, in arithmetic that cannot overflow.
void CheckEntry(const SafetensorsEntry& entry) {
  unsigned __int128 bits = SafetensorsDTypeBits(entry.info.dtype);
  MARCORO_CHECK(bits > 0);
  for (const int64_t extent : entry.info.shape) {
    MARCORO_CHECK(extent >= 0);
    bits *= static_cast<uint64_t>(extent);
    if (bits == 0) break;
    MARCORO_CHECK(bits <= std::numeric_limits<uint64_t>::max());
  }
  MARCORO_CHECK(bits == static_cast<unsigned __int128>(entry.info.bytes) * 8);
}

}  // namespace

void FuzzOne(absl::string_view input) {
  const size_t line = input.find('\n');
  uint64_t bytes = 0;
  if (line == absl::string_view::npos || !absl::SimpleAtoi(input.substr(0, line), &bytes)) return;
  const absl::string_view header = input.substr(line + 1);
  const uint64_t begin = 8 + header.size();
  const auto entries = ParseSafetensorsHeader({header.data(), header.size()}, begin, bytes, "f");
  if (!entries.ok()) return;
  uint64_t end = begin;
  for (const SafetensorsEntry& entry : *entries) {
    MARCORO_CHECK(entry.offset == end);
    CheckEntry(entry);
    end += entry.info.bytes;
  }
  MARCORO_CHECK(end == begin + bytes);
}

}  // namespace marcoro
