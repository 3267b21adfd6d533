#include "coordinator/admission/admission.h"

#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

namespace marcoro {
namespace {

// An admission on a clock that the test moves.
class AdmissionTest : public testing::Test {
 protected:
  void Make(const AdmissionOptions& options) {
    admission_.emplace(options, [this] { return now_; });
  }
  AdmissionTicket MustAdmit(absl::string_view key, int64_t units) {
    AdmissionDecision decision = admission_->Admit(key, units);
    EXPECT_TRUE(decision.status.ok()) << decision.status;
    EXPECT_EQ(decision.rejection, Rejection::kNone);
    EXPECT_TRUE(decision.ticket.held());
    return std::move(decision.ticket);
  }
  void ExpectRefused(absl::string_view key, int64_t units, Rejection rejection,
                     absl::StatusCode code) {
    const AdmissionDecision decision = admission_->Admit(key, units);
    EXPECT_EQ(decision.status.code(), code) << decision.status;
    EXPECT_EQ(decision.rejection, rejection);
    EXPECT_FALSE(decision.ticket.held());
  }

  absl::Time now_ = absl::UnixEpoch();
  std::optional<Admission> admission_;
};

TEST_F(AdmissionTest, BoundsTheRequestsInFlight) {
  Make({.max_requests = 2});
  AdmissionTicket first = MustAdmit(kAnonymousKey, 1);
  const AdmissionTicket second = MustAdmit(kAnonymousKey, 100);
  ExpectRefused(kAnonymousKey, 1, Rejection::kQueueFull, absl::StatusCode::kResourceExhausted);
  first.Release();
  const AdmissionTicket third = MustAdmit(kAnonymousKey, 1);
  EXPECT_EQ(admission_->requests(), 2);
}

TEST_F(AdmissionTest, BoundsTheUnitsInFlight) {
  Make({.max_requests = 100, .max_units = 10});
  const AdmissionTicket a = MustAdmit("a", 4);
  const AdmissionTicket b = MustAdmit("b", 4);
  ExpectRefused("c", 3, Rejection::kQueueFull, absl::StatusCode::kResourceExhausted);
  const AdmissionTicket c = MustAdmit("c", 2);
  EXPECT_EQ(admission_->units(), 10);
}

TEST_F(AdmissionTest, BoundsTheUnitsOfEachKey) {
  Make({.max_requests = 100, .max_units = 100, .max_units_per_key = 4});
  const AdmissionTicket a = MustAdmit("a", 3);
  ExpectRefused("a", 2, Rejection::kQuota, absl::StatusCode::kResourceExhausted);
  const AdmissionTicket more_of_a = MustAdmit("a", 1);
  const AdmissionTicket b = MustAdmit("b", 4);
  EXPECT_EQ(admission_->units("a"), 4);
  EXPECT_EQ(admission_->units("b"), 4);
  EXPECT_EQ(admission_->units("nobody"), 0);
}

TEST_F(AdmissionTest, ARequestAboveTheBoundItselfNeedNotComeBack) {
  Make({.max_requests = 100, .max_units = 10, .max_units_per_key = 4});
  ExpectRefused("a", 5, Rejection::kTooLarge, absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(admission_->Admit("a", 5).retry_after, absl::ZeroDuration());
  const AdmissionTicket largest = MustAdmit("a", 4);
}

TEST_F(AdmissionTest, ATicketGivesItsPlaceBackOnce) {
  Make({.max_requests = 10});
  {
    AdmissionTicket ticket = MustAdmit("a", 3);
    AdmissionTicket moved = std::move(ticket);
    EXPECT_FALSE(ticket.held());  // NOLINT(bugprone-use-after-move): what a move leaves is promised
    EXPECT_EQ(admission_->requests(), 1);
    EXPECT_EQ(admission_->units("a"), 3);
    moved.Release();
    EXPECT_EQ(admission_->requests(), 0);
  }
  EXPECT_EQ(admission_->requests(), 0);
  EXPECT_EQ(admission_->units(), 0);
}

TEST_F(AdmissionTest, AssigningATicketGivesTheOldPlaceBack) {
  Make({.max_requests = 10});
  AdmissionTicket ticket = MustAdmit("a", 1);
  ticket = MustAdmit("b", 2);
  EXPECT_EQ(admission_->units("a"), 0);
  EXPECT_EQ(admission_->units("b"), 2);
}

TEST_F(AdmissionTest, DrainingAdmitsNothingAndLetsTheRestFinish) {
  Make({.max_requests = 10});
  AdmissionTicket ticket = MustAdmit("a", 1);
  admission_->SetDraining(true);
  EXPECT_TRUE(admission_->draining());
  ExpectRefused("a", 1, Rejection::kDraining, absl::StatusCode::kUnavailable);
  EXPECT_FALSE(admission_->WaitUntilIdle(absl::ZeroDuration()));
  ticket.Release();
  EXPECT_TRUE(admission_->WaitUntilIdle(absl::ZeroDuration()));
  admission_->SetDraining(false);
  ticket = MustAdmit("a", 1);
}

TEST_F(AdmissionTest, WaitUntilIdleWakesWithTheLastRelease) {
  Make({.max_requests = 10});
  AdmissionTicket ticket = MustAdmit("a", 1);
  std::thread releaser([&] { ticket.Release(); });
  EXPECT_TRUE(admission_->WaitUntilIdle(absl::Seconds(30)));
  releaser.join();
}

TEST_F(AdmissionTest, SuggestsASecondWhileNothingHasEverFinished) {
  Make({.max_requests = 1});
  const AdmissionTicket ticket = MustAdmit("a", 1);
  EXPECT_EQ(admission_->Admit("a", 1).retry_after, absl::Seconds(1));
}

TEST_F(AdmissionTest, SuggestsTheTimeInWhichEnoughIsGivenBack) {
  Make({.max_requests = 1000, .max_units = 100});
  AdmissionTicket blocker = MustAdmit("a", 96);
  // Four units every second, for long: the average is 4 / s.
  for (int second = 0; second < 200; ++second) {
    AdmissionTicket ticket = MustAdmit("a", 4);
    now_ += absl::Seconds(1);
    ticket.Release();
  }
  const AdmissionTicket rest = MustAdmit("a", 4);
  // Eight units take 2 s. The sum over past seconds is 1 / (1 - 1/e^0.1) = 10.5 instead of 10 at
  // once after a release.
  const absl::Duration delay = admission_->Admit("a", 8).retry_after;
  EXPECT_NEAR(absl::ToDoubleSeconds(delay), 8.0 / (4 * 1.0508), 0.01);
}

TEST_F(AdmissionTest, AKeyWaitsForItsOwnShare) {
  Make({.max_requests = 1000, .max_units_per_key = 10});
  const AdmissionTicket others = MustAdmit("b", 10);
  AdmissionTicket mine = MustAdmit("a", 10);
  for (int second = 0; second < 200; ++second) {
    AdmissionTicket ticket = MustAdmit("c", 4);
    now_ += absl::Seconds(1);
    ticket.Release();
  }
  // Key a holds half of what is in flight, so that half of 4.2 units / s are its own.
  const absl::Duration delay = admission_->Admit("a", 4).retry_after;
  EXPECT_NEAR(absl::ToDoubleSeconds(delay), 4.0 / (2 * 1.0508), 0.01);
}

TEST_F(AdmissionTest, TheSuggestionHasBounds) {
  Make({.max_requests = 1});
  AdmissionTicket ticket = MustAdmit("a", 1);
  for (int i = 0; i < 1000; ++i) {
    ticket.Release();
    ticket = MustAdmit("a", 1);
  }
  EXPECT_EQ(admission_->Admit("a", 1).retry_after, Admission::kMinRetry);
  // Nothing finishes any more.
  now_ += absl::Hours(100);
  EXPECT_EQ(admission_->Admit("a", 1).retry_after, Admission::kMaxRetry);
}

TEST_F(AdmissionTest, RejectionsHaveNamesForMetrics) {
  EXPECT_EQ(RejectionName(Rejection::kNone), "");
  EXPECT_EQ(RejectionName(Rejection::kQueueFull), "queue_full");
  EXPECT_EQ(RejectionName(Rejection::kQuota), "quota");
  EXPECT_EQ(RejectionName(Rejection::kDraining), "draining");
  EXPECT_EQ(RejectionName(Rejection::kTooLarge), "too_large");
}

TEST(Admission, CountsRightFromManyThreads) {
  Admission admission({.max_requests = 6, .max_units = 12, .max_units_per_key = 8});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&admission, t] {
      const std::string key = t % 2 == 0 ? "even" : "odd";
      for (int i = 0; i < 2000; ++i) {
        const AdmissionDecision first = admission.Admit(key, 1 + i % 3);
        const AdmissionDecision second = admission.Admit(key, 1 + i % 4);
        EXPECT_LE(admission.requests(), 6);
        EXPECT_LE(admission.units(), 12);
        EXPECT_LE(admission.units(key), 8);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(admission.requests(), 0);
  EXPECT_EQ(admission.units(), 0);
  EXPECT_EQ(admission.units("even"), 0);
}

}  // namespace
}  // namespace marcoro
