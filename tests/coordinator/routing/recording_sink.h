// Keeps what a sequence was told, for tests to wait for and to look at.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/routing/router.h"
#include "gtest/gtest.h"

namespace marcoro {

class RecordingSink final : public SequenceSink {
 public:
  // Called at each update and at the end, after recording, from the router's thread.
  std::function<void()> on_update;
  std::function<void()> on_done;

  void OnUpdate(worker::v1::SequenceUpdate update) override {
    const Turn turn(busy_);
    {
      absl::MutexLock lock(&mutex_);
      EXPECT_FALSE(status_.has_value()) << "an update after the end";
      EXPECT_EQ(end_, worker::v1::SEQUENCE_END_UNSPECIFIED) << "an update after the last";
      EXPECT_EQ(update.error(), worker::v1::SEQUENCE_ERROR_UNSPECIFIED);
      tokens_.insert(tokens_.end(), update.token_ids().begin(), update.token_ids().end());
      for (const auto& entry : update.logprobs()) logprobs_.push_back(entry.logprob());
      for (const auto& entry : update.prompt_logprobs()) {
        prompt_logprobs_.push_back(entry.has_logprob() ? std::optional<float>(entry.logprob())
                                                       : std::nullopt);
      }
      queue_reports_ += update.has_queue_microseconds();
      cached_reports_ += update.has_cached_tokens();
      end_ = update.end();
      ++updates_;
    }
    if (on_update) on_update();
  }

  void OnDone(absl::Status status) override {
    const Turn turn(busy_);
    {
      absl::MutexLock lock(&mutex_);
      EXPECT_FALSE(status_.has_value()) << "done twice";
      status_ = std::move(status);
    }
    if (on_done) on_done();
  }

  // The final status; a failure of the test if none comes within a generous limit.
  absl::Status WaitDone() {
    absl::MutexLock lock(&mutex_);
    const auto done = [this]()
                          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return status_.has_value(); };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&done), kLimit)) {
      ADD_FAILURE() << "the sequence does not end; it has " << tokens_.size() << " tokens";
      return absl::UnknownError("not done");
    }
    return *status_;
  }
  bool WaitTokens(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return tokens_.size() >= count;
    };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), kLimit);
  }
  bool WaitPromptLogprobs(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return prompt_logprobs_.size() >= count;
    };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), kLimit);
  }

  std::vector<uint32_t> tokens() const { return Get(&RecordingSink::tokens_); }
  std::vector<float> logprobs() const { return Get(&RecordingSink::logprobs_); }
  std::vector<std::optional<float>> prompt_logprobs() const {
    return Get(&RecordingSink::prompt_logprobs_);
  }
  int queue_reports() const { return Get(&RecordingSink::queue_reports_); }
  int cached_reports() const { return Get(&RecordingSink::cached_reports_); }
  // Callbacks of either kind.
  int calls() const { return updates() + (done() ? 1 : 0); }
  int updates() const { return Get(&RecordingSink::updates_); }
  worker::v1::SequenceEnd end() const { return Get(&RecordingSink::end_); }
  bool done() const { return Get(&RecordingSink::status_).has_value(); }

 private:
  static constexpr absl::Duration kLimit = absl::Seconds(30);

  // Calls must come one at a time.
  class Turn {
   public:
    explicit Turn(std::atomic<bool>& busy) : busy_(busy) {
      EXPECT_FALSE(busy_.exchange(true)) << "two callbacks at once";
    }
    ~Turn() { busy_.store(false); }

   private:
    std::atomic<bool>& busy_;
  };

  template <typename T>
  T Get(T RecordingSink::* member) const ABSL_NO_THREAD_SAFETY_ANALYSIS {
    absl::MutexLock lock(&mutex_);
    return this->*member;
  }

  std::atomic<bool> busy_{false};
  mutable absl::Mutex mutex_;
  std::vector<uint32_t> tokens_ ABSL_GUARDED_BY(mutex_);
  std::vector<float> logprobs_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::optional<float>> prompt_logprobs_ ABSL_GUARDED_BY(mutex_);
  int queue_reports_ ABSL_GUARDED_BY(mutex_) = 0;
  int cached_reports_ ABSL_GUARDED_BY(mutex_) = 0;
  int updates_ ABSL_GUARDED_BY(mutex_) = 0;
  worker::v1::SequenceEnd end_ ABSL_GUARDED_BY(mutex_) = worker::v1::SEQUENCE_END_UNSPECIFIED;
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace marcoro
