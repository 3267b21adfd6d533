// The step loop of rank 0: schedule → execute → sample → emit. Owns all mutable serving state;
// everything else talks to it through a bounded inbox and receives outputs through sinks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/node_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kernels/backend.h"
#include "worker/engine/request.h"
#include "worker/engine/step_executor.h"
#include "worker/engine/step_sampler.h"
#include "worker/scheduler/scheduler.h"

namespace marcoro {

struct EngineOptions {
  SchedulerOptions scheduler;
  // How often peers hear of rank 0 while there is nothing to do.
  absl::Duration heartbeat_interval = absl::Seconds(1);
  // Columns of the logits, for a backend that chooses tokens by itself. 0: the processor chooses
  // all of them. The tokens are the same.
  int64_t vocabulary = 0;
};

// What one step did; for metrics.
struct StepRecord {
  absl::Duration duration;
  int32_t prompt_tokens = 0;  // computed, recomputation after preemption included
  int32_t generated_tokens = 0;
  int32_t sequences = 0;
};

// A consistent view of the engine, updated after every step.
struct EngineSnapshot {
  SchedulerCounters scheduler;
  bool draining = false;
  uint64_t steps = 0;
  uint64_t prompt_tokens = 0;
  uint64_t generated_tokens = 0;
  uint64_t finished_stop = 0;
  uint64_t finished_length = 0;
  uint64_t finished_cancelled = 0;
  uint64_t finished_error = 0;
};

class Engine {
 public:
  using StepObserver = std::function<void(const StepRecord&)>;

  // backend and executor must outlive the engine. The observer runs on the engine's thread.
  Engine(const EngineOptions& options, Backend& backend, StepExecutor& executor,
         StepObserver observer = nullptr);

  // Takes a request. Whatever becomes of it, refusals included, is told to its sink, in order.
  // Thread-safe, never blocks.
  void Submit(EngineRequest request);
  // Ends a request, or all of a sink's, without further outputs than those already under way.
  // Thread-safe, never blocks.
  void Cancel(const OutputSink* sink, uint64_t client_id);
  void CancelAll(const OutputSink* sink);

  // From now on requests are refused with EndError::kDraining; running ones go on. Thread-safe.
  void Drain();
  // Waits until nothing runs or waits, or until the deadline; true if idle. An engine whose Run has
  // returned is idle.
  bool WaitIdle(absl::Time deadline);
  // Makes Run return; what still runs ends with EndError::kDraining. Thread-safe.
  void Stop();

  // Runs steps on the calling thread until Stop (OK) or until the executor fails (its status; the
  // group is then lost).
  absl::Status Run();

  EngineSnapshot snapshot() const;

 private:
  // A request that the scheduler knows.
  struct Live {
    EngineRequest request;
    int32_t generated = 0;
    absl::Time arrival;
  };
  struct Submission {
    EngineRequest request;
    absl::Time arrival;
  };
  struct Cancellation {
    const OutputSink* sink;
    uint64_t client_id;
    bool all;
  };
  // A step whose results have not been taken.
  struct StepUnderWay {
    std::vector<SequenceStep> sequences;
    std::vector<StepOutput> outputs;
    absl::Time begin;
  };

  bool ProcessInbox();  // false: stop
  void Admit(Submission submission);
  void Remove(const Cancellation& cancellation);
  void ReportExpired();
  absl::Status Idle();
  absl::Status RunStep(const StepPlan& plan, absl::Time begin);
  void CommitLate(const StepUnderWay& step);
  absl::Status CompleteLateStep();
  // Takes the results of a step that was committed with late tokens, or is to be committed now.
  absl::Status Complete(const StepUnderWay& step, bool late);
  // The plan's part of each sequence in the logits.
  void CollectJobs(const StepPlan& plan);
  void EmitEntry(const SequenceStep& step, const StepOutput& output, absl::Time begin,
                 SampledStep& sampled, StepRecord* record);
  void AppendToken(Live& live, SampleResult& sampled, SequenceOutput* result);
  void EndWithError(SequenceId id, EndError error, std::string detail);
  void Refuse(const EngineRequest& request, EndError error, std::string detail);
  void Forget(SequenceId id);
  void Emit(const std::shared_ptr<OutputSink>& sink, SequenceOutput output);
  void Flush();
  void UpdateSnapshot(const StepRecord& record);

  const EngineOptions options_;
  StepExecutor& executor_;
  const StepObserver observer_;

  // Engine thread only.
  Scheduler scheduler_;
  SequenceId next_id_ = 1;
  absl::node_hash_map<SequenceId, Live> live_;  // requests stay where they are
  absl::flat_hash_map<std::pair<const OutputSink*, uint64_t>, SequenceId> by_client_;
  const std::unique_ptr<StepSampler> sampler_;
  std::vector<SampleJob> jobs_;  // one for each of the plan's sequences
  std::vector<SampledStep> sampled_;
  StepUnderWay step_;
  StepUnderWay late_step_;  // the one before
  bool has_late_step_ = false;
  absl::Time completed_ = absl::InfinitePast();  // when the last step was
  std::vector<SampledToken> tokens_;
  std::vector<std::pair<std::shared_ptr<OutputSink>, std::vector<SequenceOutput>>> outbox_;
  EngineSnapshot totals_;

  mutable absl::Mutex mutex_;
  std::vector<Submission> submissions_ ABSL_GUARDED_BY(mutex_);
  std::vector<Cancellation> cancellations_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool idle_ ABSL_GUARDED_BY(mutex_) = true;
  EngineSnapshot snapshot_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace marcoro
