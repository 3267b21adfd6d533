#include "kernels/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace marcoro::cpu {
namespace {

constexpr size_t kUnknown = std::numeric_limits<size_t>::max();
constexpr size_t kPageBytes = 4096;
constexpr size_t kHugePageBytes = 2 << 20;
// Left to the rest of the machine.
constexpr size_t kReserveBytes = 64 << 20;

std::string ReadWholeFile(const char* path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

size_t ReadNumber(const char* path) {
  uint64_t value = 0;
  const std::string text = ReadWholeFile(path);
  return absl::SimpleAtoi(absl::StripAsciiWhitespace(text), &value) ? value : kUnknown;
}

// What the control group of this process leaves; page cache that can be dropped counts as free.
size_t ControlGroupAvailable() {
  const size_t limit = ReadNumber("/sys/fs/cgroup/memory.max");
  const size_t current = ReadNumber("/sys/fs/cgroup/memory.current");
  if (limit == kUnknown || current == kUnknown) return kUnknown;
  size_t droppable = 0;
  for (absl::string_view line : absl::StrSplit(ReadWholeFile("/sys/fs/cgroup/memory.stat"), '\n')) {
    uint64_t value = 0;
    if (absl::ConsumePrefix(&line, "inactive_file ") && absl::SimpleAtoi(line, &value)) {
      droppable = value;
    }
  }
  const size_t used = current - std::min(current, droppable);
  return limit - std::min(limit, used);
}

size_t RoundUp(size_t bytes, size_t granularity) {
  return (bytes + granularity - 1) / granularity * granularity;
}

void Unmap(void* data, size_t bytes) { munmap(data, RoundUp(bytes, kPageBytes)); }

absl::Status Exhausted(size_t bytes, std::string_view reason) {
  return absl::ResourceExhaustedError(absl::StrFormat("cannot allocate %.1f MB of memory: %s",
                                                      static_cast<double>(bytes) / 1e6, reason));
}

// Maps `bytes` (whole pages) aligned to `alignment`; null on failure.
char* MapAligned(size_t bytes, size_t alignment) {
  const size_t mapped_bytes = bytes + alignment;
  void* mapped = mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* begin = static_cast<char*>(mapped);
  const size_t misalignment = reinterpret_cast<uintptr_t>(begin) % alignment;
  const size_t skip = misalignment == 0 ? 0 : alignment - misalignment;
  if (skip > 0) munmap(begin, skip);
  munmap(begin + skip + bytes, mapped_bytes - skip - bytes);
  return begin + skip;
}

// Makes the pages present. False if memory ran out; kernels before 5.14 make them present at first
// use.
bool Populate(char* data, size_t bytes) {
#ifndef MADV_POPULATE_WRITE
  constexpr int MADV_POPULATE_WRITE = 23;
#endif
  return madvise(data, bytes, MADV_POPULATE_WRITE) == 0 || errno == EINVAL;
}

}  // namespace

size_t ParseMemAvailable(std::string_view meminfo) {
  for (absl::string_view line :
       absl::StrSplit(absl::string_view(meminfo.data(), meminfo.size()), '\n')) {
    uint64_t kilobytes = 0;
    if (absl::ConsumePrefix(&line, "MemAvailable:") && absl::ConsumeSuffix(&line, "kB") &&
        absl::SimpleAtoi(absl::StripAsciiWhitespace(line), &kilobytes)) {
      return kilobytes * 1024;
    }
  }
  return kUnknown;
}

size_t AvailableMemory() {
  return std::min(ParseMemAvailable(ReadWholeFile("/proc/meminfo")), ControlGroupAvailable());
}

absl::StatusOr<Buffer> AllocateMemory(size_t bytes) {
  if (bytes == 0) return Buffer();
  const size_t available = AvailableMemory();
  const size_t spare = available - std::min(available, kReserveBytes);
  if (bytes > spare) {
    return Exhausted(bytes,
                     absl::StrFormat("%.1f MB are available", static_cast<double>(spare) / 1e6));
  }
  const size_t mapped_bytes = RoundUp(bytes, kPageBytes);
  const bool huge = mapped_bytes >= kHugePageBytes;
  char* data = MapAligned(mapped_bytes, huge ? kHugePageBytes : kPageBytes);
  if (data == nullptr) return Exhausted(bytes, std::strerror(errno));
  // Only advice: without huge pages everything works, but more slowly.
  if (huge) madvise(data, mapped_bytes, MADV_HUGEPAGE);
  if (!Populate(data, mapped_bytes)) {
    const int error = errno;
    munmap(data, mapped_bytes);
    return Exhausted(bytes, std::strerror(error));
  }
  return Buffer(data, bytes, Unmap);
}

}  // namespace marcoro::cpu
