#include "worker/weights/staging_ring.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace marcoro {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A device that works through what is queued on a thread of its own: it adds up the bytes of rows,
// each of which must then still be what was queued.
class FakeDevice {
 public:
  FakeDevice() : thread_([this] { Run(); }) {}
  ~FakeDevice() {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    thread_.join();
  }

  struct Work {
    const uint8_t* rows = nullptr;
    size_t bytes = 0;
    bool done = true;  // guarded by the device's mutex
  };
  void Queue(Work* work) {
    absl::MutexLock lock(&mutex_);
    work->done = false;
    queue_.push_back(work);
  }
  void Wait(const Work* work) {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&work->done));
  }
  uint64_t sum() {
    absl::MutexLock lock(&mutex_);
    return sum_;
  }

 private:
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return stopping_ || !queue_.empty();
  }
  void Run() {
    while (true) {
      Work* work = nullptr;
      {
        absl::MutexLock lock(&mutex_);
        mutex_.Await(absl::Condition(this, &FakeDevice::HasWork));
        if (queue_.empty()) return;
        work = queue_.front();
        queue_.pop_front();
      }
      const uint64_t sum = std::accumulate(work->rows, work->rows + work->bytes, uint64_t{0});
      absl::MutexLock lock(&mutex_);
      sum_ += sum;
      work->done = true;
    }
  }

  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<Work*> queue_ ABSL_GUARDED_BY(mutex_);
  uint64_t sum_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread thread_;
};

// What Wait finds.
enum class Answer { kFinite, kNotFinite, kLost };

class FakeStage final : public RowStage {
 public:
  // `answers` of Wait, front first; kFinite when there are no more.
  FakeStage(FakeDevice& device, size_t bytes, std::deque<Answer> answers = {})
      : device_(device), memory_(std::min<size_t>(bytes, 4096)), answers_(std::move(answers)) {}
  ~FakeStage() override { device_.Wait(&work_); }

  void* memory() const override { return const_cast<uint8_t*>(memory_.data()); }
  absl::Status Pack(const StagedRows& rows, const PackedWeight&, int64_t) override {
    work_.rows = memory_.data();
    work_.bytes = static_cast<size_t>(rows.count);
    device_.Queue(&work_);
    return absl::OkStatus();
  }
  absl::Status Copy(const StagedRows& rows, const Tensor&) override { return Pack(rows, {}, 0); }
  absl::StatusOr<bool> Wait() override {
    device_.Wait(&work_);
    if (answers_.empty()) return true;
    const Answer answer = answers_.front();
    answers_.pop_front();
    if (answer == Answer::kLost) return absl::InternalError("the GPU is lost");
    return answer == Answer::kFinite;
  }

 private:
  FakeDevice& device_;
  std::vector<uint8_t> memory_;
  std::deque<Answer> answers_;
  FakeDevice::Work work_;
};

class StagingRingTest : public ::testing::Test {
 protected:
  std::unique_ptr<StagingRing> Make(size_t bytes, int most) {
    auto ring = StagingRing::Create(
        [this](size_t size) -> absl::StatusOr<std::unique_ptr<RowStage>> {
          absl::MutexLock lock(&making_);  // several threads make stages at once
          if (made_ >= can_be_made_) return absl::ResourceExhaustedError("no pinned memory");
          ++made_;
          return std::make_unique<FakeStage>(device_, size, std::exchange(answers_, {}));
        },
        bytes, most);
    EXPECT_TRUE(ring.ok()) << ring.status();
    return *std::move(ring);
  }

  FakeDevice device_;
  absl::Mutex making_;
  std::atomic<int> made_ = 0;
  int can_be_made_ = 1000;
  std::deque<Answer> answers_;  // of the next stage that is made
};

TEST_F(StagingRingTest, ThereIsNoneWhereTheBackendHasNoStages) {
  auto ring = StagingRing::Create(
      [](size_t) -> absl::StatusOr<std::unique_ptr<RowStage>> { return nullptr; }, 1, 1);
  ASSERT_TRUE(ring.ok());
  EXPECT_EQ(*ring, nullptr);
}

