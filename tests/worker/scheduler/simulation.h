// A seeded random life of a scheduler, checked after every step against a model that knows nothing
// of its insides: the model keeps what each KV slot would contain, as a fingerprint of all tokens
// up to that position and the salt.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "worker/scheduler/scheduler.h"

namespace marcoro {

// What a run came across: proves that the simulation reaches what it is meant to test.
struct SimulationTotals {
  uint64_t steps = 0;
  uint64_t finished = 0;
  uint64_t cancelled = 0;
  uint64_t poisoned = 0;
  uint64_t expired = 0;
  uint64_t refused = 0;
  uint64_t preemptions = 0;
  uint64_t prefix_hit_tokens = 0;
  uint64_t shared_blocks = 0;
  uint64_t zeroed_blocks = 0;
  uint64_t prompt_rows = 0;
  uint64_t late_tokens = 0;
  uint64_t wasted = 0;  // tokens sampled for sequences that had ended
  uint64_t digest = 0;  // of all plans
};

// Positions that will have been computed when the sequence has generated all it may.
inline int32_t FinalPositions(const NewSequence& request) {
  const auto prompt = static_cast<int32_t>(request.prompt_ids.size());
  return std::max(1, prompt + request.max_tokens - 1);
}

class Simulation {
 public:
  // With late tokens most steps are committed before their tokens are known.
  explicit Simulation(uint64_t seed, bool late_tokens = false);

  // Random requests, cancellations and NaNs for `steps` steps, then until everything has ended.
  // Violations are GoogleTest failures; the run stops at the first.
  SimulationTotals Run(int32_t steps);

 private:
  using Fingerprint = uint64_t;
  static constexpr Fingerprint kZero = 0;

  struct ModelSequence {
    NewSequence request;
    uint64_t arrival = 0;
    std::vector<TokenId> tokens;            // those that are late, too: the device knows them
    std::vector<Fingerprint> fingerprints;  // of tokens [0, i] and the salt
    int32_t computed = 0;
    bool begun = false;
    bool running = false;
    int32_t next_prompt_token = 1;  // whose logits are due next
    int32_t stop_after = 0;         // generated tokens
    std::vector<BlockId> blocks;    // in the last plan
    int32_t late_tokens = 0;        // that the scheduler does not know yet
    bool awaits_end = false;        // with what it has not been told yet
  };
  struct StepUnderWay {
    std::vector<SequenceStep> sequences;
    std::vector<StepOutput> outputs;
    std::vector<SampledToken> tokens;
    std::vector<int32_t> generated;  // by each sequence, after the step
  };

  int32_t Random(int32_t low, int32_t high);
  bool Chance(double probability);
  static SchedulerOptions RandomOptions(std::mt19937_64& random);
  bool ServedFirst(const ModelSequence& a, const ModelSequence& b) const;

  void AddSequences();
  NewSequence RandomRequest();
  void CheckRefusal(const NewSequence& request, const absl::Status& status);
  void CancelSome(double probability);
  void RunStep(bool faults);

  void CheckExpired();
  void CheckTotals(const StepPlan& plan);
  void CheckLateTokens(const StepPlan& plan);
  int32_t CountThatAwaitTheirEnd() const;
  void CheckZeroing(const StepPlan& plan);
  void CheckOrder(const StepPlan& plan);
  void CheckNobodyWaitsWithoutReason(const StepPlan& plan);
  void CheckEntry(const SequenceStep& step, const StepOutput& output, const TokenId* tokens,
                  const BlockId* blocks);
  void CheckRows(const ModelSequence& sequence, const SequenceStep& step, const StepOutput& output);
  void WriteAndRead(const StepPlan& plan);
  void EndStep(const StepPlan& plan, bool faults);
  StepUnderWay Sample(const StepPlan& plan);
  void CommitLate(const StepUnderWay& step);
  void EndLateStep(bool faults);
  void Complete(const StepUnderWay& step, bool late, bool faults);
  void FinishEnded(const StepUnderWay& step);
  void Append(ModelSequence* sequence, TokenId token);
  void Poison(SequenceId id);
  void Erase(SequenceId id);
  void Digest(const StepPlan& plan);

  const bool late_tokens_;
  std::mt19937_64 random_;
  const SchedulerOptions options_;
  Scheduler scheduler_;
  absl::Time now_ = absl::UnixEpoch();
  std::map<SequenceId, ModelSequence> sequences_;
  std::vector<std::vector<TokenId>> stems_;  // prompts begin with one of these
  std::vector<std::array<Fingerprint, kBlockTokens>> cache_;
  std::map<BlockId, std::set<SequenceId>>
      poisoned_;               // blocks to be zeroed, and who may still read them
  double long_answers_ = 0.2;  // how many answers are; many of them make blocks run out
  std::optional<StepUnderWay> late_step_;
  SequenceId last_id_ = 0;
  SimulationTotals totals_;
};

}  // namespace marcoro
