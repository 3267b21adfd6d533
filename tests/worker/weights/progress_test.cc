#include "worker/weights/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// A reporter whose clock the test moves and whose text it keeps.
class Progress : public ::testing::Test {
 protected:
  ProgressReporter Make(bool terminal) {
    ProgressOptions options;
    options.label = "loading";
    options.unit = unit_;
    options.terminal = terminal;
    options.write = [this](const std::string& text) { written_.push_back(text); };
    options.now = [this] { return now_; };
    return ProgressReporter(options);
  }

  std::vector<std::string> Take() { return std::exchange(written_, {}); }

  absl::Time now_ = absl::UnixEpoch();
  std::vector<std::string> written_;
  std::string unit_;
};

constexpr uint64_t kTotal = 14'500'000'000;

TEST_F(Progress, BarShowsShareRateAndTimeLeft) {
  ProgressReporter reporter = Make(/*terminal=*/true);
  now_ += absl::Seconds(2);
  reporter.Update(kTotal / 2, kTotal);
  EXPECT_THAT(Take(), ElementsAre("\rloading [###############---------------]  50 %, 7.2 GB of "
                                  "14 GB, 3.6 GB/s, 2 s left\x1b[K"));
}

TEST_F(Progress, BarIsDrawnTenTimesASecondAtMost) {
  ProgressReporter reporter = Make(/*terminal=*/true);
  for (int i = 1; i <= 1000; ++i) {
    now_ += absl::Milliseconds(1);
    reporter.Update(static_cast<uint64_t>(i), 10'000);
  }
  EXPECT_EQ(Take().size(), 10u);
}

TEST_F(Progress, BarEndsItsLineOnce) {
  ProgressReporter reporter = Make(/*terminal=*/true);
  now_ += absl::Seconds(4);
  reporter.Update(kTotal, kTotal);
  reporter.Update(kTotal, kTotal);
  EXPECT_THAT(Take(), ElementsAre("\rloading [##############################] 100 %, 14 GB of "
                                  "14 GB, 3.6 GB/s, done in 4 s\x1b[K\n"));
}

TEST_F(Progress, ABarThatIsGivenUpEndsItsLine) {
  {
    ProgressReporter reporter = Make(/*terminal=*/true);
    now_ += absl::Seconds(1);
    reporter.Update(1, 4);
    Take();
  }
  EXPECT_THAT(Take(), ElementsAre("\n"));
  {
    ProgressReporter reporter = Make(/*terminal=*/true);
  }
  EXPECT_THAT(Take(), IsEmpty()) << "nothing was drawn";
}

TEST_F(Progress, CountsWhatItIsToldTo) {
  unit_ = "tokens";
  ProgressReporter reporter = Make(/*terminal=*/false);
  now_ += absl::Seconds(10);
  reporter.Update(512, 2048);
  EXPECT_THAT(Take(), ElementsAre("loading  25 %, 512 of 2048 tokens, 51 tokens/s, 30 s left"));
  now_ += absl::Seconds(990);
  reporter.Update(2048, 2048);
  EXPECT_THAT(Take(),
              ElementsAre("loading 100 %, 2048 of 2048 tokens, 2.0 tokens/s, done in 16 min 40 s"));
}

TEST_F(Progress, LinesComeAtTenPercentButNotWithinTwoSeconds) {
  ProgressReporter reporter = Make(/*terminal=*/false);
  now_ += absl::Seconds(1);
  reporter.Update(kTotal / 5, kTotal);
  EXPECT_THAT(Take(), IsEmpty());
  now_ += absl::Seconds(1);
  reporter.Update(kTotal / 4, kTotal);
  EXPECT_THAT(Take(), ElementsAre("loading  25 %, 3.6 GB of 14 GB, 1.8 GB/s, 6 s left"));
  now_ += absl::Seconds(3);
  reporter.Update(kTotal / 4 + kTotal / 20, kTotal);
  EXPECT_THAT(Take(), IsEmpty());
}

TEST_F(Progress, LinesComeAtLeastEveryTenSeconds) {
  ProgressReporter reporter = Make(/*terminal=*/false);
  now_ += absl::Seconds(10);
  reporter.Update(kTotal / 100, kTotal);
  EXPECT_THAT(Take(), ElementsAre("loading   1 %, 145 MB of 14 GB, 14 MB/s, 16 min 30 s left"));
}

TEST_F(Progress, LastLineAlwaysComes) {
  ProgressReporter reporter = Make(/*terminal=*/false);
  now_ += absl::Milliseconds(3);
  reporter.Update(449, 449);
  EXPECT_THAT(Take(), ElementsAre("loading 100 %, 449 B of 449 B, 150 kB/s, done in 0 s"));
}

TEST_F(Progress, NothingToLoadIsDoneAtOnce) {
  ProgressReporter reporter = Make(/*terminal=*/false);
  reporter.Update(0, 0);
  EXPECT_THAT(Take(), ElementsAre("loading 100 %, 0 B of 0 B"));
}

}  // namespace
}  // namespace marcoro
