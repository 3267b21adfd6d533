#include "worker/collective/nccl_library.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace marcoro {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(NcclLibrary, AMissingOneIsNamedWithWhatToDo) {
  const auto library = OpenNccl("libnccl-that-is-not-here.so.2");
  EXPECT_EQ(library.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(library.status().message()),
              AllOf(HasSubstr("libnccl-that-is-not-here.so.2"), HasSubstr("LD_LIBRARY_PATH"),
                    HasSubstr("--collective=peer-memory"), Not(HasSubstr("\n"))));
}

TEST(NcclLibrary, OneWithoutAFunctionIsNamedWithIt) {
  const auto library = OpenNccl("libc.so.6");
  EXPECT_EQ(library.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(library.status().message()),
              AllOf(HasSubstr("libc.so.6"), HasSubstr("ncclGetUniqueId")));
}

TEST(NcclLibrary, IsLookedForOnce) {
  const auto first = LoadNccl();
  const auto second = LoadNccl();
  ASSERT_EQ(first.status(), second.status());
  if (!first.ok()) GTEST_SKIP() << first.status();
  EXPECT_EQ(*first, *second);
  EXPECT_STREQ((*first)->GetErrorString(ncclSuccess), "no error");
}

}  // namespace
}  // namespace marcoro
