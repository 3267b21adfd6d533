#include "worker/collective/nccl_watchdog.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"

namespace marcoro {
namespace {

const absl::Time kStart = absl::UnixEpoch();
constexpr absl::Duration kTimeout = absl::Seconds(10);

absl::StatusOr<bool> Done() { return true; }
absl::StatusOr<bool> NotDone() { return false; }
absl::Status AllThere() { return absl::OkStatus(); }
absl::Status OneIsGone() { return absl::UnavailableError("rank 1 is gone"); }
void Mark() {}

TEST(QueuedWorkTest, NothingQueuedIsNeverLate) {
  QueuedWork work(kTimeout);
  EXPECT_TRUE(work.Check(kStart + absl::Hours(1), NotDone, AllThere).ok());
}

TEST(QueuedWorkTest, WhatIsNotDoneInTimeIsLate) {
  QueuedWork work(kTimeout);
  work.Note(kStart, Mark);
  EXPECT_TRUE(work.Check(kStart + kTimeout, NotDone, AllThere).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      work.Check(kStart + kTimeout + absl::Nanoseconds(1), NotDone, AllThere)));
}

TEST(QueuedWorkTest, WhatIsDoneIsForgotten) {
  QueuedWork work(kTimeout);
  work.Note(kStart, Mark);
  EXPECT_TRUE(work.Check(kStart + absl::Seconds(1), Done, AllThere).ok());
  EXPECT_TRUE(work.Check(kStart + absl::Hours(1), NotDone, AllThere).ok());
}

TEST(QueuedWorkTest, TheNewestCounts) {
  QueuedWork work(kTimeout);
  work.Note(kStart, Mark);
  work.Note(kStart + absl::Seconds(9), Mark);
  EXPECT_TRUE(work.Check(kStart + absl::Seconds(15), NotDone, AllThere).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(work.Check(kStart + absl::Seconds(20), NotDone, AllThere)));
}

TEST(QueuedWorkTest, TheDevicesErrorIsPassedOn) {
  QueuedWork work(kTimeout);
  work.Note(kStart, Mark);
  const absl::Status lost = absl::InternalError("lost");
  EXPECT_EQ(work.Check(kStart, [&]() -> absl::StatusOr<bool> { return lost; }, AllThere), lost);
}

// Long before the timeout, but not before what the peer queued can have been done.
TEST(QueuedWorkTest, WhatWaitsForAPeerThatIsGoneIsGivenUp) {
  QueuedWork work(kTimeout);
  work.Note(kStart, Mark);
  EXPECT_TRUE(work.Check(kStart + absl::Seconds(1), NotDone, OneIsGone).ok());
  const absl::Time given_up = kStart + absl::Seconds(1) + QueuedWork::kGrace;
  EXPECT_TRUE(work.Check(given_up - absl::Nanoseconds(1), NotDone, OneIsGone).ok());
  EXPECT_EQ(work.Check(given_up, NotDone, OneIsGone), OneIsGone());
}

TEST(QueuedWorkTest, APeerThatLeftWhenAllWasDoneIsNotMissed) {
  QueuedWork work(kTimeout);
  EXPECT_TRUE(work.Check(kStart, NotDone, OneIsGone).ok()) << "nothing was queued";
  work.Note(kStart, Mark);
  EXPECT_TRUE(work.Check(kStart + absl::Seconds(1), NotDone, OneIsGone).ok());
  EXPECT_TRUE(work.Check(kStart + absl::Seconds(2), Done, OneIsGone).ok());
  EXPECT_TRUE(work.Check(kStart + absl::Seconds(3), NotDone, OneIsGone).ok());
}

TEST(NcclWatchdogTest, TellsTheFirstFailureOnceThenEndsWhatWaits) {
  const absl::Status gone = absl::UnavailableError("rank 1 is gone");
  std::atomic<int> probes = 0;
  std::vector<std::string> events;
  absl::Notification ended;
  NcclWatchdog watchdog(
      {.probe = [&] { return ++probes < 3 ? absl::OkStatus() : gone; },
       .on_failure = [&](const absl::Status& status) { events.emplace_back(status.message()); },
       .abort =
           [&] {
             events.emplace_back("aborted");
             ended.Notify();
           },
       .poll_interval = absl::Milliseconds(1)});
  ended.WaitForNotification();
  EXPECT_EQ(events, (std::vector<std::string>{"rank 1 is gone", "aborted"}));
  EXPECT_EQ(watchdog.status(), gone);
  EXPECT_EQ(probes, 3);
}

TEST(NcclWatchdogTest, StopsWithItsOwner) {
  std::atomic<int> probes = 0;
  absl::Notification probed;
  {
    NcclWatchdog watchdog({.probe =
                               [&] {
                                 if (++probes == 1) probed.Notify();
                                 return absl::OkStatus();
                               },
                           .poll_interval = absl::Hours(1)});
    probed.WaitForNotification();
    EXPECT_TRUE(watchdog.status().ok());
  }
  EXPECT_EQ(probes, 1);
}

}  // namespace
}  // namespace marcoro
