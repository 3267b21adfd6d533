#include "worker/group/watchdog.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"

namespace marcoro {
namespace {

// A clock that moves only when told, and the messages of a watchdog that looks only when told.
class WatchdogTest : public testing::Test {
 protected:
  Watchdog::Options Options() {
    Watchdog::Options options;
    options.timeout = absl::Seconds(60);
    options.poll_interval = absl::InfiniteDuration();
    options.on_hang = [this](const std::string& message) { messages_.push_back(message); };
    options.now = [this] { return absl::FromUnixSeconds(seconds_.load()); };
    return options;
  }

  std::atomic<int64_t> seconds_{1000};
  std::vector<std::string> messages_;
};

TEST_F(WatchdogTest, SaysWhatTookTooLongOnce) {
  Watchdog watchdog(Options());
  watchdog.Arm("a step");
  seconds_ += 59;
  EXPECT_FALSE(watchdog.Check());
  seconds_ += 1;
  EXPECT_TRUE(watchdog.Check());
  EXPECT_FALSE(watchdog.Check());
  EXPECT_EQ(messages_,
            std::vector<std::string>({"a step took longer than 1m: a rank of the group hangs"}));
}

TEST_F(WatchdogTest, AKickStartsTheClockAnew) {
  Watchdog watchdog(Options());
  watchdog.Arm("a step");
  seconds_ += 59;
  watchdog.Kick();
  seconds_ += 59;
  EXPECT_FALSE(watchdog.Check());
  seconds_ += 1;
  EXPECT_TRUE(watchdog.Check());
}

TEST_F(WatchdogTest, IsSilentBeforeItIsArmedAndAfterItIsDisarmed) {
  Watchdog watchdog(Options());
  seconds_ += 1000;
  EXPECT_FALSE(watchdog.Check());
  {
    Watchdog::Armed armed(&watchdog, "a step");
    seconds_ += 30;
  }
  seconds_ += 1000;
  EXPECT_FALSE(watchdog.Check());
  EXPECT_TRUE(messages_.empty());
}

TEST_F(WatchdogTest, LooksByItself) {
  absl::Notification hung;
  Watchdog::Options options = Options();
  options.poll_interval = absl::Milliseconds(1);
  options.on_hang = [&hung](const std::string&) { hung.Notify(); };
  Watchdog watchdog(options);
  watchdog.Arm("a step");
  seconds_ += 60;
  EXPECT_TRUE(hung.WaitForNotificationWithTimeout(absl::Seconds(60)));
}

TEST(WatchdogDeathTest, EndsTheProcessWithOneLineAndItsExitCode) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto hang = [] {
    Watchdog::Options options;
    options.timeout = absl::Milliseconds(20);
    options.poll_interval = absl::Milliseconds(1);
    Watchdog watchdog(options);
    watchdog.Arm("loading");
    absl::Notification never;
    never.WaitForNotificationWithTimeout(absl::Seconds(60));
  };
  EXPECT_EXIT(hang(), testing::ExitedWithCode(70),
              "watchdog: loading took longer than 20ms: a rank of the group hangs; this process "
              "ends");
}

}  // namespace
}  // namespace marcoro
