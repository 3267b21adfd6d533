// Choosing tokens where the logits are: what a backend whose memory is not the program's may offer
// (Backend::MakeTokenSampler), so that a step's logits need not travel.
//
// The tokens and log-probabilities are, bit for bit, those that the same rules give on the host
// (worker/sampling).
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/tensor.h"

namespace marcoro {

// How a sequence's tokens are chosen.
struct TokenRules {
  uint64_t seed = 0;
  float temperature = 1;         // 0: greedy
  int32_t top_k = 0;             // 0: off
  float top_p = 1;               // 1: off
  float min_p = 0;               // 0: off
  float typical_p = 1;           // 1: off
  float repetition_penalty = 1;  // 1: off; over prompt and generated tokens
  float presence_penalty = 0;    // over generated tokens
  float frequency_penalty = 0;   // over generated tokens
  absl::Span<const std::pair<int32_t, float>> logit_bias = {};
  absl::Span<const int32_t> allowed_tokens = {};  // empty: all
  absl::Span<const std::vector<int32_t>> bad_words = {};
  absl::Span<const int32_t> end_tokens = {};  // not before min_tokens are generated
  int32_t min_tokens = 0;
  int32_t logprobs = -1;  // alternatives to report; -1: no log-probabilities
};

enum class SamplingStatus : int32_t {
  kOk = 0,
  kLogitsAreNotNumbers = 1,  // of the model: there is a NaN
  kNothingIsAllowed = 2,     // the rules forbid every token
  kAdjustmentsAreInfinite = 3,
  kLargestIsNotFinite = 4,  // of the model's logits, none of which is NaN
};

struct RankedToken {
  int32_t token = 0;
  float logprob = 0;
};

struct TokenChoice {
  SamplingStatus status = SamplingStatus::kOk;
  int32_t token = -1;  // the others are meaningless unless the status is kOk
  float logprob = 0;   // if asked for, as are the alternatives, best first
  absl::Span<const RankedToken> alternatives = {};
};

// A row of a step whose id is the token that the slot chose last.
struct LateId {
  int32_t row = 0;
  int32_t slot = 0;
};

struct TokenSamplerLimits {
  int32_t slots = 0;       // sequences at a time
  int32_t rows = 0;        // of the logits of a step
  int64_t vocabulary = 0;  // columns of logits
};

// Sequences have slots; a slot remembers what of a sequence its next token depends on, and goes on
// by itself with each token that it chooses. Used by one thread, that which calls the backend's
// ops.
class TokenSampler {
 public:
  // Steps that may have been queued and not taken.
  static constexpr int kMostQueued = 2;

  virtual ~TokenSampler() = default;

  // A slot for a sequence of these rules, prompt and tokens generated so far. Ids outside of the
  // vocabulary matter as little as on the host. UNIMPLEMENTED for rules that it cannot follow,
  // RESOURCE_EXHAUSTED without a slot or memory: then the sequence's tokens are to be chosen
  // elsewhere.
  virtual absl::StatusOr<int32_t> Open(const TokenRules& rules, absl::Span<const int32_t> prompt,
                                       absl::Span<const int32_t> generated) = 0;
  // The slot may be opened again, even while steps that choose its tokens are queued.
  virtual void Close(int32_t slot) = 0;

  // Chooses a token for each row r of logits (R, V) F32 whose slots[r] is not -1, after the ops
  // that were asked for before. No slot comes twice. A slot whose status is not kOk stays as it
  // was.
  virtual void Queue(const Tensor& logits, absl::Span<const int32_t> slots) = 0;
  // Of the step that begins next (Backend::BeginStep), these rows' ids are not what it is given but
  // what slots chose last, in steps that need not have been taken. Of a slot that chose none (its
  // status was not kOk) any id may be taken.
  virtual void SupplyIds(absl::Span<const LateId> late) = 0;
  // Waits for the step that was queued first and returns a choice for each of its rows (those of
  // slot -1 are meaningless), valid until the next call. Fails if the device did.
  virtual absl::StatusOr<absl::Span<const TokenChoice>> Take() = 0;
};

}  // namespace marcoro