TEST_F(StagingRingTest, StagesAreMadeWhenTheyAreNeededAndThenTakeTurns) {
  auto ring = Make(16, 2);
  Stage first = *ring->Take();
  Stage second = *ring->Take();
  void* const first_memory = first.rows->memory();
  void* const second_memory = second.rows->memory();
  EXPECT_NE(first_memory, second_memory);
  ring->Return(std::move(second));
  ring->Return(std::move(first));
  std::vector<void*> turns;
  for (int i = 0; i < 4; ++i) {
    Stage stage = *ring->Take();
    turns.push_back(stage.rows->memory());
    ring->Return(std::move(stage));
  }
  EXPECT_THAT(turns, ElementsAre(second_memory, first_memory, second_memory, first_memory));
  EXPECT_EQ(made_, 2);
}

TEST_F(StagingRingTest, TakesNoMoreMemoryThanItsBoundUnlessOneStageDoes) {
  const auto count = [this](size_t bytes) {
    made_ = 0;
    auto ring = Make(bytes, 8);
    const int before = made_;
    // Taken and returned, one at a time: more are made until there are as many as may be.
    for (int i = 0; i < 20; ++i) ring->Return(*ring->Take());
    EXPECT_EQ(before, 1);
    return made_.load();
  };
  EXPECT_EQ(count(1024), 8);
  EXPECT_EQ(count(StagingRing::kMostBytes / 8), 8);
  EXPECT_EQ(count(StagingRing::kMostBytes / 8 + 1), 7);
  EXPECT_EQ(count(StagingRing::kMostBytes / 2), 2);
  EXPECT_EQ(count(StagingRing::kMostBytes + 1), 1);
}

TEST_F(StagingRingTest, WhatTheDeviceCannotDoIsToldWhenTheStageIsTakenAgain) {
  answers_ = {Answer::kFinite, Answer::kLost};
  auto ring = Make(16, 1);
  Stage stage = *ring->Take();
  EXPECT_TRUE(stage.rows->Pack({.count = 1}, {}, 0).ok());
  ring->Return(std::move(stage));
  EXPECT_EQ(ring->Take().status().code(), absl::StatusCode::kInternal);
  // The stage is back: who comes later does not wait for it for ever.
  EXPECT_TRUE(ring->Take().ok());
}

TEST_F(StagingRingTest, WhatTheDeviceCannotDoIsToldAtTheEnd) {
  answers_ = {Answer::kFinite, Answer::kLost};
  auto ring = Make(16, 1);
  ring->Return(*ring->Take());
  EXPECT_EQ(ring->Finish().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(ring->Finish().ok());
}

TEST_F(StagingRingTest, NumbersThatAreNotFiniteAreExplainedByWhoQueuedThem) {
  answers_ = {Answer::kFinite, Answer::kNotFinite, Answer::kNotFinite};
  auto ring = Make(16, 1);
  const auto queue = [&ring](const std::string& name) -> absl::Status {
    absl::StatusOr<Stage> stage = ring->Take();
    if (!stage.ok()) return stage.status();
    stage->explain = [name] { return absl::InvalidArgumentError(name); };
    ring->Return(*std::move(stage));
    return absl::OkStatus();
  };
  EXPECT_TRUE(queue("q_proj").ok());
  const absl::Status status = queue("k_proj");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("q_proj"));
  EXPECT_TRUE(ring->Finish().ok()) << "nothing new was queued";
}

TEST_F(StagingRingTest, WithoutMemoryForOneMoreStageTheTakerIsTold) {
  can_be_made_ = 1;
  auto ring = Make(16, 2);
  EXPECT_EQ(ring->Take().status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(ring->Finish().ok());
}

// Threads fill stages with bytes of their own while the device reads others: no byte is written
// over before it was read, and none is lost.
TEST_F(StagingRingTest, ThreadsAndTheDeviceShareTheStages) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 200;
  constexpr size_t kBytes = 512;
  for (const int most : {1, 3, 2 * kThreads}) {
    SCOPED_TRACE(most);
    const uint64_t before = device_.sum();
    auto ring = Make(kBytes, most);
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([&ring, t] {
        for (int round = 0; round < kRounds; ++round) {
          Stage stage = *ring->Take();
          std::memset(stage.rows->memory(), t + 1, kBytes);
          EXPECT_TRUE(stage.rows->Pack({.count = kBytes}, {}, 0).ok());
          ring->Return(std::move(stage));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(ring->Finish().ok());
    EXPECT_EQ(device_.sum() - before, uint64_t{1 + 2 + 3 + 4} * kRounds * kBytes);
  }
}

}  // namespace
}  // namespace marcoro
