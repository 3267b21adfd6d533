#include "coordinator/admission/deadline.h"

#include "gtest/gtest.h"

namespace marcoro {
namespace {

const absl::Time kNow = absl::UnixEpoch() + absl::Hours(1);

TEST(QueueTimeLeft, IsTheSmallerOfBothBounds) {
  EXPECT_EQ(QueueTimeLeft(kNow, kNow + absl::Seconds(5), absl::Seconds(8)).value(),
            absl::Seconds(5));
  EXPECT_EQ(QueueTimeLeft(kNow, kNow + absl::Seconds(9), absl::Seconds(8)).value(),
            absl::Seconds(8));
}

TEST(QueueTimeLeft, EitherBoundMayBeMissing) {
  EXPECT_EQ(QueueTimeLeft(kNow, absl::InfiniteFuture(), absl::Seconds(8)).value(),
            absl::Seconds(8));
  EXPECT_EQ(QueueTimeLeft(kNow, kNow + absl::Seconds(9), absl::ZeroDuration()).value(),
            absl::Seconds(9));
  EXPECT_EQ(QueueTimeLeft(kNow, absl::InfiniteFuture(), absl::ZeroDuration()).value(),
            absl::InfiniteDuration());
}

TEST(QueueTimeLeft, ADeadlineThatHasPassedIsExceeded) {
  EXPECT_EQ(QueueTimeLeft(kNow, kNow, absl::Seconds(8)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(QueueTimeLeft(kNow, absl::InfinitePast(), absl::ZeroDuration()).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(QueueTimeoutMicroseconds, KeepsZeroForNoTimeout) {
  EXPECT_EQ(QueueTimeoutMicroseconds(absl::InfiniteDuration()), 0u);
  EXPECT_EQ(QueueTimeoutMicroseconds(absl::Nanoseconds(1)), 1u);
  EXPECT_EQ(QueueTimeoutMicroseconds(absl::Milliseconds(3)), 3000u);
}

}  // namespace
}  // namespace marcoro
