#include "worker/collective/key_store.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace marcoro {
namespace {

TEST(LocalKeyStore, GetReturnsWhatWasSet) {
  LocalKeyStore keys;
  const std::string binary("a\0b", 3);
  ASSERT_TRUE(keys.Set("key", binary).ok());
  EXPECT_EQ(*keys.Get("key", absl::ZeroDuration()), binary);
}

TEST(LocalKeyStore, GetWaitsForALaterSet) {
  LocalKeyStore keys;
  std::thread setter([&] { EXPECT_TRUE(keys.Set("key", "value").ok()); });
  EXPECT_EQ(*keys.Get("key", absl::Seconds(60)), "value");
  setter.join();
}

TEST(LocalKeyStore, GetOfAKeyThatDoesNotComeEndsAtItsTimeoutAndNamesTheKey) {
  LocalKeyStore keys;
  const absl::Status status = keys.Get("absent", absl::Milliseconds(10)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(status.message().find("absent"), absl::string_view::npos) << status;
}

TEST(LocalKeyStore, AKeyIsWrittenOnceButMayBeRepeated) {
  LocalKeyStore keys;
  ASSERT_TRUE(keys.Set("key", "value").ok());
  EXPECT_TRUE(keys.Set("key", "value").ok());
  EXPECT_EQ(keys.Set("key", "other").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(*keys.Get("key", absl::ZeroDuration()), "value");
}

TEST(LocalKeyStore, WatchersAreCalledOnceEachWhenTheirKeyComes) {
  LocalKeyStore keys;
  std::vector<std::string> calls;
  const auto note = [&calls](const char* name) {
    return [&calls, name](const std::string& value) { calls.push_back(name + value); };
  };
  ASSERT_TRUE(keys.Watch("a", note("first ")).ok());
  ASSERT_TRUE(keys.Watch("b", note("second ")).ok());
  ASSERT_TRUE(keys.Set("a", "1").ok());
  ASSERT_TRUE(keys.Set("a", "1").ok());
  EXPECT_EQ(calls, std::vector<std::string>({"first 1"}));
  ASSERT_TRUE(keys.Set("b", "2").ok());
  EXPECT_EQ(calls, std::vector<std::string>({"first 1", "second 2"}));
  EXPECT_EQ(*keys.Watch("b", note("late ")), 0u);
  EXPECT_EQ(calls.back(), "late 2");
}

TEST(LocalKeyStore, AnUnwatchedKeyCallsNobody) {
  LocalKeyStore keys;
  bool called = false;
  const uint64_t watcher = *keys.Watch("key", [&](const std::string&) { called = true; });
  EXPECT_TRUE(keys.Unwatch(watcher));
  EXPECT_FALSE(keys.Unwatch(watcher));
  ASSERT_TRUE(keys.Set("key", "value").ok());
  EXPECT_FALSE(called);
}

TEST(LocalKeyStore, BoundsKeysValuesAndWatchers) {
  LocalKeyStore keys;
  EXPECT_EQ(keys.Set("", "value").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(keys.Set(std::string(257, 'k'), "value").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(keys.Set("key", std::string((64 << 10) + 1, 'v')).code(),
            absl::StatusCode::kInvalidArgument);
  for (int i = 0; i < 1024; ++i) ASSERT_TRUE(keys.Set(absl::StrCat("key ", i), "value").ok());
  EXPECT_EQ(keys.Set("one more", "value").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(keys.Set("key 0", "value").ok());
  for (int i = 0; i < 256; ++i) {
    ASSERT_TRUE(keys.Watch("absent", [](const std::string&) {}).ok());
  }
  EXPECT_EQ(keys.Watch(std::string(257, 'k'), [](const std::string&) {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(keys.Watch("absent", [](const std::string&) {}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace marcoro
