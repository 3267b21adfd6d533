#include "deploy/cli/byte_size.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace marcoro {
namespace {

TEST(ByteSizeTest, UnitsArePowersOf1000Or1024) {
  EXPECT_EQ(ParseByteSize("7B").value(), 7u);
  EXPECT_EQ(ParseByteSize("200KB").value(), 200'000u);
  EXPECT_EQ(ParseByteSize("500MB").value(), 500'000'000u);
  EXPECT_EQ(ParseByteSize("5GB").value(), 5'000'000'000u);
  EXPECT_EQ(ParseByteSize("1TB").value(), 1'000'000'000'000u);
  EXPECT_EQ(ParseByteSize("1KiB").value(), 1024u);
  EXPECT_EQ(ParseByteSize("3MiB").value(), 3u << 20);
  EXPECT_EQ(ParseByteSize("1.5GiB").value(), 3u << 29);
}

TEST(ByteSizeTest, AnythingElseIsQuotedAndRefused) {
  for (const char* text : {"", "5", "GB", "5 GB", "5gb", "-5GB", "5GBB", "1..5GB", "0GB", "0.1B",
                           "9999999999TB", "1e3B", "infGB"}) {
    const absl::Status status = ParseByteSize(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()),
                ::testing::StartsWith("'" + std::string(text) + "'"));
  }
}

}  // namespace
}  // namespace marcoro
