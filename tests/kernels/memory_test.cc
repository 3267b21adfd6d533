#include "kernels/cpu/memory.h"

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace marcoro::cpu {
namespace {

size_t ResidentBytes() {
  size_t total_pages = 0;
  size_t resident_pages = 0;
  std::ifstream("/proc/self/statm") >> total_pages >> resident_pages;
  return resident_pages * sysconf(_SC_PAGESIZE);
}

TEST(Memory, IsZeroedAlignedAndWritable) {
  for (size_t bytes : {size_t{1}, size_t{4097}, (size_t{5} << 20) + 3}) {
    absl::StatusOr<Buffer> buffer = AllocateMemory(bytes);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_EQ(buffer->bytes(), bytes);
    char* data = static_cast<char*>(buffer->data());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
    size_t nonzero = 0;
    for (size_t i = 0; i < bytes; ++i) nonzero += data[i] != 0;
    EXPECT_EQ(nonzero, 0u);
    std::memset(data, 1, bytes);
  }
}

TEST(Memory, LargeBuffersAreAlignedToHugePages) {
  absl::StatusOr<Buffer> buffer = AllocateMemory(size_t{4} << 20);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % (2 << 20), 0u);
}

TEST(Memory, ZeroBytesHaveNoData) {
  absl::StatusOr<Buffer> buffer = AllocateMemory(0);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  EXPECT_EQ(buffer->data(), nullptr);
}

TEST(Memory, MoreThanTheMachineHasIsRefusedBeforeItIsTouched) {
  const size_t available = AvailableMemory();
  ASSERT_LT(available, std::numeric_limits<size_t>::max() / 4);
  absl::StatusOr<Buffer> buffer = AllocateMemory(2 * available);
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(buffer.status().message()), testing::HasSubstr("available"));
}

TEST(Memory, AbsurdSizesDoNotOverflow) {
  EXPECT_EQ(AllocateMemory(std::numeric_limits<size_t>::max()).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(Memory, IsGivenBack) {
  constexpr size_t kBytes = size_t{32} << 20;
  const size_t before = ResidentBytes();
  for (int i = 0; i < 32; ++i) {
    absl::StatusOr<Buffer> buffer = AllocateMemory(kBytes);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_GE(ResidentBytes(), before + kBytes / 2) << "not present after allocation";
    Buffer moved = std::move(*buffer);
    EXPECT_NE(moved.data(), nullptr);
  }
  EXPECT_LT(ResidentBytes(), before + 2 * kBytes);
}

TEST(Memory, ParsesMemAvailable) {
  EXPECT_EQ(ParseMemAvailable("MemTotal:       24684520 kB\nMemFree:  1 kB\n"
                              "MemAvailable:   23981272 kB\nBuffers: 7 kB\n"),
            size_t{23981272} * 1024);
  EXPECT_EQ(ParseMemAvailable("MemTotal: 1 kB\n"), std::numeric_limits<size_t>::max());
  EXPECT_EQ(ParseMemAvailable(""), std::numeric_limits<size_t>::max());
}

}  // namespace
}  // namespace marcoro::cpu
