// A router made for tests: remembers what was submitted, and gives each sequence the tokens that
// the test wants, from a thread of its own as a real router would.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/routing/router.h"

namespace marcoro {

class FakeRouter final : public Router {
 public:
  // One step of a sequence: an update, or its end.
  using Script = std::vector<worker::v1::SequenceUpdate>;

  FakeRouter();
  ~FakeRouter() override;

  // What each later sequence gives, from what was submitted. Default: nothing; the test sends
  // updates itself.
  void SetScript(std::function<Script(const worker::v1::Submit&)> script);
  // The next `count` sequences fail with this status after their script.
  void SetFailure(absl::Status failure, int count = 1'000'000);
  void SetSummary(ReplicaSummary summary);

  std::unique_ptr<RoutedSequence> Start(worker::v1::Submit submit, uint64_t affinity,
                                        std::shared_ptr<SequenceSink> sink) override;
  ReplicaSummary Summary() const override;

  // Sends one update to the sequence that was started as number `index`, and its OnDone if the
  // update ends it. Returns once the sink has returned; nothing happens if the sequence was
  // cancelled.
  void Send(size_t index, const worker::v1::SequenceUpdate& update);

  std::vector<worker::v1::Submit> submits() const;
  std::vector<uint64_t> affinities() const;
  // Sequences that were given up before their end.
  int cancelled() const;
  // Sequences that have neither ended nor been cancelled.
  int running() const;
  // Wait until the condition holds; false if it does not within a generous limit.
  bool WaitForSubmits(size_t count) const;
  bool WaitForCancelled(int count) const;

 private:
  struct Sequence {
    worker::v1::Submit submit;
    uint64_t affinity = 0;
    std::shared_ptr<SequenceSink> sink;  // null once ended or cancelled
  };
  class Handle;

  void Run();
  void Play(size_t index);
  void Finish(size_t index, const absl::Status& status);
  void Cancel(size_t index);
  std::shared_ptr<SequenceSink> SinkOf(size_t index) const;

  mutable absl::Mutex mutex_;
  std::function<Script(const worker::v1::Submit&)> script_ ABSL_GUARDED_BY(mutex_);
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  int failures_left_ ABSL_GUARDED_BY(mutex_) = 0;
  ReplicaSummary summary_ ABSL_GUARDED_BY(mutex_);
  std::vector<Sequence> sequences_ ABSL_GUARDED_BY(mutex_);
  size_t played_ ABSL_GUARDED_BY(mutex_) = 0;
  int cancelled_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// Updates for scripts.
worker::v1::SequenceUpdate Tokens(const std::vector<uint32_t>& ids);
worker::v1::SequenceUpdate Tokens(const std::vector<uint32_t>& ids, worker::v1::SequenceEnd end);
// One update for each token; the last one ends the sequence.
FakeRouter::Script OneByOne(const std::vector<uint32_t>& ids, worker::v1::SequenceEnd end);

}  // namespace marcoro
