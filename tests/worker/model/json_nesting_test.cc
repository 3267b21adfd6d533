#include "worker/model/json_nesting.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "worker/model/config.h"

namespace marcoro {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Nested(int depth) {
  const size_t count = static_cast<size_t>(depth);
  return std::string(count, '[') + std::string(count, ']');
}

TEST(JsonNesting, CountsObjectsAndLists) {
  EXPECT_TRUE(CheckJsonNesting(Nested(kMaxJsonNesting), "f").ok());
  EXPECT_THAT(std::string(CheckJsonNesting(Nested(kMaxJsonNesting + 1), "f").message()),
              StartsWith("f: nested more than 100 levels"));
  std::string objects;
  for (int i = 0; i <= kMaxJsonNesting; ++i) objects += "{\"a\":";
  EXPECT_FALSE(CheckJsonNesting(objects, "f").ok());
}

TEST(JsonNesting, WhatLiesBesideEachOtherIsNotDeep) {
  std::string flat = "[";
  for (int i = 0; i < 1000; ++i) flat += "[],{},";
  EXPECT_TRUE(CheckJsonNesting(flat + "[]]", "f").ok());
}

TEST(JsonNesting, StringsDoNotCount) {
  const std::string brackets(1000, '[');
  EXPECT_TRUE(CheckJsonNesting("[\"" + brackets + "\"]", "f").ok());
  EXPECT_TRUE(CheckJsonNesting("[\"\\\"" + brackets + "\"]", "f").ok()) << "an escaped quote";
  EXPECT_FALSE(CheckJsonNesting("[\"\\\\\"" + brackets + "]", "f").ok()) << "an escaped backslash";
  EXPECT_TRUE(CheckJsonNesting("\"\\", "f").ok()) << "cut off";
}

// Without the limit, copying the value would take more stack than there is.
TEST(JsonNesting, AConfigThatIsNestedWithoutEndIsRefused) {
  const std::string config =
      "{\"rope_parameters\":{\"rope_type\":" + Nested(1'000'000) + "},\"x\":1}";
  const auto parsed = ParseModelConfig(config, "folder/config.json");
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("folder/config.json: nested"));
}

}  // namespace
}  // namespace marcoro
